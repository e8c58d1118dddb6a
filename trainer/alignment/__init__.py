"""Graph alignment: graphs over a batch's samples, the matching solver, gradients through it, and the objectives."""

from .gradients import differentiable_matching
from .graphs import nearest_neighbor_edges
from .matching import match_graphs, matching_cost
from .objective import (
    GRADIENT_ESTIMATORS,
    LOSSES,
    AlignmentObjective,
    AlignmentOutput,
    hamming_loss,
    infonce_loss,
)
from .retrieval import matching_accuracy, recall_at_k


__all__ = [
    "GRADIENT_ESTIMATORS",
    "LOSSES",
    "AlignmentObjective",
    "AlignmentOutput",
    "differentiable_matching",
    "hamming_loss",
    "infonce_loss",
    "match_graphs",
    "matching_accuracy",
    "matching_cost",
    "nearest_neighbor_edges",
    "recall_at_k",
]
