"""Several runs on the same questions, and the tests between them."""

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
    MAIN_FIGURES,
    RunFolder,
    check_same_questions,
    name_runs,
)


SIGNIFICANCE = 0.05  # corrected p-values below it are called significant


@dataclass(frozen=True)
class PairTest:
    """
    A test of a `figure` between the runs at indices `first` and `second` (equal if a run is tested against itself with
    blank images), with its p-value Holm-corrected for all tests in its table.
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
    Runs in the given order with unique names, the main `figures` that any of them has, the paired bootstrap for each
    pair and main figure, McNemar's test for each pair and binary figure, and the paired bootstrap of each run against
    itself with blank images.
    """

    runs: list[RunFolder]
    names: list[str]
    figures: list[str]
    bootstrap_tests: list[PairTest]
    mcnemar_tests: list[PairTest]
    sight_tests: list[PairTest]

    @property
    def unit(self) -> str:
        """The unit that tests resample: "image" or "report"."""
        return self.runs[0].metrics["interval_unit"]


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """
    Compare runs and test each pair, joining questions by id. Raises `ValueError` like `check_same_questions`, or if a
    run has none of the main figures of its task.
    """
    check_same_questions(runs)
    for run in runs:
        if not run.main_figures:
            raise ValueError(f"{run.path} has none of the figures of its task: there is nothing to compare.")
    figures = [name for name in (*MAIN_FIGURES[runs[0].task], AVERAGE) if any(name in run.overall for run in runs)]
    pairs = list(combinations(range(len(runs)), 2))
    between = [(first, second, runs[first].scores, runs[second].scores) for first, second in pairs]
    sighted = [(n, n, run.scores, run.blank_scores) for n, run in enumerate(runs) if run.blank_scores is not None]
    image_ids = runs[0].image_ids  # the questions are the same
    return Comparison(
        runs=list(runs),
        names=name_runs(runs),
        figures=figures,
        bootstrap_tests=_correct(_bootstrap_tests(between, figures, image_ids)),
        mcnemar_tests=_correct(_mcnemar_tests(between, image_ids)),
        sight_tests=_correct(_bootstrap_tests(sighted, figures, image_ids)),
    )


def _bootstrap_tests(pairs, figures, image_ids) -> Iterator[tuple]:
    """Tests of `pairs` (indices and scores), on the questions that both have scores for, by part of a figure."""
    for figure in figures:
        parts_of_figure = MAIN_FIGURES["vqa"] if figure == AVERAGE else (figure,)
        for first, second, *scores in pairs:
            parts = [_paired_scores(*scores, part) for part in parts_of_figure]
            if all(parts):
                differences = [np.array([one - other for one, other in part.values()]) for part in parts]
                clusters = [_clusters(part, image_ids) for part in parts] if image_ids else None
                yield figure, first, second, paired_bootstrap(differences, clusters=clusters)


def _mcnemar_tests(pairs, image_ids) -> Iterator[tuple]:
    for figure in BINARY_FIGURES:
        for first, second, *scores in pairs:
            both = _paired_scores(*scores, figure)
            if both:
                right = np.array(list(both.values())) > 0
                yield figure, first, second, mcnemar_test(*right.T, _clusters(both, image_ids))


def _correct(tests: Iterator[tuple]) -> list[PairTest]:
    tests = list(tests)
    corrected = holm_correction([test.p_value for *_, test in tests])
    return [PairTest(*test, p_value) for test, p_value in zip(tests, corrected, strict=True)]


def _paired_scores(first: dict, second: dict, figure: str) -> dict[str, tuple[float, float]]:
    """Both scores of each question that has both, by question id."""
    shared = [key for key, scores in first.items() if figure in scores and figure in second[key]]
    return {key: (first[key][figure], second[key][figure]) for key in shared}


def _clusters(question_ids: Iterable[str], image_ids: dict[str, str]) -> list[str] | None:
    return [image_ids[key] for key in question_ids] if image_ids else None
