"""What all alignment objectives do: from the features of a batch's nodes in two or three modalities to a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from .config import OBJECTIVES, AlignmentConfig
from .costs import centered_costs, inner_products
from .gradients import GradientEstimator
from .graphs import edge_differences, nearest_neighbor_edges, neighbours_for, run_graph_network, unit_vectors
from .matching import match_graphs
from .retrieval import matching_accuracy
from .transport import entropic_loss


MODALITIES = ("image", "region", "answer", "extended")
# Both are of the image and know the question, by which they could be matched whatever the image shows.
NEVER_MATCHED = {"image", "region"}


@dataclass
class AlignmentOutput:
    """
    What an objective returns.

    Attributes:
        loss (`torch.Tensor`, scalar): The alignment loss, unweighted.
        matchings (`dict[str, torch.Tensor]`): For each pair "source>target" the labels `(num_samples, num_nodes)`. If
            the loss needs no matching, those at node costs, found when first asked for.
        matching_accuracy (`torch.Tensor`, scalar): Share of nodes matched to themselves. No evidence of alignment.
    """

    loss: torch.Tensor
    names: list[str]
    groups: torch.Tensor
    find_labels: Callable[[], torch.Tensor]

    @cached_property
    def matchings(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.find_labels(), strict=True))

    @property
    def matching_accuracy(self) -> torch.Tensor:
        return matching_accuracy(torch.stack(list(self.matchings.values())), self.groups)


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

    `AlignmentObjective(config)` is the one that `config.alignment_loss` names; objectives.py has them all. One of your
    own derives from this class, under `@register_objective(name)`, and says what differs: mostly `pair_loss` and the
    class attributes.

    Args:
        config ([`AlignmentConfig`], *optional*): The settings, by default those of `AlignmentConfig()`.
        small_batch (`str`, *optional*): In place of that of `config`: what becomes of a batch with no more than
            `num_neighbors` nodes: an error (`"refuse"`), or (`"shrink"`) fewer neighbours and one warning.
        gradient_estimator (`GradientEstimator`, *optional*): In place of the one that `config` names, with settings of
            its own, noise and margin included.
        solver (*optional*): Takes the place of `match_graphs`.

    Class attributes:
        default_edge_weight, default_message_weight (`float` or None): The weights where `config` gives none; None for
            an objective that has no edges, or no messages, whatever `config` says.
        default_margin (`float`): What right pairs must be better by in training, where `config` does not say.
        can_couple_edges (`bool`): Whether edges can be matched by quadratic assignment.
        takes_estimator (`bool`): Whether matchings are found with noise where `config` asks for it; else the loss is
            `pair_loss` always.
    """

    default_edge_weight: float | None = None
    default_message_weight: float | None = None
    default_margin = 0.4
    can_couple_edges = False
    takes_estimator = False

    def __new__(cls, config: AlignmentConfig | None = None, *args, **options):
        if cls is AlignmentObjective:
            cls = OBJECTIVES[(config or AlignmentConfig()).alignment_loss]
        return super().__new__(cls)

    def __init__(
        self,
        config: AlignmentConfig | None = None,
        small_batch: str | None = None,
        gradient_estimator: GradientEstimator | None = None,
        solver=None,
    ):
        self.config = config = config or AlignmentConfig()
        self.small_batch = small_batch or config.small_batch
        self.edge_weight = _weight(config.edge_weight, self.default_edge_weight)
        self.message_weight = _weight(config.message_weight, self.default_message_weight)
        self.margin = self.default_margin if config.alignment_margin is None else config.alignment_margin
        self.is_coupled = config.edge_matching == "coupled" and self.edge_weight > 0
        self.solver = solver or partial(match_graphs, effort=config.solver_effort)
        self.estimator = None
        if self.takes_estimator:
            self.estimator = gradient_estimator or self._estimator_of(config)

    def _estimator_of(self, config):
        if config.gradient_estimator == "entropic":
            return None
        noise = {"noise_scale": config.noise_scale, "num_samples": config.num_noise_samples}
        return GradientEstimator(config.gradient_estimator, margin=self.margin, **noise)

    @property
    def uses_graph_network(self) -> bool:
        """Whether the loss has a gradient for the graph network."""
        return self.message_weight > 0

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
            features (`dict[str, torch.Tensor]`): Of two or more of `MODALITIES`, features `(num_nodes, feature_size)`
                of the same nodes in the same order, any floating dtype. `"image"` and `"region"` are not matched with
                each other.
            graph_network (`nn.Module`, *optional*): A `GraphNetwork`, or `None` for no message passing.
            generator (`torch.Generator`, *optional*): Source of the noise, on the features' device.
            training (`bool`, *optional*, defaults to `True`): Without it there is no noise and no margin.
            groups (`torch.Tensor` of shape `(num_nodes,)`, *optional*): Equal for nodes that are one and the same.

        Returns:
            [`AlignmentOutput`].

        Raises:
            ValueError: If fewer than two modalities are given, shapes differ, a feature is not finite (the message
                names its modality), or the batch is too small.
        """
        features = checked_features(features)
        nodes = next(iter(features.values()))
        groups = torch.arange(len(nodes), device=nodes.device) if groups is None else groups.to(nodes.device)
        if groups.shape != (len(nodes),):
            raise ValueError(
                f"`groups` must be of shape ({len(nodes)},), one for each node, got {tuple(groups.shape)}."
            )
        return self.match(features, graph_network, groups, generator=generator, training=training)

    def match(self, features, graph_network, groups, *, generator, training) -> AlignmentOutput:
        """As `__call__`, of arguments that were checked."""
        pairs = self.graph_pairs(features, graph_network)
        nodes, edges = (pairs.source_nodes, pairs.target_nodes), (pairs.source_edges, pairs.target_edges)
        right = groups.unsqueeze(0) == groups.unsqueeze(1)
        options = {"generator": generator, "training": training}
        if self.is_coupled:
            structure = self.edge_weight * self._costs(*edges), pairs.source_edge_index, pairs.target_edge_index
            loss, labels = self._estimate(self._costs(*nodes), *structure, right, **options)
        else:
            loss, labels = self._compare(*nodes, right, self.config.alignment_temperature, **options)
            if self.edge_weight > 0 and pairs.source_edges.shape[-2] > 0:
                ends = groups[pairs.source_edge_index]
                right_edges = (ends.unsqueeze(-1) == ends.unsqueeze(-2)).all(-3)
                edge_loss, _ = self._compare(*edges, right_edges, self.config.edge_temperature, **options)
                loss = loss + self.edge_weight * edge_loss
        if labels is None:
            find_labels = partial(self._best_matching, *(values.detach() for values in nodes), generator)
        else:
            find_labels = labels.detach
        return AlignmentOutput(loss, pairs.names, groups, find_labels)

    def pair_loss(self, similarity: torch.Tensor, temperature: float, right: torch.Tensor) -> torch.Tensor:
        """
        Loss, a scalar, of cosines `(num_pairs, n, n)` between nodes or edges, in training less the margin where
        `right`, bool of that shape or of `(n, n)`, says that they belong together.
        """
        # In units of cosine, as the other estimators' losses are: one `alignment_weight` serves them all.
        return self.config.alignment_temperature * entropic_loss(similarity, temperature, right)

    def _compare(self, source, target, right, temperature, *, generator, training):
        """Loss of unit vectors `(num_pairs, n, size)` that must find their partners; its labels, if it has any."""
        if self.estimator is not None:
            costs = self._costs(source, target)
            return self._estimate(costs, *_no_edges(costs), right, generator=generator, training=training)
        similarity = inner_products(source, target)
        if training and self.margin > 0:
            similarity = similarity - self.margin * right
        return self.pair_loss(similarity, temperature, right), None

    def _estimate(self, *problem, **options):
        return self.estimator(*problem, solver=self.solver, **options)

    def _best_matching(self, source, target, generator):
        """Labels `(num_pairs, 1, num_nodes)` at node costs, for losses that need none themselves."""
        costs = -inner_products(source, target)
        return self.solver(costs, *_no_edges(costs), generator=generator).unsqueeze(1)

    def _costs(self, source, target):
        return centered_costs(source, target)

    def graph_pairs(self, features: dict[str, torch.Tensor], graph_network: nn.Module | None = None) -> GraphPairs:
        """The graphs that `features`, float32 or float64, make, and which of them are matched: each pair once."""
        unit = {
            name: unit_vectors(values - values.mean(0) if self.config.center_features else values)
            for name, values in features.items()
        }
        if graph_network is not None and self.message_weight > 0:
            unit = dict(zip(unit, self._add_messages(torch.stack(list(unit.values())), graph_network), strict=True))
        names, source, target = [], [], []
        for name, values in unit.items():
            # Without the modality itself: its own share of the mean would be enough to find it by.
            others = {
                other: nodes for other, nodes in unit.items() if other != name and {name, other} != NEVER_MATCHED
            }
            if self.config.alignment_targets == "others" and len(others) > 1:
                others = {f"others_than_{name}": unit_vectors(torch.stack(list(others.values())).mean(0))}
            for other, nodes in others.items():
                if f"{other}>{name}" not in names:
                    names.append(f"{name}>{other}")
                    source.append(values)
                    target.append(nodes)
        return self._with_edges(names, torch.stack(source), torch.stack(target), list(unit.values()))

    def _add_messages(self, nodes, graph_network):
        """`(num_modalities, num_nodes, size)` unit vectors, moved by what their own neighbours tell them."""
        edge_index = self._nearest(nodes)
        # Row 0 is the node and row 1 its neighbour: turned around, each node hears its own neighbours.
        messages = run_graph_network(graph_network, nodes, edge_index.flip(-2), share_dropout=True)
        return unit_vectors(nodes + self.message_weight * unit_vectors(messages))

    def _with_edges(self, names, source, target, modalities):
        if self.edge_weight == 0:
            none = torch.zeros(len(names), 2, 0, dtype=torch.int64, device=source.device)
            source_edges = target_edges = source[:, :0]
            return GraphPairs(names, source, target, source_edges, target_edges, none, none)
        if self.is_coupled:
            source_index, target_index = (self._nearest(nodes) for nodes in (source, target))
        else:
            source_index = target_index = self.shared_edges(source, target, modalities).expand(len(names), -1, -1)
        source_edges, target_edges = edge_differences(source, source_index), edge_differences(target, target_index)
        return GraphPairs(names, source, target, source_edges, target_edges, source_index, target_index)

    def shared_edges(self, source, target, modalities):
        """Edges `([num_pairs,] 2, num_edges)` of both graphs of each pair: here by all modalities together."""
        return self._nearest(torch.cat(modalities, -1))

    def _nearest(self, nodes):
        num_neighbors = neighbours_for(nodes.shape[-2], self.config.num_neighbors, self.small_batch)
        return nearest_neighbor_edges(nodes, num_neighbors)


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
    # On a GPU each question is a wait: one for all modalities, and a second only for the name of the faulty one.
    finite = torch.stack([torch.isfinite(values).all() for values in kept.values()])
    if not finite.all():
        raise ValueError(f"The {list(kept)[int(finite.int().argmin())]} features hold NaN or infinity.")
    return {name: values.to(torch.promote_types(values.dtype, torch.float32)) for name, values in kept.items()}


def _no_edges(values):
    """Edge costs and edges of graphs without edges."""
    edge_index = torch.zeros(2, 0, dtype=torch.int64, device=values.device)
    return values.new_zeros(0, 0), edge_index, edge_index


def _weight(value, default):
    """The weight of what an objective may not have at all (`default` None)."""
    return 0.0 if default is None else default if value is None else value
