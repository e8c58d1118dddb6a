"""Which tables a report has, by section."""

from logramed.eval.comparison.grounding_tables import grounding_tables
from logramed.eval.comparison.judge_tables import judge_table, not_judged_table
from logramed.eval.comparison.published_figures import (
    PublishedFigures,
    oddities_of,
    provenance_lines,
    published_for,
    why_not_beside,
)
from logramed.eval.comparison.runs import Comparison
from logramed.eval.comparison.tables import (
    Table,
    all_figures_table,
    bootstrap_table,
    figures_table,
    group_names,
    group_tables,
    leakage_table,
    mcnemar_table,
    published_table,
    settings_table,
    sight_table,
)


def report_tables(comparison: Comparison) -> dict[str, list[Table]]:
    """The tables of each section, in the order of the report; sections without have an empty list."""
    tables = {
        "figures": [figures_table(comparison)],
        "judge": [judge_table(comparison), not_judged_table(comparison)],
        "tests": [bootstrap_table(comparison), mcnemar_table(comparison)],
        "sight": [sight_table(comparison), leakage_table(comparison)],
        "groups": [table for group in group_names(comparison) for table in group_tables(comparison, group)],
        "grounding": grounding_tables(comparison),
        "published": [release_table(comparison)],
        "all_figures": [all_figures_table(comparison)],
        "settings": [settings_table(comparison)],
    }
    return {section: [table for table in of_section if table] for section, of_section in tables.items()}


def release_table(comparison: Comparison) -> Table | None:
    """Figures under the release's protocol, beside published ones where there are any; `None` if no run has them."""
    if not any(run.release_protocol for run in comparison.runs):
        return None
    published = published_beside(comparison)
    return published_table(comparison, published, _published_notes(comparison) if published else [])


def published_beside(comparison: Comparison) -> list[PublishedFigures]:
    """Published figures that may stand beside those of the runs; none where no run has the release's protocol."""
    return [] if why_no_published(comparison) else published_for(comparison.runs[0].run["benchmark"])


def why_no_published(comparison: Comparison) -> str | None:
    """Why no published figures stand beside those of the runs; `None` if some do."""
    reason = why_not_beside(comparison.runs[0].run)
    differences = comparison.runs[0].metrics.get("differences")
    if reason is None and differences:
        reason = f"Published figures are over the known split; here it has {', '.join(differences)}."
    if reason is None and not any(run.release_protocol for run in comparison.runs):
        reason = "No run has figures under the release's protocol, the only ones that may stand beside published ones."
    return reason


def _published_notes(comparison: Comparison) -> list[str]:
    return [
        "Published figures were not run here: their questions, images and answers could not be checked, and no test "
        "compares with them. Only our figures under the release's protocol stand beside them.",
        *provenance_lines(published_beside(comparison)),
        *oddities_of(comparison.runs[0].run["benchmark"]),
    ]
