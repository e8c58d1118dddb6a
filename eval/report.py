"""From answers to figures: the content of `metrics.json` and the table that `eval/run.py` prints."""

from collections import Counter
from collections.abc import Iterator, Sequence

from logramed.eval.metrics.medical_vqa.vqa_scoring import evaluate_answers, yes_or_no


TABLE_FIGURES = {"open_recall": ("open recall", "num_open"), "closed_accuracy": ("closed accuracy", "num_closed")}


def compute_metrics(rows: Sequence[dict], settings: dict) -> dict:
    """
    The figures of a run.

    Args:
        rows: Question rows with the model's `prediction`; at least one.
        settings (`dict`): What the run was, kept under `run`.

    Returns:
        `dict`: `run`; `overall`, the figures of `medical_vqa` under its strict protocol; `groups`, the same for each
        value of each group; `release_protocol`, those of all rows under the protocol of the research release; and
        `constant_answer`, the best closed accuracy that one answer to all closed questions can have.
    """
    groups = {}
    for name in rows[0]["groups"]:
        values = sorted({row["groups"][name] for row in rows})
        groups[name] = {value: _score([row for row in rows if row["groups"][name] == value]) for value in values}
    metrics = {"run": settings, "protocol": "strict", "overall": _score(rows), "groups": groups}
    metrics["release_protocol"] = _score(rows, protocol="release")
    if metrics["overall"]["num_closed"]:
        metrics["constant_answer"] = best_constant_answer(rows)
    return metrics


def _score(rows: Sequence[dict], protocol: str = "strict") -> dict:
    columns = ([row[name] for row in rows] for name in ("prediction", "answer", "answer_type"))
    return evaluate_answers(*columns, protocol=protocol)


def best_constant_answer(rows: Sequence[dict]) -> dict:
    """
    The most frequent answer to the closed questions, and the closed accuracy in percent of giving it always.

    Example:
        >>> rows = [{"answer_type": "CLOSED", "answer": answer} for answer in ("No", "no", "left", "yes")]
        >>> best_constant_answer(rows)
        {'answer': 'no', 'closed_accuracy': 50.0}
    """
    answers = [row["answer"] for row in rows if row["answer_type"] == "CLOSED"]
    counts = Counter(yes_or_no(answer) or answer.strip().lower() for answer in answers)
    answer, count = counts.most_common(1)[0]
    return {"answer": answer, "closed_accuracy": 100 * count / len(answers)}


def format_table(metrics: dict, counterpart: dict | None = None) -> str:
    """
    A text table of open recall and closed accuracy, each with its 95% interval and number of questions.

    Args:
        metrics (`dict`): From `compute_metrics`.
        counterpart (`dict`, *optional*): Of the same model and questions with sight if `metrics` are without, or the
            other way round. Its figures stand beside.
    """
    blank = metrics["run"]["blank_images"]
    columns = ["", *(title for title, _ in TABLE_FIGURES.values())]
    if counterpart is not None:
        sight = "sighted" if blank else "blank"
        columns += [f"{title}, {sight}" for title, _ in TABLE_FIGURES.values()]
    lines = []
    for label, figures, beside in _table_rows(metrics, counterpart):
        cells = [_format_figure(figures, name) for name in TABLE_FIGURES]
        if counterpart is not None:
            cells += [f"{beside[name]:.1f}" if name in beside else "-" for name in TABLE_FIGURES]
        lines.append([label, *cells])
    return "\n".join([*_headline(metrics), "", *_align([columns, *lines]), "", *_footnotes(metrics)])


def _table_rows(metrics: dict, counterpart: dict | None) -> Iterator[tuple[str, dict, dict]]:
    beside = counterpart or {"overall": {}, "groups": {}, "release_protocol": {}}
    yield "all", metrics["overall"], beside["overall"]
    for name, values in metrics["groups"].items():
        for value, figures in values.items():
            yield f"{name.replace('_', ' ')}: {value}", figures, beside["groups"].get(name, {}).get(value, {})
    yield "all, release protocol", metrics["release_protocol"], beside["release_protocol"]


def _format_figure(figures: dict, name: str) -> str:
    if name not in figures:
        return "-"
    low, high = figures["intervals"][name]
    return f"{figures[name]:5.1f} ({low:.1f} to {high:.1f}) of {figures[TABLE_FIGURES[name][1]]}"


def _headline(metrics: dict) -> list[str]:
    run = metrics["run"]
    lines = [f"{run['benchmark']}, {run['split']} split, {run['num_questions']} questions, model {run['model']}"]
    if run["limit"] is not None:
        lines.append(
            f"Only the first {run['limit']} questions were asked (`limit`): these are not the benchmark's figures."
        )
    if run["blank_images"]:
        lines.append("WITHOUT SIGHT (`blank_images`): the model saw an evenly grey image in place of each image.")
    return lines


def _footnotes(metrics: dict) -> list[str]:
    lines = ["Percent (95% bootstrap interval) of so many questions; strict protocol where not said otherwise."]
    if "constant_answer" in metrics:
        constant = metrics["constant_answer"]
        lines.append(
            f"The constant answer {constant['answer']!r} to every question has a closed accuracy of "
            f"{constant['closed_accuracy']:.1f}."
        )
    return lines


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
