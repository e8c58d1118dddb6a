"""How well a map of weights over an image's cells points at boxes; plain functions of arrays."""

import numpy as np
from scipy.stats import rankdata

from logramed.eval.grounding.boxes import Cells, Window


METRICS = ("pointing_accuracy", "energy_over_area", "auc")
# Of the map that looks at the middle of each image, in shares of its sides.
CENTER_WIDTH = 0.25
# Weights that differ by less, relative to the largest, are equal.
TIE = 1e-6


def score_map(weights: np.ndarray, cells: Cells) -> dict[str, float]:
    """
    The three figures of one map of weights `(num_rows, num_columns)`, not negative, of any sum. What lies on padding
    counts neither for nor against; `cells` has one positive at least.

    `pointing_accuracy`, in percent: 100 where the largest weight is that of a positive cell, and of several equal ones
    the share that is. `energy_over_area`: the share of the weight that lies in the boxes over their share of the
    image's area, 1 for an even map. `auc`: the chance that a positive cell weighs more than another one, 0.5 for
    chance; NaN where there is no other one.

    Source: the pointing game of Zhang et al. 2016 (arXiv:1608.00507), and the energy of Wang et al. 2020
    (arXiv:1910.01279) over the area; both with cells for pixels, which is ours.

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
    The share of the weight on the image that lies in the boxes, over their share of the image's area.

    A cell's weight is spread evenly over it. 0 where all weight lies on padding.
    """
    on_image = float((weights * cells.visible).sum())
    area = float(cells.inside.sum() / cells.visible.sum())
    return float((weights * cells.inside).sum()) / on_image / area if on_image else 0.0


def area_under_curve(weights: np.ndarray, is_positive: np.ndarray) -> float:
    """
    The chance that a positive weighs more than a negative, ties counted half; NaN without negatives.

    Source: Mann and Whitney 1947, by ranks.

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
    """What maps of random weights score on average, in the form of `score_map`: exactly, nothing is drawn."""
    has_negatives = bool((cells.is_candidate & ~cells.is_positive).any())
    return {
        "pointing_accuracy": float(100 * cells.is_positive.sum() / cells.is_candidate.sum()),
        "energy_over_area": 1.0,
        "auc": 0.5 if has_negatives else float("nan"),
    }


def center_map(grid: tuple[int, int], window: Window) -> np.ndarray:
    """Weights of shape `grid` that fall off from the middle of the image, as a normal density of `CENTER_WIDTH`."""
    num_rows, num_columns = grid
    y = window.top + window.height * (np.arange(num_rows) + 0.5) / num_rows - 0.5
    x = window.left + window.width * (np.arange(num_columns) + 0.5) / num_columns - 0.5
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * CENTER_WIDTH**2))
