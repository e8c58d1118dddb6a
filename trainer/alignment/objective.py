"""The alignment objectives: from the features of a batch's nodes in two or three modalities to a loss."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from .contrast import infonce_loss, siglip_loss
from .costs import centered_costs, inner_products
from .gradients import ESTIMATORS, GradientEstimator, hamming_loss
from .graphs import edge_differences, nearest_neighbor_edges, neighbours_for, run_graph_network, unit_vectors
from .matching import match_graphs
from .released import released_matchings
from .retrieval import matching_accuracy
from .transport import MIN_TEMPERATURE, entropic_loss


LOSSES = (
    "multi_graph",
    "multi_graph_pairwise",
    "first_order",
    "optimal_transport",
    "infonce",
    "siglip",
    "paper",
    "none",
)
GRAPH_LOSSES = ("multi_graph", "multi_graph_pairwise")
CONTRASTS = {"infonce": infonce_loss, "siglip": siglip_loss}
GRADIENT_ESTIMATORS = ("entropic", *ESTIMATORS)
EDGE_MATCHINGS = ("separate", "coupled")
TARGETS = ("each", "others")
MODALITIES = ("image", "answer", "extended")
DEFAULT_EDGE_WEIGHT = 1.0
DEFAULT_MESSAGE_WEIGHT = 0.1
DEFAULT_MARGIN = 0.4


@dataclass
class AlignmentOutput:
    """
    Attributes:
        loss (`torch.Tensor`, scalar): The alignment loss, unweighted.
        matching_accuracy (`torch.Tensor`, scalar): Share of nodes matched to themselves. No evidence of alignment.
        matchings (`dict[str, torch.Tensor]`): For each pair "source>target" the labels `(num_samples, num_nodes)`.
    """

    loss: torch.Tensor
    matching_accuracy: torch.Tensor
    matchings: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class GraphPairs:
    """Pairs of graphs to be matched, one leading entry a pair: unit-length features, and the edges of either side."""

    names: list[str]
    source_nodes: torch.Tensor
    target_nodes: torch.Tensor
    source_edges: torch.Tensor
    target_edges: torch.Tensor
    source_edge_index: torch.Tensor
    target_edge_index: torch.Tensor


class AlignmentObjective:
    """
    A loss that is low when each node's features in one modality belong to the same node's in the others.

    `loss` is one of

    - `"multi_graph"`: the graphs of all modalities are matched with each other, node to node and edge to edge. An edge
      is the difference of two nodes, and joins a node to its nearest neighbours by all modalities together.
    - `"multi_graph_pairwise"`: the same, but every two modalities have edges of their own, by these two.
    - `"first_order"`: nodes alone: no edges, no message passing.
    - `"optimal_transport"`: nodes alone, by the entropic estimator.
    - `"infonce"`, `"siglip"`: contrastive, between every two modalities; with an `edge_weight` also between edges.
    - `"paper"`: what the research release computes, faults included (README.md here lists them). It can reach 0
      without aligning anything.
    - `"none"`: a loss of 0, with the matching at node costs.

    Args:
        loss (`str`, *optional*, defaults to `"multi_graph"`): See above.
        targets (`str`, *optional*, defaults to `"each"`): What a modality is matched with: `"each"` other one, or the
            mean of the `"others"`, a barycenter that does not contain it.
        num_neighbors (`int`, *optional*, defaults to 5): Edges of a node.
        edge_weight (`float`, *optional*): Weight of edges beside nodes. By default 1 for the two multi-graph losses
            and 0 for the contrastive ones; the others have no edges.
        edge_matching (`str`, *optional*, defaults to `"separate"`): `"separate"`: an edge must find its partner by its
            own features, so that structure gives nothing away. `"coupled"`: quadratic assignment, edges go where
            their nodes go, and each graph has edges from its own features.
        message_weight (`float`, *optional*): Length of the graph network's output beside a node's own unit features,
            to which it is added. By default 0.1 for the two multi-graph losses and 0, no message passing, elsewhere.
        center_features (`bool`, *optional*, defaults to `False`): Subtract each modality's mean over the batch.
        margin (`float`, *optional*): What right pairs, of nodes and of edges, must be better by in training, in units
            of cosine. By default 0 for the contrastive losses and 0.4 for the others.
        gradient_estimator (`str` or `GradientEstimator`, *optional*, defaults to `"entropic"`): `"entropic"` smooths
            the matching by entropy (`entropic_loss`); the others by noise (see `GradientEstimator`, of which one with
            further settings may be given; its own noise and margin then count).
        temperature (`float`, *optional*, defaults to 0.1): Of nodes, for the entropic and the contrastive losses.
        edge_temperature (`float`, *optional*, defaults to 0.15): The same of edges.
        noise_scale (`float`, *optional*, defaults to 0.1): Scale of the normal noise on costs, in units of cosine.
        num_samples (`int`, *optional*, defaults to 4): Noise samples of each pair in a step; `"blackbox"` takes 1.
        small_batch (`str`, *optional*, defaults to `"refuse"`): What becomes of a batch with no more than
            `num_neighbors` nodes: an error, or (`"shrink"`) fewer neighbours and one warning.
        solver_effort (`float`, *optional*, defaults to 1.0): Length of the search for each coupled matching, as in
            `match_graphs`.
        solver (*optional*): Takes the place of `match_graphs`.

    Noise, samples, margin, temperatures, centering and weights do not apply to `"paper"`, whose values are the
    release's. In evaluation (`training=False`) there is no noise and no margin.

    Raises:
        ValueError: For a value that is not one of those named or out of range, for coupled edges
            with the entropic estimator, which need noise, and for coupled edges of a loss that has none.
    """

    def __init__(
        self,
        loss: str = "multi_graph",
        *,
        targets: str = "each",
        num_neighbors: int = 5,
        edge_weight: float | None = None,
        edge_matching: str = "separate",
        message_weight: float | None = None,
        center_features: bool = False,
        margin: float | None = None,
        gradient_estimator: str | GradientEstimator = "entropic",
        temperature: float = 0.1,
        edge_temperature: float = 0.15,
        noise_scale: float = 0.1,
        num_samples: int = 4,
        small_batch: str = "refuse",
        solver_effort: float = 1.0,
        solver=None,
    ):
        _check_choice("loss", loss, LOSSES)
        _check_choice("targets", targets, TARGETS)
        _check_choice("edge_matching", edge_matching, EDGE_MATCHINGS)
        if not isinstance(gradient_estimator, GradientEstimator):
            _check_choice("gradient_estimator", gradient_estimator, GRADIENT_ESTIMATORS)
        _check_choice("small_batch", small_batch, ("refuse", "shrink"))
        for name, value in (("num_neighbors", num_neighbors), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if edge_matching == "coupled" and loss not in GRAPH_LOSSES:
            raise ValueError(f'`edge_matching="coupled"` is for {" and ".join(GRAPH_LOSSES)}, not for {loss!r}.')
        if not solver_effort > 0:
            raise ValueError(f"`solver_effort` must be above 0, got {solver_effort}.")
        for name, value in (
            ("edge_weight", edge_weight),
            ("message_weight", message_weight),
            ("margin", margin),
            ("noise_scale", noise_scale),
        ):
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")
        for name, value in (("temperature", temperature), ("edge_temperature", edge_temperature)):
            if not value >= MIN_TEMPERATURE:
                raise ValueError(f"`{name}` must be at least {MIN_TEMPERATURE}, got {value}.")
        self.loss = loss
        self.targets = targets
        self.num_neighbors = num_neighbors
        self.edge_weight = self._weight(edge_weight, DEFAULT_EDGE_WEIGHT)
        self.message_weight = self._weight(message_weight, DEFAULT_MESSAGE_WEIGHT)
        self.is_coupled = edge_matching == "coupled" and self.edge_weight > 0
        self.margin = margin if margin is not None else 0.0 if loss in CONTRASTS else DEFAULT_MARGIN
        self.center_features = center_features
        self.temperature = temperature
        self.edge_temperature = edge_temperature
        self.small_batch = small_batch
        self.solver = solver or partial(match_graphs, effort=solver_effort)
        if gradient_estimator == "entropic" or loss == "optimal_transport":
            self.estimator = None
        elif isinstance(gradient_estimator, GradientEstimator):
            self.estimator = gradient_estimator
        else:
            self.estimator = GradientEstimator(
                gradient_estimator, noise_scale=noise_scale, margin=self.margin, num_samples=num_samples
            )
        if self.is_coupled and self.estimator is None:
            raise ValueError(
                '`gradient_estimator="entropic"` smooths linear assignments alone. With `edge_matching="coupled"` '
                f"choose one of {', '.join(ESTIMATORS)}."
            )

    def _weight(self, value, default):
        if self.loss in ("first_order", "optimal_transport", "none"):
            return 0.0
        if value is None:
            return default if self.loss in GRAPH_LOSSES else 0.0
        return value

    @property
    def uses_graph_network(self) -> bool:
        """Whether the loss has a gradient for the graph network."""
        return self.loss == "paper" or self.message_weight > 0

    def __call__(
        self,
        features: dict[str, torch.Tensor],
        graph_network: nn.Module | None = None,
        generator: torch.Generator | None = None,
        training: bool = True,
        groups: torch.Tensor | None = None,
    ) -> AlignmentOutput:
        """
        The loss of a batch.

        Args:
            features (`dict[str, torch.Tensor]`): `"image"`, `"answer"` and, if there is one, `"extended"`: features
                `(num_nodes, feature_size)` of the same nodes in the same order. Any floating dtype.
            graph_network (`nn.Module`, *optional*): A `GraphNetwork`, or `None` for no message passing.
            generator (`torch.Generator`, *optional*): Source of the noise, on the features' device.
            training (`bool`, *optional*, defaults to `True`): Without it no noise is added.
            groups (`torch.Tensor` of shape `(num_nodes,)`, *optional*): Equal for nodes that are one and the same.

        Returns:
            [`AlignmentOutput`].

        Raises:
            ValueError: If fewer than two modalities are given, shapes differ, a feature is not finite (the message
                names its modality), or the batch is too small.
        """
        features = checked_features(features)
        device = next(iter(features.values())).device
        num_nodes = len(next(iter(features.values())))
        groups = torch.arange(num_nodes, device=device) if groups is None else groups.to(device)
        if groups.shape != (num_nodes,):
            raise ValueError(
                f"`groups` must be of shape ({num_nodes},), one for each node, got {tuple(groups.shape)}."
            )
        right = groups.unsqueeze(0) == groups.unsqueeze(1)
        if self.loss == "paper":
            names, loss, labels = self._released(features, graph_network, generator, training, right)
        else:
            pairs = self.graph_pairs(features, graph_network)
            names = pairs.names
            if self.is_coupled:
                loss, labels = self._match_coupled(pairs, right, generator, training)
            else:
                loss, labels = self._match_separately(pairs, groups, right, generator, training)
        return AlignmentOutput(loss, matching_accuracy(labels, groups), dict(zip(names, labels, strict=True)))

    def _released(self, features, graph_network, generator, training, right):
        names, matchings, labels = released_matchings(
            features,
            graph_network,
            num_neighbors=self.num_neighbors,
            small_batch=self.small_batch,
            generator=generator,
            training=training,
            solver=self.solver,
        )
        return names, hamming_loss(matchings, right), labels.unsqueeze(1)

    def graph_pairs(self, features: dict[str, torch.Tensor], graph_network: nn.Module | None = None) -> GraphPairs:
        """The graphs that `features`, float32 or float64, make, and which of them are matched: each pair once."""
        unit = {
            name: unit_vectors(values - values.mean(0) if self.center_features else values)
            for name, values in features.items()
        }
        if graph_network is not None and self.message_weight > 0:
            unit = dict(zip(unit, self._add_messages(torch.stack(list(unit.values())), graph_network), strict=True))
        names, source, target = [], [], []
        for name, values in unit.items():
            # Without the modality itself: its own share of the mean would be enough to find it by.
            others = {other: nodes for other, nodes in unit.items() if other != name}
            if self.targets == "others" and len(others) > 1:
                others = {f"others_than_{name}": unit_vectors(torch.stack(list(others.values())).mean(0))}
            for other, nodes in others.items():
                if f"{other}>{name}" not in names:
                    names.append(f"{name}>{other}")
                    source.append(values)
                    target.append(nodes)
        return self._with_edges(names, torch.stack(source), torch.stack(target), list(unit.values()))

    def _add_messages(self, nodes, graph_network):
        """`(num_modalities, num_nodes, size)` unit vectors, moved by what their own neighbours tell them."""
        edge_index = nearest_neighbor_edges(nodes, self._neighbours(nodes))
        # Row 0 is the node and row 1 its neighbour: turned around, each node hears its own neighbours.
        messages = run_graph_network(graph_network, nodes, edge_index.flip(-2), share_dropout=True)
        return unit_vectors(nodes + self.message_weight * unit_vectors(messages))

    def _with_edges(self, names, source, target, modalities):
        if self.edge_weight == 0:
            none = torch.zeros(len(names), 2, 0, dtype=torch.int64, device=source.device)
            source_edges = target_edges = source[:, :0]
            return GraphPairs(names, source, target, source_edges, target_edges, none, none)
        num_neighbors = self._neighbours(source)
        if self.is_coupled:
            source_index, target_index = (nearest_neighbor_edges(nodes, num_neighbors) for nodes in (source, target))
        elif self.loss == "multi_graph_pairwise":
            source_index = target_index = nearest_neighbor_edges(torch.cat([source, target], -1), num_neighbors)
        else:
            joint = nearest_neighbor_edges(torch.cat(modalities, -1), num_neighbors)
            source_index = target_index = joint.expand(len(names), -1, -1)
        source_edges, target_edges = edge_differences(source, source_index), edge_differences(target, target_index)
        return GraphPairs(names, source, target, source_edges, target_edges, source_index, target_index)

    def _neighbours(self, nodes):
        return neighbours_for(nodes.shape[-2], self.num_neighbors, self.small_batch)

    def _match_coupled(self, pairs, right, generator, training):
        return self.estimator(
            self._costs(pairs.source_nodes, pairs.target_nodes),
            self.edge_weight * self._costs(pairs.source_edges, pairs.target_edges),
            pairs.source_edge_index,
            pairs.target_edge_index,
            right,
            training=training,
            generator=generator,
            solver=self.solver,
        )

    def _match_separately(self, pairs, groups, right, generator, training):
        options = {"generator": generator, "training": training}
        loss, labels = self._match(pairs.source_nodes, pairs.target_nodes, right, self.temperature, **options)
        if labels is None:
            labels = self._best_matching(pairs, generator).unsqueeze(1)
        if self.edge_weight > 0 and pairs.source_edges.shape[-2] > 0:
            ends = groups[pairs.source_edge_index]
            right_edges = (ends.unsqueeze(-1) == ends.unsqueeze(-2)).all(-3)
            edge_loss, _ = self._match(
                pairs.source_edges, pairs.target_edges, right_edges, self.edge_temperature, **options
            )
            loss = loss + self.edge_weight * edge_loss
        return loss, labels

    def _match(self, source, target, right, temperature, *, generator, training):
        """Loss of unit vectors `(num_pairs, n, size)` that must find their partners; its labels, if it has any."""
        if self.loss == "none":
            return source.new_zeros(()), None
        if self.estimator is None or self.loss in CONTRASTS:
            similarity = inner_products(source, target)
            if training and self.margin > 0:
                similarity = similarity - self.margin * right
            if self.loss in CONTRASTS:
                return CONTRASTS[self.loss](similarity, temperature, right), None
            # In units of cosine, as the other estimators' losses are: one `alignment_weight` serves them all.
            return self.temperature * entropic_loss(similarity, temperature, right), None
        return self.estimator(
            self._costs(source, target),
            *_no_edges(source),
            right,
            training=training,
            generator=generator,
            solver=self.solver,
        )

    def _best_matching(self, pairs, generator):
        """Labels `(num_pairs, num_nodes)` at node costs, for losses that need none themselves."""
        with torch.no_grad():
            costs = -inner_products(pairs.source_nodes, pairs.target_nodes)
            return self.solver(costs, *_no_edges(costs), generator=generator)

    def _costs(self, source, target):
        return centered_costs(source, target)


def checked_features(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The features in the order of `MODALITIES` and in float32 at least, or a refusal that names the modality."""
    unknown = [name for name in features if name not in MODALITIES]
    if unknown:
        raise ValueError(f"`features` may hold {', '.join(MODALITIES)}, got {unknown[0]!r}.")
    kept = {name: features[name] for name in MODALITIES if features.get(name) is not None}
    if len(kept) < 2:
        raise ValueError(f"Alignment needs features of two modalities or more, got {list(kept)}.")
    first_name, first = next(iter(kept.items()))
    for name, values in kept.items():
        if values.dim() != 2 or values.shape != first.shape:
            raise ValueError(
                f"The {name} features must be (num_nodes, feature_size) like the {first_name} features "
                f"{tuple(first.shape)}, got {tuple(values.shape)}."
            )
        if not torch.isfinite(values).all():
            raise ValueError(f"The {name} features hold NaN or infinity.")
    return {name: values.to(torch.promote_types(values.dtype, torch.float32)) for name, values in kept.items()}


def _no_edges(values):
    """Edge costs and edges of graphs without edges."""
    edge_index = torch.zeros(2, 0, dtype=torch.int64, device=values.device)
    return values.new_zeros(0, 0), edge_index, edge_index


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
