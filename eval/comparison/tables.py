"""The tables of a comparison, in a form that both the Markdown and the HTML are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from logramed.eval.comparison.paired_tests import NUM_RESAMPLES
from logramed.eval.comparison.published_figures import PublishedFigures
from logramed.eval.comparison.run_folder import AVERAGE, BINARY_FIGURES, RunFolder, drawn_units, last_part, strata_of
from logramed.eval.comparison.runs import SIGNIFICANCE, Comparison, PairTest, Value, figure_value


NOT_THERE = "-"
TITLES = {
    "open_f1": "open F1",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr (0 to 10)",
}
ABBREVIATIONS = {"bleu": "BLEU", "rouge": "ROUGE", "f1": "F1"}
HIDDEN_SETTINGS = ("versions", "notes", "num_questions", "system", "benchmark", "split", "subset", "limit")
PROTOCOLS = {
    "vqa": " Role words are stripped, yes and no count as whole words, an answer that says both or neither is wrong, "
    "and no question is dropped."
}
INTERVALS = {
    "image": " Questions about one image are not independent: a drawn image brings all its questions, and a figure is "
    "the sum of their scores divided by their number.",
    "question": " Questions about one image are drawn as if they were independent.",
}
FEW_DRAWN = 50  # images or questions, below which a bootstrap is too sure of itself
FINGERPRINT_LENGTH = 12  # characters shown of a hash


@dataclass(frozen=True)
class Cell:
    """
    What stands in one place of a table.

    Attributes:
        text (`str`): The content.
        note (`str`): Smaller, behind or below it.
        runs (`tuple[int, ...]`): Places of the runs whose marks and names stand for the text.
        is_strong (`bool`): Whether it stands out.
        verdict (`bool`, *optional*): Colored as a yes (significant) or a no.
    """

    text: str
    note: str = ""
    runs: tuple[int, ...] = ()
    is_strong: bool = False
    verdict: bool | None = None


@dataclass(frozen=True)
class Table:
    """
    A table: a caption, names of columns, rows of cells (the first names the row), and sentences below.

    A row of a single cell is a heading for the rows below it.
    """

    caption: str
    columns: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def figure_title(figure: str) -> str:
    """
    A figure's name in words.

    Example:
        >>> figure_title("open_recall"), figure_title("open_bleu_1"), figure_title("rouge_l")
        ('open recall', 'open BLEU 1', 'ROUGE-L')
    """
    words = figure.split("_")
    return TITLES.get(figure) or " ".join(ABBREVIATIONS.get(word, word) for word in words)


def capitalize(text: str) -> str:
    """The text with a capital at its start, the rest as it is (`str.capitalize` would lower "BLEU")."""
    return text[:1].upper() + text[1:]


def format_p(p_value: float) -> str:
    """
    A p-value in as many digits as it deserves.

    Example:
        >>> format_p(0.00012), format_p(0.0123), format_p(0.34), format_p(1.0)
        ('<0.001', '0.012', '0.34', '1.00')
    """
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def format_value(value: Value | None, is_best: bool = False, with_count: bool = True) -> Cell:
    """A figure with its interval and, unless told not to, its number of questions; a dash where it is not there."""
    if value is None:
        return Cell(NOT_THERE)
    interval = f"({value.interval[0]:.1f} to {value.interval[1]:.1f})" if value.interval else ""
    number = f"of {value.num_items}" if with_count else ""
    return Cell(f"{value.value:.1f}", f"{interval} {number}".strip(), is_strong=is_best)


def _name_cell(comparison: Comparison, place: int) -> Cell:
    return Cell(comparison.names[place], runs=(place,))


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def figures_table(comparison: Comparison) -> Table:
    """The main figures of each run, strict protocol; the best of several is strong."""
    rows = []
    for place in range(len(comparison.runs)):
        cells = [
            format_value(comparison.value(place, figure), is_best=_is_best(comparison, place, figure))
            for figure in comparison.figures
        ]
        rows.append([_name_cell(comparison, place), *cells])
    unit = "Percent of the reference's score" if comparison.runs[0].task == "chat" else "Percent"
    drawn = " or ".join(dict.fromkeys(drawn_units(run.metrics) for run in comparison.runs))
    notes = [f"{unit} (95% interval, bootstrap over {drawn}) of so many questions, strict protocol."]
    if AVERAGE in comparison.figures:
        notes.append("Average: the mean of open recall and closed accuracy, as the papers' tables have it.")
    if len(comparison.runs) > 1:
        notes.append("Bold: the highest. Whether it is higher by more than chance, the tests below say.")
    if any(cell.text == NOT_THERE for row in rows for cell in row):
        notes.append(f"{NOT_THERE} means that the run has no question of that kind, or none that could be scored.")
    return Table("Main figures", ["system", *map(figure_title, comparison.figures)], rows, notes)


def _is_best(comparison: Comparison, place: int, figure: str) -> bool:
    ranking = comparison.ranking(figure)
    if len(ranking) < 2 or place not in ranking:
        return False
    return comparison.value(place, figure).value == comparison.value(ranking[0], figure).value


def all_figures_table(comparison: Comparison) -> Table | None:
    """Every other figure of the strict protocol, a row for each; `None` if there is none."""
    overall = [run.metrics["overall"] for run in comparison.runs]
    known = dict.fromkeys(name for figures in overall for name in figures if name in figures.get("intervals", {}))
    others = [name for name in known if name not in comparison.figures]
    rows = [
        [Cell(figure_title(figure)), *(format_value(figure_value(figures, figure)) for figures in overall)]
        for figure in others
    ]
    return Table("All other figures", ["figure", *comparison.names], rows) if rows else None


def published_table(comparison: Comparison, published: Sequence[PublishedFigures], notes: Sequence[str]) -> Table:
    """Figures of our runs under the release's protocol above published ones, if there are any."""
    figures = list(comparison.figures)
    if any("exact_match" in row.figures for row in published):
        figures.append("exact_match")
    rows = [[Cell("Run here")]]
    for place in range(len(comparison.runs)):
        cells = [format_value(comparison.release_value(place, figure), with_count=False) for figure in figures]
        rows.append([_name_cell(comparison, place), Cell(NOT_THERE), Cell("release"), *cells])
    if published:
        rows.append([Cell("Published, not run here")])
    for row in published:
        cells = [Cell(f"{row.figures[name]:.2f}" if name in row.figures else NOT_THERE) for name in figures]
        rows.append([Cell(row.name), Cell(row.short), Cell(row.protocol), *cells])
    columns = ["system", "source", "protocol", *map(figure_title, figures)]
    beside = ", beside published figures" if published else ""
    return Table(f"Release protocol{beside}", columns, rows, list(notes))


