"""The tables of a comparison, as used by both the Markdown and the HTML report."""

from dataclasses import dataclass, field
from pathlib import PurePath

from logramed.eval.comparison.paired_tests import NUM_RESAMPLES
from logramed.eval.comparison.published_figures import published_for
from logramed.eval.comparison.run_folder import AVERAGE, RunFolder, drawn_units, last_part
from logramed.eval.comparison.runs import SIGNIFICANCE, Comparison, PairTest


NOT_THERE = "-"
TITLES = {"open_f1": "open F1", "rouge_l": "ROUGE-L", "cider": "CIDEr (0 to 10)"}
ABBREVIATIONS = {"bleu": "BLEU", "rouge": "ROUGE", "f1": "F1"}
HIDDEN_SETTINGS = ("notes", "num_questions", "system", "benchmark", "split", "subset", "limit", "read")
ORDERS = {"reference_first": "reference first", "model_first": "system first"}
FEW_DRAWN = 50  # number of images or questions below which a bootstrap is overconfident


@dataclass(frozen=True)
class Table:
    """A table: caption, column names, rows of texts (the first names the row), and notes below."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def figure_title(figure: str) -> str:
    """
    The readable name of a figure.

    Example:
        >>> figure_title("open_recall"), figure_title("open_bleu_1"), figure_title("rouge_l")
        ('open recall', 'open BLEU 1', 'ROUGE-L')
    """
    words = figure.split("_")
    return TITLES.get(figure) or " ".join(ABBREVIATIONS.get(word, word) for word in words)


def capitalize(text: str) -> str:
    """Capitalize only the first letter (`str.capitalize` would also lowercase "BLEU")."""
    return text[:1].upper() + text[1:]


def format_p(p_value: float) -> str:
    """
    A p-value with a suitable number of digits.

    Example:
        >>> format_p(0.00012), format_p(0.0123), format_p(0.34), format_p(1.0)
        ('<0.001', '0.012', '0.34', '1.00')
    """
    if p_value < 0.001:
        return "<0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def format_figure(figures: dict | None, figure: str, with_count: bool = True) -> str:
    """
    A figure of `metrics.json` with its 95% interval and number of questions; a dash if it is missing.

    Example:
        >>> figures = {"accuracy": 50.0, "intervals": {"accuracy": [40.0, 60.0]}, "counts": {"accuracy": 80}}
        >>> format_figure(figures, "accuracy"), format_figure(figures, "rouge_l")
        ('50.0 (40.0 to 60.0) of 80', '-')
    """
    if figures is None or figure not in figures:
        return NOT_THERE
    low, high = figures["intervals"][figure]
    count = f" of {figures['counts'][figure]}" if with_count else ""
    return f"{figures[figure]:.1f} ({low:.1f} to {high:.1f}){count}"


def figures_table(comparison: Comparison) -> Table:
    """The main figures of each run under the strict protocol."""
    rows = [
        [name, *(format_figure(run.overall, figure) for figure in comparison.figures)]
        for name, run in zip(comparison.names, comparison.runs, strict=True)
    ]
    unit = "Percent of the reference's score" if comparison.runs[0].task == "chat" else "Percent"
    drawn = " or ".join(dict.fromkeys(drawn_units(run.metrics) for run in comparison.runs))
    notes = [f"{unit} (95% interval, bootstrap over {drawn}) of the number of questions given, strict protocol."]
    if AVERAGE in comparison.figures:
        notes.append("Average: the mean of open recall and closed accuracy, as in the papers' tables.")
    return Table("Main figures", ["system", *map(figure_title, comparison.figures)], rows, notes)


def all_figures_table(comparison: Comparison) -> Table | None:
    """All other figures of the strict protocol, one per row; `None` if there are none."""
    known = dict.fromkeys(name for run in comparison.runs for name in run.overall["intervals"])
    rows = [
        [figure_title(figure), *(format_figure(run.overall, figure) for run in comparison.runs)]
        for figure in known
        if figure not in comparison.figures
    ]
    return Table("All other figures", ["figure", *comparison.names], rows) if rows else None


def group_tables(comparison: Comparison) -> list[Table]:
    """A table for each group and main figure except the average, with a row for each value of the group."""
    tables = []
    groups = [run.metrics.get("groups", {}) for run in comparison.runs]
    for group in dict.fromkeys(name for of_run in groups for name in of_run):
        of_runs = [of_run.get(group, {}) for of_run in groups]
        values = sorted({value for of_run in of_runs for value in of_run})
        title = group.replace("_", " ")
        for figure in comparison.figures:
            rows = [[value, *(format_figure(of_run.get(value), figure) for of_run in of_runs)] for value in values]
            rows = [row for row in rows if set(row[1:]) != {NOT_THERE}]
            if rows and figure != AVERAGE:
                caption = f"{capitalize(figure_title(figure))} by {title}"
                tables.append(Table(caption, [title, *comparison.names], rows))
    return tables


def release_table(comparison: Comparison) -> Table | None:
    """Figures under the release's protocol, followed by published ones; `None` if no run has any."""
    if not any(run.release_protocol for run in comparison.runs):
        return None
    figures = comparison.figures
    rows = [
        [name, "run here", *(format_figure(run.release_protocol, figure, with_count=False) for figure in figures)]
        for name, run in zip(comparison.names, comparison.runs, strict=True)
    ]
    published, notes = published_for(comparison.runs[0].metrics)
    for row in published:
        cells = (f"{row['figures'][name]:.2f}" if name in row["figures"] else NOT_THERE for name in figures)
        rows.append([row["name"], row["source"], *cells])
    return Table("Release protocol", ["system", "source", *map(figure_title, figures)], rows, notes)


