"""What a comparison says, in sentences: who is ahead, by how much, whether by more than chance, and what to mind."""

from collections.abc import Sequence
from dataclasses import dataclass

from logramed.eval.comparison.judge_tables import served_by_several
from logramed.eval.comparison.run_folder import AVERAGE, interval_unit
from logramed.eval.comparison.runs import Comparison, Value
from logramed.eval.comparison.tables import capitalize, figure_title, format_p, missing_leakage, missing_sight


@dataclass(frozen=True)
class Lead:
    """
    How the best run stands to another.

    Attributes:
        place (`int`): Of the other run.
        difference (`float`): Points the best run is ahead.
        interval (`tuple[float, float]`, *optional*): Of the difference.
        p_value (`float`, *optional*): Holm-corrected; `None`, like `interval`, if the two were not tested.
        is_significant (`bool`): Whether the lead is.
        is_same_system (`bool`): Whether the other run is one of the same system.
    """

    place: int
    difference: float
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    is_significant: bool = False
    is_same_system: bool = False


@dataclass(frozen=True)
class Headline:
    """
    The outcome of one figure.

    Attributes:
        figure (`str`): Its title.
        place (`int`): Of the best run, or of the only one.
        value ([`Value`]): Its figure.
        leads (`list[Lead]`): Over the other runs, those of other systems first; empty for a single run.
        lines (`list[str]`): What else to know of the figure of a single run.
    """

    figure: str
    place: int
    value: Value
    leads: list[Lead]
    lines: list[str]

    @property
    def is_clear(self) -> bool:
        """Whether the best run is significantly ahead of every other system, or else run, it was tested against."""
        tested = [lead for lead in self.leads if lead.p_value is not None]
        others = [lead for lead in tested if not lead.is_same_system]
        return bool(tested) and all(lead.is_significant for lead in others or tested)


def headlines(comparison: Comparison) -> list[Headline]:
    """The outcome of each main figure, in order."""
    outcomes = []
    for figure in comparison.figures:
        best, *others = comparison.ranking(figure)
        leads = [_lead(comparison, figure, best, other) for other in others]
        leads.sort(key=lambda lead: lead.is_same_system)
        lines = [] if others else _beside_lines(comparison, best, figure)
        outcomes.append(Headline(figure_title(figure), best, comparison.value(best, figure), leads, lines))
    return outcomes


def _lead(comparison: Comparison, figure: str, best: int, other: int) -> Lead:
    is_same = comparison.runs[best].system == comparison.runs[other].system
    found = comparison.find_test(figure, best, other)
    if found is None:
        gap = comparison.value(best, figure).value - comparison.value(other, figure).value
        return Lead(other, gap, is_same_system=is_same)
    pair, sign = found
    difference = sign * pair.test.difference
    interval = tuple(sorted((sign * pair.test.low, sign * pair.test.high)))
    return Lead(other, difference, interval, pair.corrected_p_value, pair.is_significant and difference > 0, is_same)


def lead_sentence(comparison: Comparison, lead: Lead) -> str:
    """A lead in words."""
    name = comparison.names[lead.place]
    if lead.p_value is None:
        return f"{lead.difference:.1f} ahead of {name}, not tested"
    low, high = lead.interval
    verdict = "significant" if lead.is_significant else "within chance"
    return (
        f"{lead.difference:.1f} ahead of {name} ({low:+.1f} to {high:+.1f}, p {format_p(lead.p_value)} after Holm, "
        f"{verdict})"
    )


def _beside_lines(comparison: Comparison, place: int, figure: str) -> list[str]:
    lines = []
    blank = comparison.blank_value(place, figure)
    if blank is not None:
        lines.append(f"{blank.value:.1f} without sight: the images add {_gain(comparison, place, figure):.1f}")
    constant = comparison.runs[place].metrics.get("constant_answer")
    if constant and figure == "closed_accuracy":
        lines.append(f"{constant['closed_accuracy']:.1f} by always answering “{constant['answer']}”")
    return lines


def _gain(comparison: Comparison, place: int, figure: str) -> float:
    return comparison.value(place, figure).value - comparison.blank_value(place, figure).value


def remarks(comparison: Comparison) -> list[str]:
    """What a reader must know before quoting a figure, a sentence each."""
    run = comparison.runs[0].run
    lines = []
    if run.get("limit") is not None:
        lines.append(
            f"Only the first {run['limit']} questions were asked (`limit`): these are not the benchmark's figures."
        )
    differences = dict.fromkeys(line for other in comparison.runs for line in other.metrics.get("differences", ()))
    if differences:
        lines.append(f"The questions differ from the known split: {'; '.join(differences)}.")
    for name, other in zip(comparison.names, comparison.runs, strict=True):
        lines += [f"{name}: {note}" for note in other.run.get("notes", ())]
    lines += _interval_lines(comparison)
    lines += served_by_several(comparison)
    lines += _unscored_lines(comparison)
    lines += _sight_lines(comparison)
    lines += _leakage_lines(comparison)
    return lines


def _interval_lines(comparison: Comparison) -> list[str]:
    pairs = zip(comparison.names, comparison.runs, strict=True)
    names = [name for name, run in pairs if interval_unit(run.metrics) == "question"]
    if not names:
        return []
    return [
        f"Intervals of {', '.join(names)} are by question, as if questions about one image were independent: they are "
        "too narrow. An earlier version wrote the run: start it again for intervals by image."
    ]


def _unscored_lines(comparison: Comparison) -> list[str]:
    lines = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        figures = [figure for figure in run.main_figures if figure != AVERAGE]
        num_missing = sum(not any(figure in scores for figure in figures) for scores in run.scores.values())
        if num_missing:
            lines.append(
                f"{name} has no score for {num_missing} of {len(run.rows)} questions; its figures are over the others."
            )
    return lines


def _sight_lines(comparison: Comparison) -> list[str]:
    """Runs that are not significantly better with the images than without, and in which figures."""
    lines = missing_sight(comparison)
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
    counts = {}
    for run in comparison.runs:
        leakage = run.metrics.get("leakage", {})
        if "num_test_images" in leakage:
            names = ("num_test_images_in_training", "num_test_images", "num_triplets_in_training")
            counts[tuple(leakage[name] for name in names)] = None
    lines = [
        f"{images} of {all_images} test images also stand in the training data, {triplets} of the questions with the "
        "same answer."
        for images, all_images, triplets in counts
        if images
    ]
    return lines + missing_leakage(comparison)


def summary_sentences(comparison: Comparison, outcomes: Sequence[Headline]) -> list[str]:
    """The outcome of each figure as one line of text."""
    sentences = []
    for outcome in outcomes:
        value = outcome.value
        interval = f" ({value.interval[0]:.1f} to {value.interval[1]:.1f})" if value.interval else ""
        is_highest = " is highest" if outcome.leads else ""
        parts = [
            f"{capitalize(outcome.figure)}: {comparison.names[outcome.place]}{is_highest} with {value.value:.1f}"
            f"{interval} of {value.num_items} questions",
            *(lead_sentence(comparison, lead) for lead in outcome.leads),
            *outcome.lines,
        ]
        sentences.append("; ".join(parts) + ".")
    return sentences
