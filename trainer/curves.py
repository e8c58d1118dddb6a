"""Pictures of a training run."""

from pathlib import Path

from matplotlib.figure import Figure


# Title, name in the log, factor to the unit of the title.
PANELS = (
    ("Total loss", "loss", 1),
    ("Language-modeling loss", "language_modeling_loss", 1),
    ("Alignment loss", "alignment_loss", 1),
    ("Matching accuracy (%)", "matching_accuracy", 100),
    ("Recall@1 on validation (%)", "recall_at_1_image_to_answer", 100),
    ("Answers on validation (%)", "closed_accuracy", 1),
    ("Gradient norm of the language-modeling loss", "gradient_norm_language_modeling", 1),
    ("Gradient norm of the alignment loss", "gradient_norm_alignment", 1),
    ("Cosine of both gradients", "gradient_cosine", 1),
    ("Tokens a second", "tokens_per_second", 1),
)
EXTRA_LINES = {
    "recall_at_1_image_to_answer": (("recall_at_1_answer_to_image", "answer to image"),),
    "closed_accuracy": (("open_recall", "open recall"),),
}
FIRST_LINE = {"recall_at_1_image_to_answer": "image to answer", "closed_accuracy": "closed accuracy"}
SMOOTHING = 0.9  # share of the running mean that a step keeps


def plot_curves(log_history: list[dict[str, float]], path: str | Path) -> None:
    """
    Draw losses, matching accuracy and validation figures over the steps of a run, as PNG.

    Args:
        log_history (`list[dict[str, float]]`): `trainer.state.log_history`. What it has no values of is left out.
        path (`str` or `Path`): Where to write the picture.

    Raises:
        ValueError: If the log holds none of the figures.
    """
    panels = [panel for panel in PANELS if any(_series(log_history, prefix + panel[1])[0] for prefix in ("", "eval_"))]
    if not panels:
        raise ValueError("The log holds no losses to draw.")
    num_columns = min(3, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3.1 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axis, (title, name, factor) in zip(axes, panels, strict=False):
        _draw_panel(axis, log_history, name, factor)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=120)


def _draw_panel(axis, log_history, name, factor):
    steps, values = _series(log_history, name)
    if steps:
        values = [factor * value for value in values]
        axis.plot(steps, values, color="#9ecae1", linewidth=0.8)
        axis.plot(steps, _smooth(values), color="#08519c", linewidth=1.6, label="training")
    lines = ((name, FIRST_LINE.get(name, "validation")), *EXTRA_LINES.get(name, ()))
    for (line_name, label), color in zip(lines, ("#e6550d", "#31a354"), strict=False):
        steps, values = _series(log_history, f"eval_{line_name}")
        if steps:
            axis.plot(steps, [factor * value for value in values], "o-", color=color, markersize=3, label=label)
    axis.legend(fontsize=7, frameon=False)


def _series(log_history, name):
    points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values):
    """Running mean with exponentially falling weights, the first values not counted too much."""
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(total / weight)
    return smoothed
