"""The base class of alignment objectives: computes a loss from the features of a batch's nodes by modality."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn

from .config import OBJECTIVES, AlignmentConfig
from .graphs import (
    edge_differences,
    inner_products,
    nearest_neighbor_edges,
    neighbours_for,
    run_graph_network,
    unit_vectors,
)
from .losses import entropic_loss
from .matching import match_graphs
from .retrieval import matching_accuracy


MODALITIES = ("image", "region", "answer", "extended")
# Both depend on image and question: the question would be enough to match them, whatever the image shows.
NEVER_MATCHED = {"image", "region"}


@dataclass
class AlignmentOutput:
    """
    Output of an objective.

    Attributes:
        loss (`torch.Tensor`, scalar): The alignment loss, unweighted.
        names (`list[str]`): The pairs of modalities, "source>target".
        groups (`torch.Tensor` of shape `(num_nodes,)`): Equal for nodes with equal texts, which count as one.
        find_labels (`Callable`): Computes the matchings of all pairs.
        matchings (`dict[str, torch.Tensor]`): The labels `(1, num_nodes)` of each pair, computed on first access. If
            the loss needs no matching, the matching with the lowest node costs.
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
    """Pairs of graphs to match, along the leading dimension: unit-length features, and edges that all pairs share."""

    names: list[str]
    source_nodes: torch.Tensor
    target_nodes: torch.Tensor
    source_edges: torch.Tensor
    target_edges: torch.Tensor
    edge_index: torch.Tensor


class AlignmentObjective:
    """
    A loss that is low when each node's features in one modality belong to the same node's in the others.

    `AlignmentObjective(config)` creates the objective that `config.alignment_loss` names; objectives.py has them all.
    To add your own, derive from this class, decorate it with `@register_objective(name)`, and override what differs,
    mostly `pair_loss` and the class attributes.

    Args:
        config ([`AlignmentConfig`], *optional*): The settings, by default `AlignmentConfig()`.

    Class attributes:
        default_edge_weight, default_message_weight (`float` or None): The weights if `config` gives none; None for an
            objective without edges, or without messages, whatever `config` says.
        default_margin (`float`): By how much right pairs must be better in training, if `config` does not say.
    """

    default_edge_weight: float | None = None
    default_message_weight: float | None = None
    default_margin = 0.4

    def __new__(cls, config: AlignmentConfig | None = None, *args, **options):
        if cls is AlignmentObjective:
            cls = OBJECTIVES[(config or AlignmentConfig()).alignment_loss]
        return super().__new__(cls)

    def __init__(self, config: AlignmentConfig | None = None):
        self.config = config = config or AlignmentConfig()
        self.edge_weight = _weight(config.edge_weight, self.default_edge_weight)
        self.message_weight = _weight(config.message_weight, self.default_message_weight)
        self.margin = self.default_margin if config.alignment_margin is None else config.alignment_margin

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
            features (`dict[str, torch.Tensor]`): For two or more of `MODALITIES`, features `(num_nodes, feature_size)`
                of the same nodes in the same order, in any floating dtype. `"image"` and `"region"` are not matched
                with each other.
            graph_network (`nn.Module`, *optional*): A `GraphNetwork`, or `None` for no message passing.
            generator (`torch.Generator`, *optional*): Source of the noise of `paper`, on the features' device.
            training (`bool`, *optional*, defaults to `True`): If False, there is no margin and no noise.
            groups (`torch.Tensor` of shape `(num_nodes,)`, *optional*): Equal for identical nodes.

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
        """As `__call__`, with arguments already checked."""
        pairs = self.graph_pairs(features, graph_network)
        nodes, edges = (pairs.source_nodes, pairs.target_nodes), (pairs.source_edges, pairs.target_edges)
        right = groups.unsqueeze(0) == groups.unsqueeze(1)
        loss = self._compare(*nodes, right, self.config.alignment_temperature, training)
        if self.edge_weight > 0 and pairs.edge_index.shape[-1] > 0:
            ends = groups[pairs.edge_index]
            right_edges = (ends.unsqueeze(-1) == ends.unsqueeze(-2)).all(0)
            edge_loss = self._compare(*edges, right_edges, self.config.edge_temperature, training)
            loss = loss + self.edge_weight * edge_loss
        source, target = (values.detach() for values in nodes)
        find_labels = partial(_best_matching, source, target, generator)
        return AlignmentOutput(loss, pairs.names, groups, find_labels)

    def pair_loss(self, similarity: torch.Tensor, temperature: float, right: torch.Tensor) -> torch.Tensor:
        """
        Scalar loss of cosines `(num_pairs, n, n)` between nodes or edges. In training, the margin is subtracted from
        those of `right` pairs, bool `(n, n)`, beforehand.
        """
        # In units of cosine, as the margin is.
        return self.config.alignment_temperature * entropic_loss(similarity, temperature, right)

    def _compare(self, source, target, right, temperature, training):
        """Loss of unit vectors `(num_pairs, n, size)` on both sides of each pair."""
        similarity = inner_products(source, target)
        if training and self.margin > 0:
            similarity = similarity - self.margin * right
        return self.pair_loss(similarity, temperature, right)

    def graph_pairs(self, features: dict[str, torch.Tensor], graph_network: nn.Module | None = None) -> GraphPairs:
        """Builds the graphs of `features`, float32 or float64, and lists each pair to match once."""
        nodes = unit_vectors(torch.stack(list(features.values())))
        if graph_network is not None and self.message_weight > 0:
            nodes = self._add_messages(nodes, graph_network)
        places = dict(zip(features, nodes, strict=True))
        pairs = [pair for pair in itertools.combinations(places, 2) if set(pair) != NEVER_MATCHED]
        source, target = (torch.stack([places[pair[side]] for pair in pairs]) for side in range(2))
        # A node's neighbours are its nearest by all modalities together.
        edge_index = torch.zeros(2, 0, dtype=torch.int64, device=nodes.device)
        if self.edge_weight > 0:
            edge_index = self._nearest(nodes.transpose(0, 1).flatten(1))
        own_index = edge_index.expand(len(pairs), -1, -1)
        source_edges, target_edges = (edge_differences(side, own_index) for side in (source, target))
        names = [f"{first}>{second}" for first, second in pairs]
        return GraphPairs(names, source, target, source_edges, target_edges, edge_index)

    def _add_messages(self, nodes, graph_network):
        """Adds the messages of a node's neighbours to `(num_modalities, num_nodes, size)` unit vectors."""
        edge_index = self._nearest(nodes)
        # Row 0 is the node, row 1 its neighbour. Flipped, so that messages go from neighbour to node.
        messages = run_graph_network(graph_network, nodes, edge_index.flip(-2), share_dropout=True)
        return unit_vectors(nodes + self.message_weight * unit_vectors(messages))

    def _nearest(self, nodes):
        return nearest_neighbor_edges(nodes, neighbours_for(nodes.shape[-2], self.config.num_neighbors))


