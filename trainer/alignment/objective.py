"""The alignment objectives: from the features of a batch's samples in two or three modalities to a loss."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from .costs import NOISE, centered_costs, gumbel_noise, inner_products, released_costs
from .gradients import differentiable_matching
from .graphs import edge_differences, nearest_neighbor_edges, neighbours_for, stack_graphs, unit_vectors
from .matching import match_graphs
from .retrieval import matching_accuracy


LOSSES = ("multi_graph", "multi_graph_pairwise", "first_order", "infonce", "paper")
GRADIENT_ESTIMATORS = ("blackbox", "imle")
MODALITIES = ("image", "answer", "extended")
# The release's settings (LPMP and its configuration).
PAPER_NOISE_SCALE = 0.05
PAPER_LAMBDA = 80.0
PAPER_EDGE_WEIGHT = 0.5


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


def hamming_loss(matchings: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
    """
    Hamming distance of 0/1 matchings `(..., num_nodes, num_nodes)` to the identity, per node, averaged: a wrong node
    counts 2, an unmatched one 1. With `groups`, every node of a node's own group is a right match.
    """
    num_nodes = matchings.shape[-1]
    if groups is None:
        groups = torch.arange(num_nodes, device=matchings.device)
    right = (groups.unsqueeze(0) == groups.unsqueeze(1)).to(matchings)
    wrong_matches = (matchings * (1 - right)).sum((-2, -1))
    missing_matches = num_nodes - (matchings * right).sum((-2, -1))
    return ((wrong_matches + missing_matches) / num_nodes).mean()


def infonce_loss(
    source: torch.Tensor, target: torch.Tensor, temperature: float, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Symmetric InfoNCE of unit vectors `(num_nodes, size)`: row i of both belong together. A negative of the same group
    is left out. Source: arXiv:2103.00020, section 2.3.
    """
    logits = inner_products(source, target) / temperature
    own = torch.arange(len(logits), device=logits.device)
    if groups is not None:
        twin = (groups.unsqueeze(0) == groups.unsqueeze(1)) & (own.unsqueeze(0) != own.unsqueeze(1))
        logits = logits.masked_fill(twin, -torch.inf)
    cross_entropy = nn.functional.cross_entropy
    return 0.5 * (cross_entropy(logits, own) + cross_entropy(logits.T, own))


