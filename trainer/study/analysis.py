"""Differences between arms, paired by seed and image, with intervals, as plain functions of the table's rows."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from logramed.eval.comparison.paired_tests import CONFIDENCE, NUM_RESAMPLES, TIE, holm_correction
from logramed.trainer.study.arms import PLAIN, PRIMARY_COMPARISON, SECONDARY_COMPARISONS, Comparison, Side
from logramed.trainer.study.table import FIGURES


DIFFERENCE_COLUMNS = ("first", "second", "points", "interval", "p", "p (Holm)", "seeds")


@dataclass(frozen=True)
class Difference:
    """
    A mean difference in points over all questions and seeds, first minus second, with its 95% interval and two-sided
    p-value.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_seeds: int
    num_images: int


def hierarchical_bootstrap(
    differences: np.ndarray, counts: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """
    A mean difference over questions, with an interval from resampling seeds and images with replacement.

    A resample draws seeds, and one set of images for all of them, each with all its questions: all seeds have the same
    images, so the variance due to images is shared and does not shrink with the number of seeds. Percentile interval;
    the p-value is its counterpart, as in `paired_bootstrap`. With 5 to 8 seeds, intervals are slightly too narrow.

    Args:
        differences (`np.ndarray` of shape `(num_seeds, num_images)`):
            First score minus second, summed over the questions about an image, in points.
        counts (`np.ndarray` of shape `(num_images,)`): Number of questions about each image.
        num_resamples (`int`): Number of resamples.
        seed (`int`): Seed of the resampling.

    Raises:
        ValueError: If there is no seed or no image, or the shapes do not match.

    Source: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2).

    Example:
        >>> hierarchical_bootstrap(np.full((3, 4), 20.0), np.full(4, 10)).mean
        2.0
    """
    if differences.ndim != 2 or not differences.size or counts.shape != differences.shape[1:]:
        raise ValueError(
            f"Expected differences of at least one seed and image, and a count for each image, got shapes "
            f"{differences.shape} and {counts.shape}."
        )
    num_seeds, num_images = differences.shape
    generator = np.random.default_rng(seed)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)
    images = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)
    means = ((seeds @ differences) * images).sum(axis=1) / (num_seeds * (images @ counts))
    low, high = np.percentile(means, ((100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2))
    tail = min(np.count_nonzero(means <= TIE), np.count_nonzero(means >= -TIE))
    return Difference(
        mean=float(differences.sum() / (num_seeds * counts.sum())),
        low=float(low),
        high=float(high),
        p_value=float(min(1.0, 2 * (tail + 1) / (num_resamples + 1))),
        num_seeds=num_seeds,
        num_images=num_images,
    )


def rows_of(rows: Iterable[Mapping], side: Side) -> dict[int, Mapping]:
    """The rows on one side of a comparison by seed, from rows of one split."""
    wanted = {"model": side.model, "data": side.data, "share": side.share, "arm": side.arm}
    wanted["settings_of"] = side.settings
    return {row["seed"]: row for row in rows if all(row[name] == value for name, value in wanted.items())}


def compare(
    rows: Sequence[Mapping], comparison: Comparison, kind: str = "all", sight: str = "with_sight"
) -> Difference | None:
    """
    First minus second for rows of one split, over the seeds that both have and questions of a kind ("all", "closed" or
    "open"), "with_sight" or "without_sight"; `None` if there is no such seed or question. Raises `ValueError` if runs
    differ in their images, or in the number of questions about one.
    """
    first, second = (rows_of(rows, side) for side in (comparison.first, comparison.second))
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    scores = [[image_scores(side[seed], kind, sight) for seed in seeds] for side in (first, second)]
    counts = {image: count for image, (_, count) in scores[0][0].items()}
    if not counts:
        return None
    for side, of_side in zip((first, second), scores, strict=True):
        for seed, of_run in zip(seeds, of_side, strict=True):
            if {image: count for image, (_, count) in of_run.items()} != counts:
                raise ValueError(
                    f"{side[seed]['run']} and {first[seeds[0]]['run']} were asked different questions: score both on "
                    "the same split."
                )
    sums = np.array([[[of_run[image][0] for image in counts] for of_run in of_side] for of_side in scores])
    return hierarchical_bootstrap(sums[0] - sums[1], np.array(list(counts.values())))


def image_scores(row: Mapping, kind: str, sight: str) -> dict[str, tuple[float, int]]:
    """For each image, the sum of its scores for questions of this kind, and their number."""
    sums: dict[str, tuple[float, int]] = {}
    for name, of_kind in row["image_scores"][sight].items():
        if kind in ("all", name):
            for image, (score, count) in of_kind.items():
                total, number = sums.get(image, (0.0, 0))
                sums[image] = (total + score, number + count)
    return sums


def summarize(rows: Sequence[Mapping], split: str) -> str:
    """The means of each arm, the protocol's comparisons, and every other arm minus plain, as text."""
    rows = [row for row in rows if row["split"] == split]
    if not rows:
        return f"No run is scored on the {split} split yet."
    parts = [f"{split.capitalize()} split, percent, means over seeds.", means_table(rows)]
    comparisons = comparisons_table(rows)
    if comparisons is not None:
        parts += ["Named comparisons, first minus second in points (95% interval over seeds and images):", comparisons]
    parts += ["Every other arm minus plain of the same model, data and share (exploratory, not corrected):"]
    parts += [exploratory_table(rows)]
    return "\n\n".join(parts) + "\n"


def sides_of(rows: Iterable[Mapping]) -> list[Side]:
    """The sides present in the rows, in the order of the rows."""
    return list(
        dict.fromkeys(Side(row["arm"], row["model"], row["data"], row["share"], row["settings_of"]) for row in rows)
    )


def means_table(rows: Sequence[Mapping]) -> str:
    header = ["runs", "seeds", *FIGURES, "all, no sight", "s/step"]
    lines = []
    for side in sides_of(rows):
        found = list(rows_of(rows, side).values())
        figures = [_mean(row["with_sight"].get(name) for row in found) for name in FIGURES]
        blank = _mean((row["without_sight"] or {}).get("all") for row in found)
        lines.append(
            [str(side), str(len(found)), *figures, blank, _mean((row["seconds_per_step"] for row in found), 3)]
        )
    return format_table(header, lines)


def _mean(values: Iterable[float | None], digits: int = 1) -> str:
    there = [value for value in values if value is not None]
    return f"{statistics.fmean(there):.{digits}f}" if there else "-"


def comparisons_table(rows: Sequence[Mapping]) -> str | None:
    """The primary and secondary comparisons, Holm-corrected over secondary ones with runs; None without any runs."""
    primary = compare(rows, PRIMARY_COMPARISON)
    secondary = [(named, compare(rows, named)) for named in SECONDARY_COMPARISONS]
    there = [difference for _, difference in secondary if difference is not None]
    if primary is None and not there:
        return None
    corrected = iter(holm_correction([difference.p_value for difference in there]))
    lines = [_difference_line(PRIMARY_COMPARISON, primary, "primary")]
    for named, difference in secondary:
        lines.append(_difference_line(named, difference, "-" if difference is None else f"{next(corrected):.4f}"))
    return format_table(DIFFERENCE_COLUMNS, lines)


def exploratory_table(rows: Sequence[Mapping]) -> str:
    named = {PRIMARY_COMPARISON, *SECONDARY_COMPARISONS}
    lines, sides = [], sides_of(rows)
    plain: dict[tuple, Side] = {}  # the first one of each model, data and share
    for side in sides:
        if side.arm == PLAIN:
            plain.setdefault((side.model, side.data, side.share), side)
    for side in sides:
        baseline = plain.get((side.model, side.data, side.share))
        if baseline is None or side == baseline:
            continue
        comparison = Comparison(side, baseline)
        if comparison not in named:
            lines.append(_difference_line(comparison, compare(rows, comparison), "-"))
    return format_table(DIFFERENCE_COLUMNS, lines)


def _difference_line(comparison: Comparison, difference: Difference | None, corrected: str) -> list[str]:
    names = [str(comparison.first), str(comparison.second)]
    if difference is None:
        return [*names, "no runs", "-", "-", "-", "0"]
    interval = f"{difference.low:+.1f} to {difference.high:+.1f}"
    return [
        *names,
        f"{difference.mean:+.1f}",
        interval,
        f"{difference.p_value:.4f}",
        corrected,
        str(difference.num_seeds),
    ]


def format_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
