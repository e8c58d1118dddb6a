"""
Draws what `objective.py --output FILE` measured:

    python -m tests.benchmarks.objective_plot RUNS.jsonl ... --output trainer/alignment/objective.png

Left: held-out recall over training, of the first setting that has most objectives. Middle: the same runs' matching
accuracy on training batches beside their recall. Right: in every setting, how far the default ends above InfoNCE.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tests.benchmarks.objective import mean_and_half_width


BASELINE, DEFAULT = "infonce", "multi_graph"
SHOWN = {  # objectives that are drawn: label, color, and where the label of a point stands
    "multi_graph": ("multi_graph (default)", "#1a7f37", (-8, 8)),
    "infonce": ("InfoNCE", "#1f5fa8", (-8, -14)),
    "form_a": ("form A", "#8250b5", (-8, 0)),
    "multi_graph_coupled": ("multi_graph, coupled", "#c77700", (-8, -16)),
    "paper": ("paper", "#c62828", (-8, 4)),
}


def read_runs(paths: Sequence[Path]) -> dict[tuple, dict[str, dict[int, dict]]]:
    """Runs by setting (nodes, feature size, view noise, shift), objective and seed."""
    settings = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            options = record["options"]
            setting = tuple(options[name] for name in ("batch_size", "feature_size", "view_noise", "shift"))
            for number, run in enumerate(record["runs"]):
                run["report_every"] = options["report_every"]
                settings[setting][record["objective"]][options["first_seed"] + number] = run
    return settings


def paired_difference(objectives: dict[str, dict[int, dict]]) -> tuple[float, float]:
    """How far the default ends above InfoNCE on the seeds of both."""
    seeds = objectives[BASELINE].keys() & objectives[DEFAULT].keys()
    return mean_and_half_width(
        [
            objectives[DEFAULT][seed]["recalls"][-1] - objectives[BASELINE][seed]["recalls"][-1]
            for seed in sorted(seeds)
        ]
    )


def draw(settings: dict[tuple, dict[str, dict[int, dict]]], path: Path) -> None:
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curves, evidence, forest = figure.subplots(1, 3)
    setting, objectives = max(settings.items(), key=lambda item: len(item[1]))
    for name, (label, color, offset) in SHOWN.items():
        runs = list(objectives.get(name, {}).values())
        if not runs:
            continue
        points = [mean_and_half_width(values) for values in zip(*(run["recalls"] for run in runs), strict=True)]
        steps = [number * runs[0]["report_every"] for number in range(len(points))]
        means, widths = zip(*points, strict=True)
        curves.errorbar(steps, means, widths, label=label, color=color, capsize=2, linewidth=1.6)
        matched = sum(run["accuracy"] for run in runs) / len(runs)
        evidence.plot(matched, means[-1], "o", color=color)
        evidence.annotate(
            label, (matched, means[-1]), xytext=offset, textcoords="offset points", ha="right", fontsize=9
        )
    curves.set(xlabel="training step", ylabel="recall@1, held out", title=describe(setting))
    curves.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.42))
    evidence.set(
        xlabel="matching accuracy, training batches", ylabel="recall@1, held out", xlim=(0, 1.03), ylim=(0, 0.8)
    )
    evidence.set_title("Matching accuracy is no evidence")
    compared = [key for key in sorted(settings, reverse=True) if {BASELINE, DEFAULT} <= settings[key].keys()]
    for place, key in enumerate(compared):
        mean, width = paired_difference(settings[key])
        forest.errorbar(mean, place, xerr=width, fmt="o", color=SHOWN[DEFAULT][1], capsize=3)
    forest.set_yticks(range(len(compared)), [describe(key) for key in compared], fontsize=8)
    forest.axvline(0, color="black", linewidth=0.8)
    forest.set(xlabel="recall@1 at the end, above InfoNCE (95%)", title="multi_graph against InfoNCE")
    for axis in (curves, evidence, forest):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def describe(setting: tuple) -> str:
    num_nodes, feature_size, view_noise, shift = setting
    return f"N={num_nodes}, D={feature_size}, " + ("shifted batches" if shift else f"view noise {view_noise:g}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the runs of the objective benchmark.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    draw(read_runs(options.runs), options.output)
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()