def bootstrap_table(comparison: Comparison) -> Table | None:
    """The paired bootstrap for each pair and figure; `None` for a single run."""
    tests = comparison.bootstrap_tests
    if not tests:
        return None
    rows = [[_pair(comparison, pair), figure_title(pair.figure), *_difference_cells(pair)] for pair in tests]
    notes = [
        f"First minus second, in points; {NUM_RESAMPLES:,} paired resamples of the {comparison.unit}s.",
        _holm_note(tests),
    ]
    fewest = min(pair.test.num_clusters for pair in tests)
    if fewest < FEW_DRAWN:
        notes.append(
            f"With few {comparison.unit}s (here {fewest}) bootstrap intervals are too narrow, p-values too small: "
            "prefer McNemar's test where it is given."
        )
    return Table("Paired bootstrap", ["pair", "figure", *DIFFERENCE_COLUMNS], rows, notes)


DIFFERENCE_COLUMNS = ("difference", "questions", "p (Holm)", "verdict")


def _difference_cells(pair: PairTest) -> list[str]:
    test = pair.test
    return [
        f"{test.difference:+.1f} ({test.low:+.1f} to {test.high:+.1f})",
        str(test.num_items),
        *_p_cells(pair),
    ]


def _p_cells(pair: PairTest) -> list[str]:
    verdict = "significant" if pair.is_significant else "within chance"
    return [f"{format_p(pair.test.p_value)} ({format_p(pair.corrected_p_value)})", verdict]


def _pair(comparison: Comparison, pair: PairTest) -> str:
    return f"{comparison.names[pair.first]} vs. {comparison.names[pair.second]}"


def _holm_note(tests: list[PairTest]) -> str:
    return f"In brackets: p after Holm for all {len(tests)} tests in this table; significant: below {SIGNIFICANCE}."


def mcnemar_table(comparison: Comparison) -> Table | None:
    """McNemar's exact test for each pair and binary figure; `None` if there is none."""
    tests = comparison.mcnemar_tests
    rows = [
        [
            _pair(comparison, pair),
            figure_title(pair.figure),
            str(pair.test.num_only_first),
            str(pair.test.num_only_second),
            str(pair.test.num_items),
            *_p_cells(pair),
        ]
        for pair in tests
    ]
    columns = ["pair", "figure", "only first right", "only second right", "questions", "p (Holm)", "verdict"]
    notes = [
        "Exact McNemar test on the questions that only one of the two has right. By image: the signs of an image's "
        "questions flip together (an exact sign-flip test).",
        _holm_note(tests),
    ]
    return Table("McNemar's test", columns, rows, notes) if rows else None


def sight_table(comparison: Comparison) -> Table | None:
    """Each run's figures with images and blank images, and their difference; `None` if no run has both."""
    if not comparison.sight_tests:
        return None
    rows = []
    for pair in sorted(comparison.sight_tests, key=lambda pair: pair.first):
        run = comparison.runs[pair.first]
        figures = (format_figure(of, pair.figure, with_count=False) for of in (run.overall, run.blank))
        rows.append([comparison.names[pair.first], figure_title(pair.figure), *figures, *_difference_cells(pair)])
    columns = ["system", "figure", "with images", "blank images", "images add", *DIFFERENCE_COLUMNS[1:]]
    notes = [
        "Blank: each image was replaced by a uniform grey one. What the model still gets right, it knows from the "
        "questions alone.",
        f"Paired bootstrap as between systems. {_holm_note(comparison.sight_tests)}",
    ]
    return Table("With and without sight", columns, rows, notes)