def group_tables(comparison: Comparison, group: str) -> list[Table]:
    """For each main figure of single questions, a row for each value of a group."""
    tables = []
    for figure in comparison.figures:
        values = group_values(comparison, group, figure) if figure != AVERAGE else {}
        rows = [[Cell(name), *map(format_value, marks)] for name, marks in values.items()]
        if rows:
            caption = f"{capitalize(figure_title(figure))} by {group.replace('_', ' ')}"
            tables.append(Table(caption, [group.replace("_", " "), *comparison.names], rows))
    return tables


def group_values(comparison: Comparison, group: str, figure: str) -> dict[str, list[Value | None]]:
    """By value of a group, a figure of each run; values where no run has it are left out."""
    groups = [run.metrics.get("groups", {}).get(group, {}) for run in comparison.runs]
    names = sorted({name for values in groups for name in values})
    table = {name: [figure_value(values.get(name, {}), figure) for values in groups] for name in names}
    return {name: values for name, values in table.items() if any(values)}


def group_names(comparison: Comparison) -> list[str]:
    """The groups that figures are broken down by."""
    return list(dict.fromkeys(name for run in comparison.runs for name in run.metrics.get("groups", {})))


# ---------------------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------------------


def bootstrap_table(comparison: Comparison) -> Table | None:
    """The paired bootstrap of each pair and figure; `None` for a single run."""
    tests = comparison.bootstrap_tests
    if not tests:
        return None
    rows = [
        [_pair_cell(comparison, test), Cell(figure_title(test.figure)), *_difference_cells(test)] for test in tests
    ]
    notes = [
        f"First minus second, in points; {NUM_RESAMPLES:,} paired resamples of the {comparison.unit}s.",
        _holm_note(tests),
    ]
    if any(test.figure == AVERAGE for test in tests):
        of_kinds = "images with open, closed and both kinds of" if comparison.unit == "image" else "open and closed"
        notes.append(f"For the average, {of_kinds} questions are drawn each among their own.")
    fewest = min(test.test.num_clusters for test in tests)
    if fewest < FEW_DRAWN:
        notes.append(
            f"Over few {comparison.unit}s (here {fewest}) bootstrap intervals are too narrow and p-values too small: "
            "where McNemar's test is given, go by that."
        )
    if comparison.num_pairs_left_out:
        notes.append(
            f"{comparison.num_pairs_left_out} pairs of runs differ in both system and share of training data and are "
            "not tested: which of the two made the difference, no test could say."
        )
    return Table("Paired bootstrap", ["pair", "figure", *DIFFERENCE_COLUMNS], rows, notes)


DIFFERENCE_COLUMNS = ("difference", "questions", "p (Holm)", "verdict")


def _difference_cells(pair: PairTest) -> list[Cell]:
    test = pair.test
    return [
        Cell(f"{test.difference:+.1f}", f"({test.low:+.1f} to {test.high:+.1f})"),
        Cell(str(test.num_items)),
        *_p_cells(pair),
    ]


