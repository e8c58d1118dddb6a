"""Figures that others have published, to stand beside ours: never run here, and never tested against."""

import json
from pathlib import Path


FILE = Path(__file__).with_name("published_figures.json")
NOT_RUN_HERE = (
    "Published figures were not run here: their questions, images and answers could not be checked, and no test "
    "compares with them. Only figures under the release's protocol stand beside them."
)


def published_for(metrics: dict) -> tuple[list[dict], list[str]]:
    """
    The published figures over the questions of a run, by its `metrics.json`: rows with `name`, `source` and `figures`
    in percent, and notes on where they come from. No rows, and a note that says so, for a benchmark without published
    figures, another split or part of it.

    Example:
        >>> run = {"benchmark": "slake", "split": "test", "subset": "zh", "limit": None}
        >>> published_for({"run": run, "differences": []})
        ([], ['No figures are published for exactly these questions.'])
    """
    content, run = json.loads(FILE.read_text(encoding="utf-8")), metrics["run"]
    over = content["benchmarks"].get(run["benchmark"])
    is_same = over and run["split"] == over["split"] and run["subset"] in over["subsets"]
    if not is_same or run["limit"] is not None or metrics["differences"]:
        return [], ["No figures are published for exactly these questions."]
    rows, notes = [], {}
    for row in content["figures"]:
        if row["benchmark"] == run["benchmark"]:
            source, share = content["sources"][row["source"]], row["training_data_share"]
            name = row["method"] if share is None else f"{row['method']}, {share:g}% of pre-training"
            rows.append({"name": name, "source": source["short"], "figures": row["figures"]})
            notes[source["note"]] = None
    return rows, [NOT_RUN_HERE, *notes]
