"""
Write tables and figures of the study:

    cd trainer/study/results
    python ../report.py --table table.jsonl further.jsonl --output .
"""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t, ttest_1samp

from logramed.eval.command_line import run_command
from logramed.eval.files import write_whole
from logramed.trainer.study.analysis import (
    Difference,
    compare,
    hierarchical_bootstrap,
    image_scores,
    rows_of,
    sides_of,
    summarize,
)
from logramed.trainer.study.arms import PLAIN, PRIMARY, SHARES, Comparison, Side
from logramed.trainer.study.table import Table


COLORS = {PLAIN: "#636363", PRIMARY: "#08519c"}


def write_report(rows: Sequence[Mapping], folder: Path) -> list[Path]:
    """
    Write `tables.md` (`summarize` for each split) and figures for the test split: `shares.png` (plain and the primary
    arm at each share of SLAKE, with and without sight), `arms.png` (every arm minus plain at 10%) and `kinds.png` (the
    primary arm minus plain at 10%, by kind of question). Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = [split for split in ("test", "validation") if any(row["split"] == split for row in rows)]
    written = [write_whole(folder / "tables.md", "\n".join(summarize(rows, split) for split in splits))]
    rows = [row for row in rows if row["split"] == "test"]
    for name, draw in {"shares": draw_shares, "arms": draw_arms, "kinds": draw_kinds}.items():
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes, rows)
        axes.grid(alpha=0.25)
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=120, metadata={"Software": None})
    return written


def mean_score(rows: Sequence[Mapping], side: Side, sight: str) -> Difference | None:
    """A side's mean over all questions and seeds, in percent, with its interval; `None` without runs."""
    scores = [image_scores(row, "all", sight) for row in rows_of(rows, side).values()]
    if not scores or not scores[0]:
        return None
    images = list(scores[0])
    sums = np.array([[of_run[image][0] for image in images] for of_run in scores])
    return hierarchical_bootstrap(sums, np.array([scores[0][image][1] for image in images]))


def draw_shares(axes: Axes, rows: Sequence[Mapping]) -> None:
    for (arm, color), shift in zip(COLORS.items(), (-0.02, 0.02), strict=True):
        for sight, style in ("with_sight", "-"), ("without_sight", ":"):
            found = {share: mean_score(rows, Side(arm, share=share), sight) for share in SHARES}
            there = {share: mean for share, mean in found.items() if mean is not None}
            axes.errorbar(
                [share * (1 + shift) for share in there],
                [mean.mean for mean in there.values()],
                yerr=lengths(there.values()),
                color=color,
                linestyle=style,
                marker="o",
                markersize=4,
                capsize=3,
                label=f"{arm}, {sight.replace('_', ' ')}",
            )
    axes.set_xscale("log")
    axes.set_xlim(0.8 * SHARES[0], 1.25 * SHARES[-1])
    axes.set_xticks(SHARES, [f"{share}%" for share in SHARES], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("share of SLAKE's training images")
    axes.set_ylabel("all test questions (%)")
    axes.set_title("Model from scratch, 95% intervals over seeds and images", fontsize=10)
    axes.legend(fontsize=8, frameon=False)


def draw_arms(axes: Axes, rows: Sequence[Mapping]) -> None:
    sides = [side for side in sides_of(rows) if (side.model, side.data, side.share) == ("scratch", "slake", 10)]
    differences = {}
    for side in sides:
        if side.arm != PLAIN:
            differences[name_side(side)] = compare(rows, Comparison(side, Side(PLAIN)))
    draw_differences(axes, differences)
    # Aligned right: long names make the axes narrower than the title.
    title = "Minus plain, 10% of SLAKE, all test questions, paired by seed and image"
    axes.set_title(title, fontsize=10, loc="right")


def name_side(side: Side) -> str:
    """
    An arm as a label with short lines, with its settings if they are not its own.

    Example:
        >>> name_side(Side("answer_states+alignment_schedule=cosine", settings="1e-3,400,0.2,9"))
        'answer_states\\n+alignment_schedule=cosine\\nat 1e-3,400,0.2,9'
    """
    settings = {"own": "", "plain": "\nat plain's settings"}.get(side.settings, f"\nat {side.settings}")
    return side.arm.replace("+", "\n+") + settings


def draw_kinds(axes: Axes, rows: Sequence[Mapping]) -> None:
    comparison = Comparison(Side(PRIMARY), Side(PLAIN))
    differences = {kind: compare(rows, comparison, kind) for kind in ("all", "closed", "open")}
    differences["all, without sight"] = compare(rows, comparison, sight="without_sight")
    draw_differences(axes, differences | content_differences(rows))
    axes.set_title(f"{PRIMARY} minus plain, 10% of SLAKE, by kind of question", fontsize=10)


def content_differences(rows: Sequence[Mapping]) -> dict[str, Difference | None]:
    """Differences by the data set's content types. Their scores are not kept by image: intervals are over seeds."""
    first, second = (rows_of(rows, Side(arm)) for arm in (PRIMARY, PLAIN))
    seeds = sorted(first.keys() & second.keys())
    kinds = sorted({kind for seed in seeds for kind in first[seed]["by_content"]["with_sight"]})
    differences: dict[str, Difference | None] = {}
    for kind in kinds:
        sums = [[side[seed]["by_content"]["with_sight"][kind] for seed in seeds] for side in (first, second)]
        values = np.array([one[0] / one[1] - other[0] / other[1] for one, other in zip(*sums, strict=True)])
        differences[f"{kind} ({sums[0][0][1]})"] = seeds_alone(values)
    return differences


def seeds_alone(values: np.ndarray) -> Difference | None:
    """The mean of paired differences with its t interval; `None` with fewer than two."""
    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    p_value = float(ttest_1samp(values, 0).pvalue) if half else 1.0
    return Difference(mean, mean - half, mean + half, p_value, num_seeds=len(values), num_images=0)


def draw_differences(axes: Axes, differences: Mapping[str, Difference | None]) -> None:
    """Draw one line per difference from the top, in points, with its interval and number of seeds."""
    there = {name: difference for name, difference in differences.items() if difference is not None}
    places = range(len(there), 0, -1)
    means = [difference.mean for difference in there.values()]
    axes.errorbar(means, places, xerr=lengths(there.values()), fmt="o", color=COLORS[PRIMARY], markersize=4, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    labels = [f"{name}, {difference.num_seeds} seeds" for name, difference in there.items()]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(0.4, len(there) + 0.6)
    axes.set_xlabel("points")


def lengths(differences: Sequence[Difference]) -> np.ndarray:
    """Lengths of error bars below and above the mean."""
    return np.array([(one.mean - one.low, one.high - one.mean) for one in differences]).reshape(-1, 2).T


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description="Write tables and figures of the study.")
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="tables that run.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for tables.md and the figures")
    options = parser.parse_args(argv)
    missing = [str(path) for path in options.table if not path.is_file()]
    if missing:
        parser.error(f"--table {', '.join(missing)} is missing")
    rows = [row for path in options.table for row in Table(path).rows.values()]
    for path in write_report(rows, options.output):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
