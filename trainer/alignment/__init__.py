"""Graph alignment: graphs over a batch's samples, the matching solver, gradients through it, and the objectives."""

from . import objectives  # registers them
from .config import (
    GRANULARITIES,
    LOSSES,
    AlignmentConfig,
    register_objective,
)
from .gradients import differentiable_matching, hamming_loss
from .graph_network import GraphNetwork
from .graphs import nearest_neighbor_edges, unit_vectors
from .losses import entropic_loss, infonce_loss, sinkhorn_matching
from .matching import match_graphs, matching_cost
from .objective import AlignmentObjective, AlignmentOutput
from .retrieval import matching_accuracy, retrieval_metrics


__all__ = [
    "GRANULARITIES",
    "LOSSES",
    "AlignmentConfig",
    "AlignmentObjective",
    "AlignmentOutput",
    "GraphNetwork",
    "differentiable_matching",
    "entropic_loss",
    "hamming_loss",
    "infonce_loss",
    "match_graphs",
    "matching_accuracy",
    "matching_cost",
    "nearest_neighbor_edges",
    "objectives",
    "register_objective",
    "retrieval_metrics",
    "sinkhorn_matching",
    "unit_vectors",
]
