"""The figures of maps over questions, with intervals and differences by image, overall and by thing."""

from collections.abc import Sequence

import numpy as np

from logramed.eval.comparison.paired_tests import paired_bootstrap
from logramed.eval.grounding.pointing import METRICS


MIN_QUESTIONS = 20  # of a group with figures of its own
CENTER, RANDOM, BLANK_ENDING = "center", "random", ", blank image"


def summarize(items: Sequence[dict], num_resamples: int = 10_000, min_questions: int = MIN_QUESTIONS) -> dict:
    """
    The figures of all questions, and of each thing that many of them name, by items with `group`, `image_id` and
    `scores`, the figures of each map and baseline by name.

    Returns `overall` and `groups` (by group, the largest first), each with `num_questions`, `num_images` and `maps`:
    by map, baselines among them, and figure `value` and `interval` (95%, images drawn) and, for maps of the model,
    `differences` from each baseline with `value`, `interval` and `p_value`; and `small_groups`, the number of
    questions of each group with fewer than `min_questions`.
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
    """The figures of these questions (see `summarize`)."""
    images = [item["image_id"] for item in items]
    maps = {}
    for name in items[0]["scores"]:
        maps[name] = {}
        for metric in METRICS:
            own = _column(items, name, metric)
            if np.isnan(own).all():
                continue
            figure = describe_mean(own, images, num_resamples)
            figure.pop("p_value")  # that a figure is 0 is no hypothesis
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
    What a map is compared with: none for baselines, the model's maps of blank images among them.

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
    """The mean of the values that are not NaN, its interval and p-value with images drawn, and their number."""
    has_value = ~np.isnan(values)
    drawn = [image for image, has in zip(images, has_value, strict=True) if has]
    test = paired_bootstrap([values[has_value]], num_resamples, clusters=[drawn])
    return {
        "value": test.difference,
        "interval": [test.low, test.high],
        "p_value": test.p_value,
        "num_questions": test.num_items,
    }
