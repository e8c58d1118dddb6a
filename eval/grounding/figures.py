"""Summarize the figures of maps, overall and per named thing, with intervals and differences (images resampled)."""

from collections.abc import Sequence

import numpy as np

from logramed.eval.comparison.paired_tests import paired_bootstrap
from logramed.eval.grounding.pointing import METRICS


MIN_QUESTIONS = 20  # for a group to have its own figures
CENTER, RANDOM, BLANK_ENDING = "center", "random", ", blank image"


def summarize(items: Sequence[dict], num_resamples: int = 10_000, min_questions: int = MIN_QUESTIONS) -> dict:
    """
    Figures of all questions, and of each thing that many of them name. Items have `group`, `image_id` and `scores`:
    the figures of each map and baseline, by name.

    Returns `overall` and `groups` (by group, largest first), each with `num_questions`, `num_images` and `maps`: for
    each map or baseline and figure, `value` and `interval` (95%, images resampled); for maps of the model also
    `differences` from each baseline with `value`, `interval` and `p_value`. `small_groups` has the number of questions
    of each group with fewer than `min_questions`.
    """
    by_group: dict[str, list[dict]] = {}
    for item in items:
        by_group.setdefault(item["group"], []).append(item)
    ordered = sorted(by_group, key=lambda group: (-len(by_group[group]), group))
    return {
        "overall": summarize_items(items, num_resamples),
        "groups": {
            group: summarize_items(by_group[group], num_resamples)
            for group in ordered
            if len(by_group[group]) >= min_questions
        },
        "small_groups": {group: len(by_group[group]) for group in ordered if len(by_group[group]) < min_questions},
    }


def summarize_items(items: Sequence[dict], num_resamples: int) -> dict:
    """Figures of `items` (see `summarize`)."""
    images = [item["image_id"] for item in items]
    maps = {}
    for name in items[0]["scores"]:
        maps[name] = {}
        for metric in METRICS:
            own = _column(items, name, metric)
            if np.isnan(own).all():
                continue
            figure = describe_mean(own, images, num_resamples)
            figure.pop("p_value")  # testing a figure against 0 is meaningless
            others = baselines_of(name, items[0]["scores"])
            if others:
                figure["differences"] = {
                    other: describe_mean(own - _column(items, other, metric), images, num_resamples)
                    for other in others
                }
            maps[name][metric] = figure
    return {"num_questions": len(items), "num_images": len(set(images)), "maps": maps}


def baselines_of(name: str, names: Sequence[str]) -> list[str]:
    """
    The baselines to compare a map with; none if it is a baseline itself, such as a map of blank images.

    Example:
        >>> baselines_of("attention", ["attention", "attention, blank image", "center", "random"])
        ['center', 'random', 'attention, blank image']
        >>> baselines_of("center", ["attention", "center", "random"])
        []
    """
    if name in (CENTER, RANDOM) or name.endswith(BLANK_ENDING):
        return []
    return [other for other in (CENTER, RANDOM, name + BLANK_ENDING) if other in names]


def _column(items: Sequence[dict], name: str, metric: str) -> np.ndarray:
    return np.array([item["scores"][name][metric] for item in items], dtype=float)


def describe_mean(values: np.ndarray, images: Sequence[str], num_resamples: int) -> dict:
    """Mean and number of the values that are not NaN, with interval and p-value (images resampled)."""
    has_value = ~np.isnan(values)
    drawn = [image for image, has in zip(images, has_value, strict=True) if has]
    test = paired_bootstrap([values[has_value]], num_resamples, clusters=[drawn])
    return {
        "value": test.difference,
        "interval": [test.low, test.high],
        "p_value": test.p_value,
        "num_questions": test.num_items,
    }
