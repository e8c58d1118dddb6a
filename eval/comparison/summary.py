"""A comparison in sentences: which run is ahead, by how much, whether significantly, and caveats."""

from logramed.eval.comparison.paired_tests import NUM_RESAMPLES
from logramed.eval.comparison.run_folder import AVERAGE
from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.tables import capitalize, figure_title, format_figure, format_p


PROTOCOLS = {
    "vqa": " Role words are stripped, yes and no count as whole words, an answer that says both or neither is wrong, "
    "and no question is dropped."
}
BY_IMAGE = (
    " Questions about one image are not independent: an image is drawn with all its questions, and a figure is the "
    "sum of their scores divided by their number."
)


def summary_sentences(comparison: Comparison) -> list[str]:
    """For each main figure, the highest run and its lead over the others."""
    sentences = []
    for figure in comparison.figures:
        places = [place for place, run in enumerate(comparison.runs) if figure in run.overall]
        best, *others = sorted(places, key=lambda place: -comparison.runs[place].overall[figure])
        is_highest = " is highest" if others else ""
        value = format_figure(comparison.runs[best].overall, figure)
        parts = [f"{capitalize(figure_title(figure))}: {comparison.names[best]}{is_highest} with {value} questions"]
        parts += [_lead(comparison, figure, best, other) for other in others]
        blank = comparison.runs[best].blank
        if not others and blank and figure in blank:
            parts.append(f"{blank[figure]:.1f} without sight")
        sentences.append("; ".join(parts) + ".")
    return sentences


def _lead(comparison: Comparison, figure: str, best: int, other: int) -> str:
    tests = {(pair.figure, pair.first, pair.second): pair for pair in comparison.bootstrap_tests}
    pair = tests[figure, min(best, other), max(best, other)]
    sign = 1 if pair.first == best else -1
    low, high = sorted((sign * pair.test.low, sign * pair.test.high))
    verdict = "significant" if pair.is_significant else "within chance"
    return (
        f"{sign * pair.test.difference:.1f} ahead of {comparison.names[other]} ({low:+.1f} to {high:+.1f}, "
        f"p {format_p(pair.corrected_p_value)} after Holm, {verdict})"
    )


def remarks(comparison: Comparison) -> list[str]:
    """Caveats before quoting a figure, one sentence each."""
    runs = list(zip(comparison.names, comparison.runs, strict=True))
    lines = list(dict.fromkeys(line for run in comparison.runs for line in question_lines(run.metrics)))
    for name, run in runs:
        lines += [f"{name}: {note}" for note in run.run.get("notes", ())]
        figures = [figure for figure in run.main_figures if figure != AVERAGE]
        num_missing = sum(not any(figure in scores for figure in figures) for scores in run.scores.values())
        if num_missing:
            lines.append(
                f"{name} has no score for {num_missing} of {len(run.rows)} questions; its figures are over the others."
            )
    served = {", ".join(run.metrics["judge"]["served_models"]) for _, run in runs if "judge" in run.metrics}
    if len(served) > 1:
        names = " and ".join(sorted(served))
        lines.append(f"These runs had different judge models: {names}. Their scores cannot be compared.")
    return lines + _sight_lines(comparison) + _leakage_lines(comparison)


def question_lines(metrics: dict) -> list[str]:
    """How the questions of a run differ from the benchmark's, one sentence each."""
    lines, limit = [], metrics["run"]["limit"]
    if limit is not None:
        lines.append(f"Only the first {limit} questions were asked (`limit`): these are not the benchmark's figures.")
    if metrics["differences"]:
        lines.append(f"The questions differ from the known split: {'; '.join(metrics['differences'])}.")
    return lines


def _sight_lines(comparison: Comparison) -> list[str]:
    """Runs without blank-image figures, and runs that are not significantly better with the images."""
    lines = _missing_lines(comparison, "blank_images", "No figures without sight")
    for place, name in enumerate(comparison.names):
        blind = [
            f"{figure_title(pair.figure)} ({pair.test.difference:+.1f})"
            for pair in comparison.sight_tests
            if pair.first == place and not (pair.is_significant and pair.test.difference > 0)
        ]
        if blind:
            lines.append(
                f"{name} is not significantly better with the images than without in {', '.join(blind)}: what it has "
                "right there may be known from the questions alone."
            )
    return lines


def _leakage_lines(comparison: Comparison) -> list[str]:
    names = ("num_test_images_in_training", "num_test_images", "num_triplets_in_training")
    leakages = [run.metrics["leakage"] for run in comparison.runs]
    counts = {tuple(leakage[name] for name in names) for leakage in leakages if "missing" not in leakage}
    lines = [
        f"{images} of {all_images} test images also stand in the training data, {triplets} of the questions with the "
        "same answer."
        for images, all_images, triplets in sorted(counts)
        if images
    ]
    return lines + _missing_lines(comparison, "leakage", "No leakage report")


def _missing_lines(comparison: Comparison, part: str, what: str) -> list[str]:
    """Why runs lack a part of their metrics, one sentence per reason."""
    reasons: dict[str, list[str]] = {}
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        if "missing" in run.metrics.get(part, {}):
            reasons.setdefault(run.metrics[part]["missing"].rstrip("."), []).append(name)
    return [f"{what} of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def baseline_lines(metrics: dict) -> list[str]:
    """Scores of one answer to all closed questions, or of random choice, in sentences."""
    lines = []
    if "chance" in metrics["overall"]:
        lines.append(f"Choosing at random is right in {metrics['overall']['chance']:.1f} percent.")
    if "constant_answer" in metrics:
        constant = metrics["constant_answer"]
        lines.append(
            f"The constant answer “{constant['answer']}” to every closed question has a closed accuracy of "
            f"{constant['closed_accuracy']:.1f}."
        )
    return lines


def protocol_lines(comparison: Comparison) -> list[str]:
    """How the figures were made, in sentences."""
    return [
        "All figures and tests use the strict protocol unless noted otherwise."
        + PROTOCOLS.get(comparison.runs[0].task, ""),
        f"Figures are means over questions; intervals are 95% percentile bootstrap intervals over {comparison.unit}s."
        + (BY_IMAGE if comparison.unit == "image" else ""),
        f"Systems are compared on the questions that both have a score for; the paired bootstrap draws the "
        f"{comparison.unit}s {NUM_RESAMPLES:,} times with replacement.",
        "Figures of the release protocol reproduce the scripts behind published figures, including their bugs; only "
        "they are shown next to published ones.",
        *_missing_lines(comparison, "release_protocol", "No figures of the release protocol"),
    ]