def _p_cells(pair: PairTest) -> list[Cell]:
    verdict = Cell("significant" if pair.is_significant else "within chance", verdict=pair.is_significant)
    return [Cell(format_p(pair.test.p_value), f"({format_p(pair.corrected_p_value)})"), verdict]


def _pair_cell(comparison: Comparison, pair: PairTest) -> Cell:
    runs = (pair.first, pair.second)
    return Cell(" vs. ".join(comparison.names[place] for place in runs), runs=runs)


def _holm_note(tests: Sequence[PairTest]) -> str:
    number = f"all {len(tests)} tests" if len(tests) > 1 else "the one test"
    return f"In brackets p corrected after Holm for {number} of this table; significant: below {SIGNIFICANCE}."


def mcnemar_table(comparison: Comparison) -> Table | None:
    """McNemar's exact test of each pair and figure that is right or wrong; `None` if there is none."""
    tests = comparison.mcnemar_tests
    rows = []
    for pair in tests:
        counts = [Cell(str(pair.test.num_only_first)), Cell(str(pair.test.num_only_second))]
        rows.append(
            [
                _pair_cell(comparison, pair),
                Cell(figure_title(pair.figure)),
                *counts,
                Cell(str(pair.test.num_items)),
                *_p_cells(pair),
            ]
        )
    columns = ["pair", "figure", "only first right", "only second right", "questions", "p (Holm)", "verdict"]
    notes = ["Exact McNemar test on the questions that only one of the two has right.", _holm_note(tests)]
    if comparison.unit == "image":
        notes[0] += " By image: the questions of an image change sides together (an exact sign-flip test)."
    return Table("McNemar's test", columns, rows, notes) if rows else None


# ---------------------------------------------------------------------------------------------------------------------
# Sight and leakage
# ---------------------------------------------------------------------------------------------------------------------


def sight_table(comparison: Comparison) -> Table | None:
    """Each run's figures with the images and with blank ones, and what the images add; `None` if no run has both."""
    if not any("overall" in run.metrics.get("blank_images", {}) for run in comparison.runs):
        return None
    rows = []
    for figure in comparison.figures:
        tests = {pair.first: pair for pair in comparison.sight_tests if pair.figure == figure}
        for place in range(len(comparison.runs)):
            seen, unseen = comparison.value(place, figure), comparison.blank_value(place, figure)
            if seen is None:
                continue
            cells = [_name_cell(comparison, place), Cell(figure_title(figure)), format_value(seen, with_count=False)]
            added = _difference_cells(tests[place]) if place in tests else [Cell(NOT_THERE)] * len(DIFFERENCE_COLUMNS)
            rows.append([*cells, format_value(unseen, with_count=False), *added])
    columns = ["system", "figure", "with images", "blank images", "images add", *DIFFERENCE_COLUMNS[1:]]
    notes = [
        "Blank: the model got an evenly grey image in place of each image. What it still has right, it knows "
        "from the questions alone."
    ]
    if comparison.sight_tests:
        notes.append(f"Paired bootstrap as between systems. {_holm_note(comparison.sight_tests)}")
    return Table("With and without sight", columns, rows, notes + missing_sight(comparison))