def _best_matching(source, target, generator):
    """Labels `(num_pairs, 1, num_nodes)` by node costs."""
    costs = -inner_products(source, target)
    no_edges = torch.zeros(2, 0, dtype=torch.int64, device=costs.device)
    return match_graphs(costs, costs.new_zeros(0, 0), no_edges, no_edges, generator=generator).unsqueeze(1)


def checked_features(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The features in the order of `MODALITIES`, in float32 at least; `ValueError` that names a faulty modality."""
    unknown = [name for name in features if name not in MODALITIES]
    if unknown:
        raise ValueError(f"`features` may hold {', '.join(MODALITIES)}, got {unknown[0]!r}.")
    kept = {name: features[name] for name in MODALITIES if features.get(name) is not None}
    if len(kept) < 2:
        raise ValueError(f"Alignment needs features of at least two modalities, got {list(kept)}.")
    first_name, first = next(iter(kept.items()))
    for name, values in kept.items():
        if values.dim() != 2 or values.shape != first.shape:
            raise ValueError(
                f"The {name} features must be (num_nodes, feature_size) like the {first_name} features "
                f"{tuple(first.shape)}, got {tuple(values.shape)}."
            )
    # Each check synchronizes with the GPU: one for all modalities, and a second only to name the faulty one.
    finite = torch.stack([torch.isfinite(values).all() for values in kept.values()])
    if not finite.all():
        raise ValueError(f"The {list(kept)[int(finite.int().argmin())]} features hold NaN or infinity.")
    return {name: values.to(torch.promote_types(values.dtype, torch.float32)) for name, values in kept.items()}


def _weight(value, default):
    """The weight of an optional term: 0 if the objective does not have it (`default` None)."""
    return 0.0 if default is None else default if value is None else value
