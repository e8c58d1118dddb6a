"""Score how well a map of weights over an image's cells points at boxes, in plain functions of arrays."""

import numpy as np
from scipy.stats import rankdata

from logramed.eval.grounding.boxes import Cells, Window


METRICS = ("pointing_accuracy", "energy_over_area", "auc")
# Standard deviation of the map of the image center, as a fraction of the image's sides.
CENTER_WIDTH = 0.25
# Weights that differ by less than this fraction of the largest count as equal.
TIE = 1e-6


def score_map(weights: np.ndarray, cells: Cells) -> dict[str, float]:
    """
    Score one map of non-negative weights `(num_rows, num_columns)` with any sum. Weight on padding is ignored; `cells`
    must have at least one positive.

    `pointing_accuracy`, in percent: 100 if the cell with the largest weight is positive; in a tie, the fraction that
    is. `energy_over_area`: the fraction of the weight inside the boxes over their fraction of the image's area, 1 for
    a uniform map. `auc`: the probability that a positive cell has more weight than another one, 0.5 for chance; NaN if
    there is no other one.

    Source: the pointing game of Zhang et al. 2016 (arXiv:1608.00507), and the energy of Wang et al. 2020
    (arXiv:1910.01279) divided by the area; using cells instead of pixels is ours.

    Example:
        >>> from logramed.eval.grounding.boxes import Box, lay_on_grid
        >>> cells = lay_on_grid([Box("Liver", 0.0, 0.0, 0.5, 0.5)], (2, 2))
        >>> score_map(np.array([[0.5, 0.25], [0.125, 0.125]]), cells)
        {'pointing_accuracy': 100.0, 'energy_over_area': 2.0, 'auc': 1.0}
    """
    chosen, is_positive = weights[cells.is_candidate], cells.is_positive[cells.is_candidate]
    is_peak = chosen >= chosen.max() * (1 - TIE)
    return {
        "pointing_accuracy": float(100 * is_positive[is_peak].mean()),
        "energy_over_area": energy_over_area(weights, cells),
        "auc": area_under_curve(chosen, is_positive),
    }


def energy_over_area(weights: np.ndarray, cells: Cells) -> float:
    """
    The fraction of the weight on the image inside the boxes, over their fraction of the image's area.

    A cell's weight is spread evenly over it. 0 if all weight is on padding.
    """
    on_image = float((weights * cells.visible).sum())
    area = float(cells.inside.sum() / cells.visible.sum())
    return float((weights * cells.inside).sum()) / on_image / area if on_image else 0.0


def area_under_curve(weights: np.ndarray, is_positive: np.ndarray) -> float:
    """
    The probability that a positive has more weight than a negative, ties counting half; NaN without negatives.

    Source: Mann and Whitney 1947, computed from ranks.

    Example:
        >>> area_under_curve(np.array([0.5, 0.2, 0.2, 0.1]), np.array([True, True, False, False]))
        0.875
    """
    num_positive = int(is_positive.sum())
    num_pairs = num_positive * (len(weights) - num_positive)
    if not num_pairs:
        return float("nan")
    ranks = rankdata(weights)[is_positive].sum()
    return float((ranks - num_positive * (num_positive + 1) / 2) / num_pairs)


def score_random(cells: Cells) -> dict[str, float]:
    """Expected scores of random maps, in the form of `score_map`; computed exactly, without sampling."""
    has_negatives = bool((cells.is_candidate & ~cells.is_positive).any())
    return {
        "pointing_accuracy": float(100 * cells.is_positive.sum() / cells.is_candidate.sum()),
        "energy_over_area": 1.0,
        "auc": 0.5 if has_negatives else float("nan"),
    }


def center_map(grid: tuple[int, int], window: Window) -> np.ndarray:
    """Weights of shape `grid`: a normal density around the image's center with deviation `CENTER_WIDTH`."""
    num_rows, num_columns = grid
    y = window.top + window.height * (np.arange(num_rows) + 0.5) / num_rows - 0.5
    x = window.left + window.width * (np.arange(num_columns) + 0.5) / num_columns - 0.5
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * CENTER_WIDTH**2))
