"""Tables of where a model looks: its maps against the boxes of what questions name, beside the baselines."""

from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.tables import Cell, Table, capitalize, format_p


TITLES = {
    "pointing_accuracy": "pointing accuracy, percent",
    "energy_over_area": "energy over area",
    "auc": "AUC over patches",
}
FORMS = {"pointing_accuracy": ".1f", "energy_over_area": ".2f", "auc": ".3f"}
LABELS = {"center": "middle of the image", "random": "random map"}
SIGNIFICANT = 0.05
NOTES = (
    "Pointing accuracy: how often the largest weight lies in the box. Energy over area: the share of the weight in "
    "the box over the box's share of the image, 1 for an even map. AUC: the chance that a patch of the box weighs "
    "more than another. 95% intervals by image; a random map's figures are computed, not drawn.",
    "Differences are of the same questions, with uncorrected p-values by image.",
)


def grounding_tables(comparison: Comparison) -> list[Table]:
    """For each run that measured it, a table of its maps and baselines, and one of its differences; else none."""
    tables = []
    for place, run in enumerate(comparison.runs):
        if "grounding" in run.metrics:
            name = f"{comparison.names[place]}: " if len(comparison.runs) > 1 else ""
            tables += [
                _figures_table(run.metrics["grounding"], name),
                _differences_table(run.metrics["grounding"], name),
            ]
    return tables


def _figures_table(grounding: dict, name: str) -> Table:
    rows = []
    for title, part in _parts(grounding):
        rows.append([Cell(title)])
        for map_name, figures in part["maps"].items():
            cells = [_figure_cell(figures.get(metric), FORMS[metric]) for metric in TITLES]
            rows.append([Cell(capitalize(_label(map_name))), *cells])
    small = ", ".join(f"{group} {number}" for group, number in grounding["small_groups"].items())
    notes = [*NOTES[:1], f"Things with too few questions for figures of their own: {small}."] if small else [NOTES[0]]
    if grounding["num_out_of_sight"]:
        notes.append(f"{grounding['num_out_of_sight']} questions are left out: their boxes were cropped off.")
    return Table(
        f"{name}where the model looks" if name else "Where the model looks", ["map", *TITLES.values()], rows, notes
    )


def _differences_table(grounding: dict, name: str) -> Table:
    rows = []
    for title, part in _parts(grounding):
        rows.append([Cell(title)])
        for map_name, figures in part["maps"].items():
            others = next(iter(figures.values())).get("differences", {})
            for other in others:
                cells = [_difference_cell(figures, metric, other) for metric in TITLES]
                rows.append([Cell(f"{capitalize(_label(map_name))} minus {_label(other)}"), *cells])
    return Table(
        f"{name}maps minus baselines" if name else "Maps minus baselines", ["maps", *TITLES.values()], rows, [NOTES[1]]
    )


def _parts(grounding: dict) -> list[tuple[str, dict]]:
    """All questions, and each group, with its counts in words."""
    parts = {"All": grounding["overall"], **grounding["groups"]}
    return [
        (f"{capitalize(name)}: {part['num_questions']} questions about {part['num_images']} images", part)
        for name, part in parts.items()
    ]


def _label(map_name: str) -> str:
    return LABELS.get(map_name, map_name.replace("_", " "))


def _figure_cell(figure: dict | None, form: str) -> Cell:
    if figure is None:
        return Cell("-")
    low, high = figure["interval"]
    return Cell(format(figure["value"], form), f"({low:{form}} to {high:{form}})")


def _difference_cell(figures: dict, metric: str, other: str) -> Cell:
    if metric not in figures:
        return Cell("-")
    found, form = figures[metric]["differences"][other], f"+{FORMS[metric]}"
    low, high = found["interval"]
    is_clear = found["p_value"] < SIGNIFICANT
    note = f"({low:{form}} to {high:{form}}), p {format_p(found['p_value'])}"
    return Cell(format(found["value"], form), note, is_strong=is_clear)
