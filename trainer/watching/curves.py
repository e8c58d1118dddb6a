"""Plots of a training run."""

from pathlib import Path

from matplotlib.figure import Figure


# Title, names in the log (the first for training, all for evaluations), factor to the unit of the title.
PANELS = (
    ("Total loss", ("loss",), 1),
    ("Language-modeling loss", ("language_modeling_loss",), 1),
    ("Alignment loss", ("alignment_loss",), 1),
    ("Matching accuracy (%)", ("matching_accuracy",), 100),
    ("Recall@1 on validation (%)", ("recall_at_1_image_to_answer", "recall_at_1_answer_to_image"), 100),
    ("Answers on validation (%)", ("closed_accuracy", "open_recall"), 1),
)


def plot_curves(log_history: list[dict[str, float]], path: str | Path) -> None:
    """
    Plot losses, matching accuracy and validation figures over the steps of a run (`trainer.state.log_history`) as PNG.
    Panels without values are left out; raises `ValueError` if the log has none of the figures.
    """
    drawn = [
        panel for panel in PANELS if any(_series(log_history, f"{kind}{panel[1][0]}")[0] for kind in ("", "eval_"))
    ]
    if not drawn:
        raise ValueError("The log holds no losses to draw.")
    num_columns = min(3, len(drawn))
    num_rows = -(-len(drawn) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.1 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axis, (title, names, factor) in zip(axes, drawn, strict=False):
        for name, style in ((names[0], "-"), *((f"eval_{name}", "o-") for name in names)):
            steps, values = _series(log_history, name)
            if steps:
                axis.plot(steps, [factor * value for value in values], style, linewidth=1, markersize=3, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.25)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)


def _series(log_history, name):
    points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
    return [step for step, _ in points], [value for _, value in points]
