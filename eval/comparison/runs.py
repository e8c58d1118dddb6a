"""Several runs over the same questions, brought together: their figures, and the tests between them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from logramed.eval.comparison.paired_tests import (
    BootstrapTest,
    McNemarTest,
    holm_correction,
    mcnemar_test,
    paired_bootstrap,
)
from logramed.eval.comparison.run_folder import (
    AVERAGE,
    BINARY_FIGURES,
    RunFolder,
    check_same_questions,
    count_of,
    interval_unit,
    name_runs,
    parts_of,
)


SIGNIFICANCE = 0.05  # a corrected p-value below it is called significant


@dataclass(frozen=True)
class Value:
    """A figure in percent, its 95% interval where there is one, and the number of questions it is over."""

    value: float
    interval: tuple[float, float] | None
    num_items: int


@dataclass(frozen=True)
class PairTest:
    """
    A test between two systems.

    Attributes:
        figure (`str`): What was tested.
        first, second (`int`): Places of the two runs; the same run twice where it is tested against itself blind.
        test ([`BootstrapTest`] or [`McNemarTest`]): Its result.
        corrected_p_value (`float`): Holm-corrected for all tests of its table.
    """

    figure: str
    first: int
    second: int
    test: BootstrapTest | McNemarTest
    corrected_p_value: float

    @property
    def is_significant(self) -> bool:
        return self.corrected_p_value < SIGNIFICANCE


@dataclass(frozen=True)
class Comparison:
    """
    What `compare_runs` found.

    Attributes:
        runs (`list[RunFolder]`): In the order given.
        names (`list[str]`): Of the runs, unique.
        systems (`list[str]`): The different systems, in order; runs of one system with other shares of training data
            share a color.
        figures (`list[str]`): The main figures that any of the runs has.
        bootstrap_tests (`list[PairTest]`): Paired bootstrap of each pair and main figure.
        mcnemar_tests (`list[PairTest]`): McNemar of each pair and figure that is right or wrong.
        sight_tests (`list[PairTest]`): Paired bootstrap of each run against itself without sight.
        num_pairs_left_out (`int`): Pairs that differ in system and training data at once.
        unit (`str`): What the tests draw: "image", "report", or "question" if no run says which image is which.
    """

    runs: list[RunFolder]
    names: list[str]
    systems: list[str]
    figures: list[str]
    bootstrap_tests: list[PairTest]
    mcnemar_tests: list[PairTest]
    sight_tests: list[PairTest]
    num_pairs_left_out: int
    unit: str

    def value(self, place: int, figure: str) -> Value | None:
        """A main figure of a run under the strict protocol; `None` if the run has no such questions."""
        run = self.runs[place]
        return figure_value(run.metrics["overall"], figure) if figure in run.main_figures else None

    def blank_value(self, place: int, figure: str) -> Value | None:
        """The same without sight; `None` if there was no such run."""
        run = self.runs[place]
        overall = run.metrics.get("blank_images", {}).get("overall")
        return None if overall is None else figure_value(overall, figure)

    def release_value(self, place: int, figure: str) -> Value | None:
        """The same under the protocol of the research release; `None` if the run has none."""
        figures = self.runs[place].release_protocol
        return None if figures is None else figure_value(figures, figure)

    def find_test(self, figure: str, first: int, second: int) -> tuple[PairTest, int] | None:
        """
        The bootstrap test of two runs, and 1 or -1 to multiply its difference by for `first` minus `second`; `None` if
        they were not tested.
        """
        for test in self.bootstrap_tests:
            if test.figure == figure and {test.first, test.second} == {first, second}:
                return test, 1 if test.first == first else -1
        return None

    def ranking(self, figure: str) -> list[int]:
        """Places of the runs that have a figure, best first."""
        values = {place: self.value(place, figure) for place in range(len(self.runs))}
        places = [place for place, value in values.items() if value is not None]
        return sorted(places, key=lambda place: -values[place].value)


def figure_value(figures: dict, figure: str) -> Value | None:
    """
    A figure of `metrics.json`, or `None` if it is not there.

    Args:
        figures (`dict`): `overall` or the same form of a group, of blank images or of the release protocol.
        figure (`str`): Its name.
    """
    if figure not in figures:
        return None
    interval = figures.get("intervals", {}).get(figure)
    return Value(figures[figure], tuple(interval) if interval else None, count_of(figures, figure))


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """
    Bring runs together and test each pair, joining questions by their id.

    Two runs that differ in both system and share of training data are not tested against each other: which of the two
    made the difference, no test could say.

    Raises:
        ValueError: If there is no run, or two are not over the same questions (see `check_same_questions`), or a run
            has none of the figures of its task.
    """
    if not runs:
        raise ValueError("Give at least one run folder.")
    check_same_questions(runs)
    for run in runs:
        if not run.main_figures:
            raise ValueError(f"{run.path} has none of the figures of its task: there is nothing to compare.")
    figures = list(dict.fromkeys(figure for run in runs for figure in run.main_figures))
    figures.sort(key=lambda figure: figure == AVERAGE)
    all_pairs = list(combinations(range(len(runs)), 2))
    pairs = [(first, second) for first, second in all_pairs if _differ_in_one_thing(runs[first], runs[second])]
    between = [(first, second, runs[first].scores, runs[second].scores) for first, second in pairs]
    sighted = [(n, n, run.scores, run.blank_scores) for n, run in enumerate(runs) if run.blank_scores is not None]
    image_ids = next((run.image_ids for run in runs if run.image_ids), {})  # the questions are the same
    return Comparison(
        runs=list(runs),
        names=name_runs(runs),
        systems=list(dict.fromkeys(run.system for run in runs)),
        figures=figures,
        bootstrap_tests=_correct(_bootstrap_tests(between, figures, image_ids)),
        mcnemar_tests=_correct(_mcnemar_tests(runs, pairs, image_ids)),
        sight_tests=_correct(_bootstrap_tests(sighted, figures, image_ids)),
        num_pairs_left_out=len(all_pairs) - len(pairs),
        unit="image" if image_ids else interval_unit(runs[0].metrics),
    )


def _differ_in_one_thing(first: RunFolder, second: RunFolder) -> bool:
    shares = {first.training_data_share, second.training_data_share}
    return first.system == second.system or len(shares) == 1 or None in shares


def _bootstrap_tests(pairs, figures, image_ids) -> Iterator[tuple]:
    """The tests of `pairs` of places and scores, over the questions that both have of each part of a figure."""
    for figure in figures:
        for first, second, *scores in pairs:
            parts = [_paired_scores(*scores, part) for part in parts_of(figure)]
            if all(parts):
                differences = [np.array([one - other for one, other in part.values()]) for part in parts]
                clusters = [_clusters(part, image_ids) for part in parts] if image_ids else None
                yield figure, first, second, paired_bootstrap(differences, clusters=clusters)


def _mcnemar_tests(runs, pairs, image_ids) -> Iterator[tuple]:
    for figure in BINARY_FIGURES:
        for first, second in pairs:
            both = _paired_scores(runs[first].scores, runs[second].scores, figure)
            if both:
                scores = np.array(list(both.values())) > 0
                yield figure, first, second, mcnemar_test(*scores.T, _clusters(both, image_ids))


def _correct(tests: Iterator[tuple]) -> list[PairTest]:
    tests = list(tests)
    corrected = holm_correction([test.p_value for *_, test in tests])
    return [PairTest(*test, p_value) for test, p_value in zip(tests, corrected, strict=True)]


def _paired_scores(first: dict, second: dict, figure: str) -> dict[str, tuple[float, float]]:
    """The scores of both for each question that both have one for, by question id."""
    shared = [key for key, scores in first.items() if figure in scores and figure in second[key]]
    return {key: (first[key][figure], second[key][figure]) for key in shared}


def _clusters(question_ids: Iterable[str], image_ids: dict[str, str]) -> list[str] | None:
    return [image_ids[key] for key in question_ids] if image_ids else None
