"""The progress bar of a training run."""

from transformers import ProgressCallback


SHOWN = {
    "loss": "loss",
    "language_modeling_loss": "lm",
    "alignment_loss": "align",
    "matching_accuracy": "matched",
}


class LossProgressCallback(ProgressCallback):
    """One progress bar that shows the losses of the last step; each evaluation is printed on a line above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            shown = {
                short: f"{logs[name]:.{0 if logs[name] >= 100 else 3}f}"
                for name, short in SHOWN.items()
                if name in logs
            }
            self.training_bar.set_postfix(shown, refresh=False)
        elif "eval_loss" in logs:
            self.training_bar.write(f"step {state.global_step}: {describe_evaluation(logs)}")


def describe_evaluation(logs: dict[str, float]) -> str:
    """The main figures of an evaluation, as one line."""
    parts = [f"validation loss {logs['eval_loss']:.3f}"]
    for name, words in (("eval_closed_accuracy", "closed accuracy"), ("eval_open_recall", "open recall")):
        if name in logs:
            parts.append(f"{words} {logs[name]:.1f}%")
    if "eval_recall_at_1_image_to_answer" in logs:
        parts.append(f"recall@1 image to answer {100 * logs['eval_recall_at_1_image_to_answer']:.1f}%")
    return ", ".join(parts)
