"""Graph alignment: graphs over a batch's samples, the matching solver, gradients through it, and the objectives."""

from . import objectives  # registers them
from .config import (
    EDGE_MATCHINGS,
    GRADIENT_ESTIMATORS,
    GRANULARITIES,
    LOSSES,
    TARGETS,
    AlignmentConfig,
    register_objective,
)
from .contrast import infonce_loss, siglip_loss
from .decoding import decode_matching
from .gradients import GradientEstimator, differentiable_matching, hamming_loss
from .graph_network import GraphNetwork
from .graphs import nearest_neighbor_edges, unit_vectors
from .matching import match_graphs, matching_cost
from .objective import AlignmentObjective, AlignmentOutput
from .retrieval import matching_accuracy, recall_at_k
from .transport import entropic_loss, sinkhorn_matching


__all__ = [
    "EDGE_MATCHINGS",
    "GRADIENT_ESTIMATORS",
    "GRANULARITIES",
    "LOSSES",
    "TARGETS",
    "AlignmentConfig",
    "AlignmentObjective",
    "AlignmentOutput",
    "GradientEstimator",
    "GraphNetwork",
    "decode_matching",
    "differentiable_matching",
    "entropic_loss",
    "hamming_loss",
    "infonce_loss",
    "match_graphs",
    "matching_accuracy",
    "matching_cost",
    "nearest_neighbor_edges",
    "objectives",
    "recall_at_k",
    "register_objective",
    "siglip_loss",
    "sinkhorn_matching",
    "unit_vectors",
]