def missing_sight(comparison: Comparison) -> list[str]:
    """Why runs have no figures without sight, a sentence for each reason."""
    reasons = {}
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        blank = run.metrics.get("blank_images", {"missing": "no run without sight was made"})
        if "overall" not in blank:
            reasons.setdefault(blank["missing"].rstrip("."), []).append(name)
    return [f"No figures without sight of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


def constant_lines(comparison: Comparison) -> list[str]:
    """What one answer to all closed questions, or choosing at random, would score, in sentences."""
    constants, chances = {}, {}
    for run in comparison.runs:
        constant = run.metrics.get("constant_answer")
        if constant:
            constants[constant["answer"]] = constant["closed_accuracy"]
        if "chance" in run.metrics["overall"]:
            chances[run.metrics["overall"]["chance"]] = None
    return [f"Choosing at random is right in {chance:.1f} percent." for chance in chances] + [
        f"The constant answer “{answer}” to every closed question has a closed accuracy of {accuracy:.1f}."
        for answer, accuracy in constants.items()
    ]


def leakage_table(comparison: Comparison) -> Table | None:
    """What of the test set stands in training, for each run that knows; `None` if none does."""
    figures = [figure for figure in comparison.figures if figure != AVERAGE]
    rows = []
    for place, run in enumerate(comparison.runs):
        leakage = run.metrics.get("leakage", {})
        if "num_test_images" in leakage:
            rows.append([_name_cell(comparison, place), *_leakage_cells(run, leakage, figures)])
    columns = ["system", "test images in training", "questions on them", "same image, question and answer"]
    columns += [f"{figure_title(figure)} without the latter" for figure in figures]
    notes = [*_compared_with(comparison), *missing_leakage(comparison)]
    return Table("Test questions that also stand in training", columns, rows, notes) if rows else None


def _leakage_cells(run: RunFolder, leakage: dict, figures: Sequence[str]) -> list[Cell]:
    leaked = set(leakage.get("triplet_question_ids", ()))
    kept = {key: scores for key, scores in run.scores.items() if key not in leaked}
    cells = [
        Cell(f"{leakage['num_test_images_in_training']}", f"of {leakage['num_test_images']}"),
        Cell(f"{leakage['num_questions_on_them']}", f"of {len(run.rows)}"),
        Cell(f"{leakage['num_triplets_in_training']}", f"of {len(run.rows)}"),
    ]
    for figure in figures:
        if any(figure in scores for scores in kept.values()):
            (values,) = strata_of(kept, figure)
            cells.append(Cell(f"{values.mean():.1f}", f"of {len(values)}"))
        else:
            cells.append(Cell(NOT_THERE))
    return cells


def _compared_with(comparison: Comparison) -> list[str]:
    known = [run.metrics.get("leakage", {}).get("compared_with") for run in comparison.runs]
    return [f"Compared with: {text}." for text in dict.fromkeys(text for text in known if text)]


def missing_leakage(comparison: Comparison) -> list[str]:
    """Why runs have no leakage report, a sentence for each reason."""
    reasons = {}
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        leakage = run.metrics.get("leakage", {"missing": "none was made"})
        if "num_test_images" not in leakage:
            reasons.setdefault(leakage["missing"].rstrip("."), []).append(name)
    return [f"No leakage report of {', '.join(names)}: {reason}." for reason, names in reasons.items()]


# ---------------------------------------------------------------------------------------------------------------------
# How it was made
# ---------------------------------------------------------------------------------------------------------------------


def settings_table(comparison: Comparison) -> Table:
    """What answered and how, for each run; no folder of this machine."""
    settings = []
    for run in comparison.runs:
        shown = {name: value for name, value in run.run.items() if name not in HIDDEN_SETTINGS}
        versions = {f"version of {package}": version for package, version in run.run.get("versions", {}).items()}
        settings.append(shown | versions)
    names = dict.fromkeys(name for shown in settings for name in shown)
    rows = [
        [Cell(name.replace("_", " ")), *(Cell(format_setting(name, shown.get(name))) for shown in settings)]
        for name in names
        if any(shown.get(name) is not None for shown in settings)
    ]
    return Table("Settings", ["setting", *comparison.names], rows)


def format_setting(name: str, value: object) -> str:
    """
    A setting in words: hashes cut short, absolute paths by their last part, so that no folder of a machine is told.

    Example:
        >>> format_setting("model", "/home/me/models/logramed"), format_setting("limit", None)
        ('logramed', '-')
        >>> format_setting("data_fingerprint", "0123456789abcdef"), format_setting("load_in_4bit", True)
        ('0123456789ab…', 'yes')
    """
    if value in (None, "", []):
        return NOT_THERE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and name.endswith("fingerprint") and len(value) > FINGERPRINT_LENGTH:
        return value[:FINGERPRINT_LENGTH] + "…"
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith((".", "~"))):
        return last_part(value)
    if isinstance(value, dict):
        told = {key.replace("_", " "): format_setting(key, entry) for key, entry in value.items()}
        return ", ".join(f"{key}: {entry}" for key, entry in told.items() if entry != NOT_THERE)
    if isinstance(value, list | tuple):
        return ", ".join(format_setting(name, entry) for entry in value)
    return str(value)


def protocol_lines(comparison: Comparison) -> list[str]:
    """How the figures were made, in sentences."""
    lines = [
        "All tables, tests and plots are of the strict protocol where they do not say otherwise."
        + PROTOCOLS.get(comparison.runs[0].task, ""),
        f"Figures are means over questions; intervals are 95% percentile bootstrap intervals over {comparison.unit}s."
        + INTERVALS.get(comparison.unit, ""),
        f"Systems are compared question by question, joined by id: the paired bootstrap draws the {comparison.unit}s "
        f"{NUM_RESAMPLES:,} times with replacement; McNemar's exact test is for figures that are right or wrong "
        f"({', '.join(figure_title(figure) for figure in BINARY_FIGURES)}).",
        "Figures of questions that one system has no score for are compared over the questions that both have.",
    ]
    if any(run.release_protocol for run in comparison.runs):
        lines.append(
            "Figures of the release protocol repeat the scripts behind published figures, faults included; only they "
            "stand beside published ones."
        )
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        reason = run.metrics.get("release_protocol", {}).get("missing")
        if reason:
            lines.append(f"{name} has no figures of the release protocol: {reason.rstrip('.')}.")
    return lines
