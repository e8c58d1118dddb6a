"""Published figures of other systems, shown next to ours but not reproduced or tested against."""

import json
from pathlib import Path


FILE = Path(__file__).with_name("published_figures.json")
NOT_RUN_HERE = (
    "Published figures were not reproduced: their questions, images and answers could not be checked, and no test "
    "compares with them. They are only shown next to figures under the release's protocol."
)


def published_for(metrics: dict) -> tuple[list[dict], list[str]]:
    """
    The published figures on the questions of a run, given its `metrics.json`: rows with `name`, `source` and `figures`
    in percent, and notes on their sources. For other splits or parts, or a benchmark without published figures, there
    are no rows and a note that says so.

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