def leakage_table(comparison: Comparison) -> Table | None:
    """Overlap of the test set with training, for each run where it is known; `None` if there is none."""
    figures = [figure for figure in comparison.figures if figure != AVERAGE]
    known = [(name, run) for name, run in zip(comparison.names, comparison.runs, strict=True) if _leakage(run)]
    rows = []
    for name, run in known:
        leakage, num_questions = _leakage(run), len(run.rows)
        rows.append(
            [
                name,
                f"{leakage['num_test_images_in_training']} of {leakage['num_test_images']}",
                f"{leakage['num_questions_on_them']} of {num_questions}",
                f"{leakage['num_triplets_in_training']} of {num_questions}",
                *(format_figure(leakage.get("overall_without_triplets"), figure) for figure in figures),
            ]
        )
    columns = ["system", "test images in training", "questions on them", "same image, question and answer"]
    columns += [f"{figure_title(figure)} without the latter" for figure in figures]
    notes = [f"Compared with: {text}." for text in dict.fromkeys(_leakage(run)["compared_with"] for _, run in known)]
    return Table("Test questions that also stand in training", columns, rows, notes) if rows else None


def _leakage(run: RunFolder) -> dict | None:
    leakage = run.metrics["leakage"]
    return None if "missing" in leakage else leakage


def judge_table(comparison: Comparison) -> Table | None:
    """Each run's judge, its mean scores and its first-place advantage; `None` if there was no judge."""
    rows = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        if "judge" in run.metrics:
            points, bias = run.metrics["mean_scores"], run.metrics["position_bias"]
            served = ", ".join(run.metrics["judge"]["served_models"])
            rows.append(
                [
                    name,
                    f"{run.metrics['judge']['model']}, served as {served}",
                    f"{run.overall['num_items']} of {run.overall['num_asked']}",
                    _format_mean(points, "model_score", ".2f"),
                    _format_mean(points, "reference_score", ".2f"),
                    _format_mean(bias, "first_place_advantage", "+.2f"),
                ]
            )
    columns = ["system", "judge", "judged", "system's points", "reference's points", "first place"]
    notes = [
        "The judge read the reference and the system's answer to each question twice, in both orders, and gave each 1 "
        "to 10 points. The relative score is the system's points in percent of the reference's. First place: extra "
        "points that an answer gets for being first; using both orders cancels this."
    ]
    return Table("The judge", columns, rows, notes) if rows else None


def _format_mean(figures: dict, name: str, form: str) -> str:
    low, high = figures["intervals"][name]
    return f"{figures[name]:{form}} ({low:{form}} to {high:{form}})"


def not_judged_table(comparison: Comparison) -> Table | None:
    """Missing judgements with their reasons; `None` if there are none."""
    rows = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        for label, part in ((name, run.metrics), (f"{name}, blank images", run.metrics["blank_images"])):
            rows += [
                [label, problem["question_id"], ORDERS[problem["order"]], problem["reason"]]
                for problem in part.get("not_judged", ())
            ]
    notes = ["Questions not judged in both orders are left out of all figures. Run again to retry them."]
    return Table("Not judged", ["system", "question", "order", "why"], rows, notes) if rows else None


def settings_table(comparison: Comparison) -> Table:
    """The model and settings of each run, without local folders."""
    settings = []
    for run in comparison.runs:
        shown = {name: value for name, value in run.run.items() if name not in (*HIDDEN_SETTINGS, "versions")}
        settings.append(shown | run.run["versions"])
    rows = [
        [name.replace("_", " "), *(_format_setting(name, shown.get(name)) for shown in settings)]
        for name in dict.fromkeys(name for shown in settings for name in shown)
    ]
    rows = [row for row in rows if set(row[1:]) != {NOT_THERE}]
    return Table("Settings", ["setting", *comparison.names], rows)


def _format_setting(name: str, value: object) -> str:
    if value in (None, ""):
        return NOT_THERE
    text = str(value)
    if name.endswith("fingerprint"):
        return text[:12]
    return last_part(text) if PurePath(text).is_absolute() or text.startswith((".", "~")) else text
