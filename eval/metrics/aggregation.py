"""Shared by all metrics: checks of their columns, and bootstrap intervals of their means."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np


PROTOCOLS = ("strict", "release")


def check_columns(columns: Mapping[str, Sequence | None], texts: Collection[str]) -> None:
    """
    Raise unless all columns have the same length, are not empty, and those named in `texts` hold only text.

    Columns that are `None` are skipped.

    Example:
        >>> check_columns({"predictions": ["a"], "references": ["a", "b"]}, texts=["references"])
        Traceback (most recent call last):
        ValueError: All lists must be equally long, got `predictions` 1, `references` 2.
    """
    given = {name: column for name, column in columns.items() if column is not None}
    lengths = {name: len(column) for name, column in given.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"`{name}` {length}" for name, length in lengths.items())
        raise ValueError(f"All lists must be equally long, got {told}.")
    if 0 in lengths.values():
        raise ValueError("There is nothing to score: `predictions` is empty.")
    for name in given.keys() & set(texts):
        for position, value in enumerate(given[name]):
            if not isinstance(value, str):
                raise TypeError(f"`{name}[{position}]` must be text, got {value!r} ({type(value).__name__}).")


def check_settings(protocol: str, num_resamples: int) -> None:
    """Raise unless `protocol` is known and `num_resamples` is 0 or more."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol` must be one of {list(PROTOCOLS)}, got {protocol!r}.")
    if num_resamples < 0:
        raise ValueError(f"`num_resamples` must be 0 or more, got {num_resamples}.")


def bootstrap_means(
    scores: np.ndarray, num_resamples: int, seed: int, clusters: Sequence[str] | None = None
) -> np.ndarray:
    """
    Bootstrap column means of `scores`, drawing clusters with replacement: sum of the drawn scores / their number.

    Args:
        scores (`np.ndarray` of shape `(num_items, num_figures)`):
            NaN if an item does not have a figure. Clusters are then drawn among those with the same figures, so that
            each resample has all of them. At least one item must have each figure.
        clusters: The cluster of each item, such as its image. `None`: each item is its own cluster.

    Returns:
        `np.ndarray` of shape `(num_resamples, num_figures)`, in the unit of `scores`.

    Example:
        >>> means = bootstrap_means(np.array([[1.0], [1.0], [0.0]]), 100, 0, ["a", "a", "b"])  # 2/2, 2/3 or 0/1
        >>> np.unique(means.round(3)).tolist()
        [0.0, 0.667, 1.0]
    """
    num_figures, has_figure = scores.shape[1], ~np.isnan(scores)
    places = np.arange(len(scores)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.zeros((places.max() + 1, 2 * num_figures))
    np.add.at(sums, places, np.hstack([np.where(has_figure, scores, 0), has_figure]))
    # Many clusters are equal, and the number drawn of each kind is multinomial: fast even for 90,000 questions.
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    strata = np.unique(kinds[:, num_figures:] > 0, axis=0, return_inverse=True)[1].ravel()
    generator = np.random.default_rng(seed)
    totals = np.zeros((num_resamples, 2 * num_figures))
    for stratum in range(strata.max() + 1):
        size = counts[strata == stratum]
        drawn = generator.multinomial(size.sum(), size / size.sum(), size=num_resamples)
        totals += drawn @ kinds[strata == stratum]
    return totals[:, :num_figures] / totals[:, num_figures:]


def bootstrap_intervals(
    items: Sequence[Mapping[str, float]],
    names: Sequence[str],
    num_resamples: int,
    seed: int,
    clusters: Sequence[str] | None = None,
    scale: float = 1.0,
) -> dict[str, list[float]]:
    """
    95% percentile bootstrap intervals of `scale` times the mean of each figure in `names`, which all items must have.

    Example:
        >>> bootstrap_intervals([{"accuracy": 1.0}, {"accuracy": 0.0}], ["accuracy"], 100, seed=0, scale=100)
        {'accuracy': [0.0, 100.0]}
    """
    scores = np.array([[item[name] for name in names] for item in items])
    low, high = scale * np.percentile(bootstrap_means(scores, num_resamples, seed, clusters), [2.5, 97.5], axis=0)
    return {name: [float(low[place]), float(high[place])] for place, name in enumerate(names)}
