"""Tables of where a model looks: its maps and baselines against the boxes of things named in questions."""

from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.tables import NOT_THERE, Table, capitalize, format_p


TITLES = {
    "pointing_accuracy": "pointing accuracy, percent",
    "energy_over_area": "energy over area",
    "auc": "AUC over patches",
}
FORMS = {"pointing_accuracy": ".1f", "energy_over_area": ".2f", "auc": ".3f"}
LABELS = {"center": "middle of the image", "random": "random map"}
NOTE = (
    "Pointing accuracy: how often the largest weight lies in the box. Energy over area: the share of the weight in "
    "the box over the box's share of the image, 1 for a uniform map. AUC: the chance that a patch in the box weighs "
    "more than one outside. 95% intervals by image; a random map's figures are computed, not sampled. Differences are "
    "over the same questions, with uncorrected p-values by image."
)


def grounding_tables(comparison: Comparison) -> list[Table]:
    """For each run with grounding, tables of its maps, baselines and differences: overall and by thing."""
    tables = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        if "grounding" not in run.metrics:
            continue
        grounding = run.metrics["grounding"]
        notes = [NOTE]
        small = ", ".join(f"{group} {number}" for group, number in grounding["small_groups"].items())
        if small:
            notes.append(f"Things with too few questions for separate figures: {small}.")
        if grounding["num_out_of_sight"]:
            notes.append(f"{grounding['num_out_of_sight']} questions are left out: their boxes were cropped off.")
        for group, part in {"all": grounding["overall"], **grounding["groups"]}.items():
            counts = f"{group}, {part['num_questions']} questions about {part['num_images']} images"
            tables.append(Table(f"{name}: {counts}", ["map", *TITLES.values()], _rows(part["maps"])))
        tables[-1].notes.extend(notes)
    return tables


def _rows(maps: dict) -> list[list[str]]:
    rows = [
        [capitalize(_label(name)), *(format_grounding_figure(figures.get(metric), FORMS[metric]) for metric in TITLES)]
        for name, figures in maps.items()
    ]
    for name, figures in maps.items():
        for other in next(iter(figures.values())).get("differences", {}):
            of_metrics = ((figures.get(metric, {}).get("differences", {}).get(other), metric) for metric in TITLES)
            cells = [format_grounding_figure(difference, f"+{FORMS[metric]}") for difference, metric in of_metrics]
            rows.append([f"{capitalize(_label(name))} minus {_label(other)}", *cells])
    return rows


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def format_grounding_figure(figure: dict | None, form: str) -> str:
    """A grounding figure with its interval and, for a difference, its p-value; a dash if it is missing."""
    if figure is None:
        return NOT_THERE
    low, high = figure["interval"]
    p_value = f", p {format_p(figure['p_value'])}" if "p_value" in figure else ""
    return f"{figure['value']:{form}} ({low:{form}} to {high:{form}}){p_value}"
