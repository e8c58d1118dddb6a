"""The alignment objectives by name. Each is a class with only what differs, here or in a module of your own."""

from .config import register_objective
from .gradients import hamming_loss
from .losses import infonce_loss
from .objective import AlignmentObjective, AlignmentOutput
from .released import released_matchings


@register_objective("multi_graph")
class MultiGraph(AlignmentObjective):
    """
    Matches the graphs of all modalities with each other, node to node and edge to edge. Edges join a node to its
    nearest neighbours by all modalities together; the feature of an edge is the difference of its nodes.
    """

    default_edge_weight = 1.0
    default_message_weight = 0.1


@register_objective("first_order")
class FirstOrder(AlignmentObjective):
    """Nodes only: no edges, no message passing."""


@register_objective("infonce")
class InfoNCE(AlignmentObjective):
    """Contrastive, between every two modalities; with an `edge_weight` also between edges."""

    default_edge_weight = default_message_weight = default_margin = 0.0

    def pair_loss(self, similarity, temperature, right):
        return infonce_loss(similarity, temperature, right)


@register_objective("paper")
class Released(AlignmentObjective):
    """
    The objective of the research release, faults included (README.md here lists them). It can reach 0 without aligning
    anything. Noise, samples, margin, temperatures, centering and weights are the release's.
    """

    uses_graph_network = True

    def match(self, features, graph_network, groups, *, generator, training):
        names, matchings, labels = released_matchings(
            features,
            graph_network,
            num_neighbors=self.config.num_neighbors,
            generator=generator,
            training=training,
        )
        loss = hamming_loss(matchings, groups.unsqueeze(0) == groups.unsqueeze(1))
        return AlignmentOutput(loss, names, groups, lambda: labels.unsqueeze(1))
