"""What a report of chat answers says of their judge: who it was, whether it prefers a place, what it did not judge."""

from collections.abc import Iterator

from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.tables import NOT_THERE, Cell, Table


ORDERS = {"reference_first": "reference first", "model_first": "system first"}
JUDGE_NOTES = (
    "The judge read the reference and the system's answer to each question twice, either one first once, and gave "
    "each 1 to 10 points. The relative score of a question is the sum of the system's points in percent of that of "
    "the reference's. Scores of another judge, another version of it or another prompt do not compare.",
    "First place: points that an answer gets more for standing first. Both orders together take that out.",
)


def judge_table(comparison: Comparison) -> Table | None:
    """Each run's judge, the points it gave, and what standing first brings; `None` where no judge was asked."""
    rows = []
    for place, run in enumerate(comparison.runs):
        if "judge" in run.metrics:
            rows.append([Cell(comparison.names[place], runs=(place,)), *_judge_cells(run.metrics)])
    columns = ["system", "judge", "judged", "system's points", "reference's points", "first place"]
    columns += ["relative score, reference first", "relative score, system first"]
    return Table("The judge", columns, rows, list(JUDGE_NOTES)) if rows else None


def _judge_cells(metrics: dict) -> list[Cell]:
    judge, overall, points, bias = (metrics[name] for name in ("judge", "overall", "mean_scores", "position_bias"))
    served = ", ".join(name for name in judge["served_models"] if name != judge["model"])
    return [
        Cell(judge["model"], f"served as {served}" if served else ""),
        Cell(str(overall["num_items"]), f"of {overall['num_asked']}"),
        _mean_cell(points, "model_score", ".2f"),
        _mean_cell(points, "reference_score", ".2f"),
        _mean_cell(bias, "first_place_advantage", "+.2f"),
        _mean_cell(bias, "relative_score_reference_first", ".1f"),
        _mean_cell(bias, "relative_score_model_first", ".1f"),
    ]


def _mean_cell(figures: dict, name: str, form: str) -> Cell:
    low, high = figures["intervals"][name]
    return Cell(format(figures[name], form), f"({low:{form}} to {high:{form}})")


def not_judged_table(comparison: Comparison) -> Table | None:
    """Every judgement that could not be had, with the reason; `None` if there is none."""
    rows = [
        [Cell(name), Cell(problem["question_id"]), Cell(ORDERS[problem["order"]]), Cell(problem["reason"])]
        for name, problem in _not_judged(comparison)
    ]
    notes = ["A question that was not judged in both orders is in no figure. Start the run again to ask for it."]
    return Table("Not judged", ["system", "question", "order", "why"], rows, notes) if rows else None


def _not_judged(comparison: Comparison) -> Iterator[tuple[str, dict]]:
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        yield from ((name, problem) for problem in run.metrics.get("not_judged", ()))
        blank = run.metrics.get("blank_images", {})
        yield from ((f"{name}, blank images", problem) for problem in blank.get("not_judged", ()))


def served_by_several(comparison: Comparison) -> list[str]:
    """A sentence if the runs were judged by models of several names, though asked for by one."""
    served = {tuple(run.metrics["judge"]["served_models"]) for run in comparison.runs if "judge" in run.metrics}
    if len(served) < 2:
        return []
    names = " and ".join(sorted(", ".join(models) or NOT_THERE for models in served))
    return [f"The judge of these runs was not one model: {names}. Their scores do not compare."]