class AlignmentObjective:
    """
    A loss that is low when each sample's features in one modality belong to the same sample's in the others.

    `loss` is one of

    - `"multi_graph"`: for each modality a graph of the batch's samples and one of the mean of the *other* modalities,
      each with nearest-neighbour edges from its own features; both are matched to each other, in both directions, at
      noisy node and edge costs; Hamming distance to the true matching.
    - `"multi_graph_pairwise"`: the same between every two modalities.
    - `"first_order"`: `"multi_graph"` by node costs alone: no edges, no message passing.
    - `"infonce"`: contrastive, between every two modalities.
    - `"paper"`: what the research release computes, faults included (README.md here lists them). It can reach 0
      without aligning anything.

    Args:
        loss (`str`, *optional*, defaults to `"multi_graph"`): See above.
        num_neighbors (`int`, *optional*, defaults to 5): Edges of a node.
        edge_weight (`float`, *optional*, defaults to 0.1): Weight of edge costs beside node costs. Edge costs carry no
            noise of their own, so the higher this is, the higher `noise_scale` has to be.
        message_weight (`float`, *optional*, defaults to 0.3): Length of the graph network's output beside a node's own
            unit features, to which it is added. 0 leaves message passing out.
        center_features (`bool`, *optional*, defaults to `False`): Subtract each modality's mean over the batch. Helps
            where each batch is moved as a whole, costs otherwise.
        noise (`str`, *optional*, defaults to `"normal"`): `"normal"` or `"gumbel"` noise on node costs in training.
        noise_scale (`float`, *optional*, defaults to 0.3): Its scale, in units of cosine: the margin of the loss.
        num_samples (`int`, *optional*, defaults to 4): Noise samples of each pair in a step; `"blackbox"` takes 1.
        gradient_estimator (`str`, *optional*, defaults to `"imle"`): `"imle"`, or `"blackbox"` with its one noise
            sample, as in the paper.
        step (`float`, *optional*, defaults to 1.0): How far costs move in the backward matching, in units of cosine.
            At 1 right and wrong pairs move apart by 2, all that two cosines can differ by. The gradient is
            proportional to `1 / step` where that changes nothing else.
        temperature (`float`, *optional*, defaults to 0.1): Of `"infonce"`.
        small_batch (`str`, *optional*, defaults to `"refuse"`): What becomes of a batch with no more than
            `num_neighbors` samples: an error, or (`"shrink"`) fewer neighbours and one warning.
        solver_effort (`float`, *optional*, defaults to 0.1): Length of the search for each matching, as in
            `match_graphs`. Of noisy costs a tenth of the full search trains as well as all of it, ten times sooner.
        solver (*optional*): Takes the place of `match_graphs`.

    Noise, samples, step, centering and weights do not apply to `"paper"`, whose values are the release's.
    """

    def __init__(
        self,
        loss: str = "multi_graph",
        *,
        num_neighbors: int = 5,
        edge_weight: float = 0.1,
        message_weight: float = 0.3,
        center_features: bool = False,
        noise: str = "normal",
        noise_scale: float = 0.3,
        num_samples: int = 4,
        gradient_estimator: str = "imle",
        step: float = 1.0,
        temperature: float = 0.1,
        small_batch: str = "refuse",
        solver_effort: float = 0.1,
        solver=None,
    ):
        _check_choice("loss", loss, LOSSES)
        _check_choice("noise", noise, tuple(NOISE))
        _check_choice("gradient_estimator", gradient_estimator, GRADIENT_ESTIMATORS)
        _check_choice("small_batch", small_batch, ("refuse", "shrink"))
        for name, value in (("num_neighbors", num_neighbors), ("num_samples", num_samples)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name, value in (("step", step), ("temperature", temperature), ("solver_effort", solver_effort)):
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        for name, value in (
            ("noise_scale", noise_scale),
            ("edge_weight", edge_weight),
            ("message_weight", message_weight),
        ):
            if not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")
        self.loss = loss
        self.num_neighbors = num_neighbors
        self.edge_weight = edge_weight
        self.message_weight = message_weight
        self.center_features = center_features
        self.noise = noise
        self.noise_scale = noise_scale
        self.num_samples = num_samples if gradient_estimator == "imle" else 1
        self.step = step
        self.temperature = temperature
        self.small_batch = small_batch
        self.solver = solver or partial(match_graphs, effort=solver_effort)

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
            features (`dict[str, torch.Tensor]`): `"image"`, `"answer"` and, if there is one, `"extended"`: pooled
                features `(num_samples, feature_size)` of the same samples in the same order. Any floating dtype.
            graph_network (`nn.Module`, *optional*): A `GraphNetwork`, or `None` for no message passing.
            generator (`torch.Generator`, *optional*): Source of the noise, on the features' device.
            training (`bool`, *optional*, defaults to `True`): Without it no noise is added.
            groups (`torch.Tensor` of shape `(num_samples,)`, *optional*): Equal for samples that are one and the same.

        Returns:
            [`AlignmentOutput`].

        Raises:
            ValueError: If fewer than two modalities are given, shapes differ, a feature is not finite (the message
                names its modality), or the batch is too small.
        """
        features = checked_features(features)
        groups = None if groups is None else groups.to(next(iter(features.values())).device)
        if self.loss == "infonce":
            return self._contrast(features, groups)
        if self.loss == "paper":
            pairs = self.paper_pairs(features, graph_network)
            node_costs, edge_costs = self.paper_costs(pairs, *self.paper_noise(pairs, generator, training))
            return self.matching_loss(pairs, node_costs, edge_costs, generator, groups)
        pairs = self.multi_graph_pairs(features, graph_network)
        node_costs, edge_costs = self.multi_graph_costs(pairs, generator, training)
        return self.matching_loss(pairs, node_costs, edge_costs, generator, groups)

    def multi_graph_pairs(self, features: dict[str, torch.Tensor], graph_network: nn.Module | None) -> GraphPairs:
        """Every modality with the mean of the others (or with each other), both ways, all with edges of their own."""
        graphs, pair_names = self._modality_graphs(features)
        nodes = torch.stack(list(graphs.values()))
        first_order = self.loss == "first_order"
        num_neighbors = 0 if first_order else neighbours_for(nodes.shape[1], self.num_neighbors, self.small_batch)
        edge_index = nearest_neighbor_edges(nodes, num_neighbors)
        if graph_network is not None and not first_order and self.message_weight > 0:
            # Row 0 is the node and row 1 its neighbour: turned around, each node hears its own neighbours.
            messages = run_graph_network(graph_network, nodes, edge_index.flip(-2), share_dropout=True)
            nodes = unit_vectors(nodes + self.message_weight * unit_vectors(messages))
        edges = edge_differences(nodes, edge_index)
        place = {name: number for number, name in enumerate(graphs)}
        source = torch.tensor([place[name] for name, _ in pair_names], device=nodes.device)
        target = torch.tensor([place[name] for _, name in pair_names], device=nodes.device)
        return GraphPairs(
            [f"{first}>{second}" for first, second in pair_names],
            *(nodes[source], nodes[target], edges[source], edges[target], edge_index[source], edge_index[target]),
        )

    def _modality_graphs(self, features):
        """Node features of every graph by name, and the names of the pairs to match."""
        unit = {
            name: unit_vectors(values - values.mean(0) if self.center_features else values)
            for name, values in features.items()
        }
        if len(unit) == 2 or self.loss == "multi_graph_pairwise":
            return unit, [(first, second) for first in unit for second in unit if first != second]
        graphs = dict(unit)
        pair_names = []
        for name in unit:
            # Without the modality itself: its own share of the mean would be enough to find it by.
            others = torch.stack([values for other, values in unit.items() if other != name]).mean(0)
            graphs[f"others_than_{name}"] = unit_vectors(others)
            pair_names += [(name, f"others_than_{name}"), (f"others_than_{name}", name)]
        return graphs, pair_names

    def multi_graph_costs(
        self, pairs: GraphPairs, generator: torch.Generator | None, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centered costs: nodes `(num_pairs, num_samples, N, N)` with fresh noise, edges `(num_pairs, 1, E, E)`."""
        node_costs = centered_costs(pairs.source_nodes, pairs.target_nodes).unsqueeze(1)
        edge_costs = self.edge_weight * centered_costs(pairs.source_edges, pairs.target_edges).unsqueeze(1)
        if training:
            shape = (node_costs.shape[0], self.num_samples, *node_costs.shape[2:])
            node_costs = node_costs - NOISE[self.noise](
                shape, self.noise_scale, generator=generator, device=node_costs.device, dtype=node_costs.dtype
            )
        return node_costs, edge_costs

    def paper_pairs(self, features: dict[str, torch.Tensor], graph_network: nn.Module | None) -> GraphPairs:
        """
        Every modality with the mean of all, both ways, as released: both graphs get the edges of the first, messages
        go from a node to its neighbours, and the mean is of features as they are.
        """
        graphs = {**features, "barycenter": torch.stack(list(features.values())).mean(0)}
        pair_names = [pair for name in features for pair in ((name, "barycenter"), ("barycenter", name))]
        source = torch.stack([graphs[name] for name, _ in pair_names])
        target = torch.stack([graphs[name] for _, name in pair_names])
        num_neighbors = neighbours_for(source.shape[1], self.num_neighbors, self.small_batch)
        edge_index = nearest_neighbor_edges(source, num_neighbors)
        if graph_network is not None:
            both = run_graph_network(graph_network, torch.cat([source, target]), torch.cat([edge_index, edge_index]))
            source, target = both.chunk(2)
        return GraphPairs(
            [f"{first}>{second}" for first, second in pair_names],
            unit_vectors(source),
            unit_vectors(target),
            edge_differences(source, edge_index),
            edge_differences(target, edge_index),
            edge_index,
            edge_index,
        )

    def paper_noise(
        self, pairs: GraphPairs, generator: torch.Generator | None, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Node noise, one sample for all pairs, and edge noise, one for each. None in evaluation, unlike there."""
        num_pairs, num_nodes = pairs.source_nodes.shape[:2]
        num_edges = pairs.source_edges.shape[1]
        scale = PAPER_NOISE_SCALE if training else 0.0
        options = {"generator": generator, "device": pairs.source_nodes.device, "dtype": torch.float64}
        node_noise = gumbel_noise((num_nodes, num_nodes), scale, **options)
        return node_noise, gumbel_noise((num_pairs, num_edges, num_edges), scale, **options)

    def paper_costs(
        self, pairs: GraphPairs, node_noise: torch.Tensor, edge_noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The release's costs, float64: nodes `(num_pairs, N, N)`, edges `(num_pairs, E, E)`."""
        node_costs = released_costs(inner_products(pairs.source_nodes, pairs.target_nodes), node_noise)
        edge_similarity = inner_products(pairs.source_edges, pairs.target_edges)
        return node_costs, released_costs(edge_similarity, edge_noise, PAPER_EDGE_WEIGHT)

    def matching_loss(
        self,
        pairs: GraphPairs,
        node_costs: torch.Tensor,
        edge_costs: torch.Tensor,
        generator: torch.Generator | None = None,
        groups: torch.Tensor | None = None,
    ) -> AlignmentOutput:
        """Match, compare with the truth, give the costs their gradient. Costs may hold several noise samples."""
        num_pairs, num_nodes = node_costs.shape[0], node_costs.shape[-1]
        is_paper = self.loss == "paper"
        # The release adds lambda times a gradient of +-1 / (pairs x nodes): this step, whatever the loss is scaled by.
        step = PAPER_LAMBDA / (num_pairs * num_nodes) if is_paper else self.step
        sample = () if node_costs.dim() == 3 else (slice(None), None)
        matchings, labels = differentiable_matching(
            node_costs,
            edge_costs,
            pairs.source_edge_index[sample],
            pairs.target_edge_index[sample],
            step=step,
            allow_unmatched=is_paper,
            generator=generator,
            solver=self.solver,
        )
        labels = labels.reshape(num_pairs, -1, num_nodes)
        return AlignmentOutput(
            loss=hamming_loss(matchings.to(pairs.source_nodes.dtype), groups),
            matching_accuracy=matching_accuracy(labels, groups),
            matchings=dict(zip(pairs.names, labels, strict=True)),
        )

    def _contrast(self, features, groups):
        graphs, _ = self._modality_graphs(features)
        names = list(features)
        pair_names = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
        losses, matchings = [], {}
        for first, second in pair_names:
            losses.append(infonce_loss(graphs[first], graphs[second], self.temperature, groups))
            nearest = inner_products(graphs[first], graphs[second]).argmax(-1)
            matchings[f"{first}>{second}"] = nearest.unsqueeze(0)
        labels = torch.stack(list(matchings.values()))
        return AlignmentOutput(torch.stack(losses).mean(), matching_accuracy(labels, groups), matchings)


def run_graph_network(
    graph_network: nn.Module, node_features: torch.Tensor, edge_index: torch.Tensor, share_dropout: bool = False
) -> torch.Tensor:
    """
    The network's output `(num_graphs, num_nodes, size)` for several graphs in one call, in the dtype of
    `node_features`, whatever the dtype of the network's weights.
    """
    nodes, edges = stack_graphs(node_features, edge_index)
    weight_dtype = next(graph_network.parameters()).dtype
    output = graph_network(nodes.to(weight_dtype), edges, share_dropout=share_dropout)
    return output.to(node_features.dtype).reshape(*node_features.shape[:2], -1)


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
                f"The {name} features must be (num_samples, feature_size) like the {first_name} features "
                f"{tuple(first.shape)}, got {tuple(values.shape)}."
            )
        if not torch.isfinite(values).all():
            raise ValueError(f"The {name} features hold NaN or infinity.")
    return {name: values.to(torch.promote_types(values.dtype, torch.float32)) for name, values in kept.items()}


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
