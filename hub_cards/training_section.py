"""What a card says of the training, every figure noted with its place."""

import json
from typing import Any

from logramed.hub_cards.results import Figures, ResultFile
from logramed.trainer.arguments import default_arguments


# Arguments that the card's own rows name, and those that say where a run was and how it was shown.
NOT_LISTED = (
    *("output_dir", "logging_dir", "run_name", "report_to", "project", "trackio_space_id", "resume_from_checkpoint"),
    *("train_data", "validation_data", "first_stage_data", "image_folder", "extended_data", "train_ids", "model"),
    "model_name_or_path",
    *("disable_tqdm", "log_level", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_license"),
    *("dataloader_num_workers", "dataloader_pin_memory", "use_cpu", "dry_run", "logging_steps", "save_total_limit"),
    *("distributed_state", "deepspeed_plugin", "cache_image_features", "on_bad_row", "vision_config", "text_config"),
    "accelerator_config",
)
TRAINING_ROWS = (
    ("steps", ("log_history", -1, "step"), "{:,}"),
    ("epochs", ("metrics", "epoch"), "{:g}"),
    ("training samples", ("num_train_samples",), "{:,}"),
    ("weights", ("num_parameters",), "{:,}"),
    ("validation: closed accuracy (%)", ("metrics", "eval_closed_accuracy"), "{:.1f}"),
    ("validation: open recall (%)", ("metrics", "eval_open_recall"), "{:.1f}"),
    ("validation: language-modeling loss", ("metrics", "eval_language_modeling_loss"), "{:.4f}"),
    ("validation: alignment loss", ("metrics", "eval_alignment_loss"), "{:.3f}"),
)
SHARE_ROWS = (
    ("validation: matching accuracy (%)", "eval_matching_accuracy"),
    ("validation: recall@1, image to answer (%)", "eval_recall_at_1_image_to_answer"),
    ("validation: recall@1, image to extended answer (%)", "eval_recall_at_1_image_to_extended"),
)


def describe_training(
    record: ResultFile | None, training: ResultFile | None, figures: Figures, has_curves: bool
) -> dict[str, Any]:
    """What the card says of the training, every figure noted."""
    rows, settings, said = [], [], []
    if record is not None:
        last = len(record.content["starts"]) - 1
        start = record.content["starts"][last]
        said.append(describe_data(record, figures))
        weight = start["arguments"].get("alignment_weight")
        if weight:
            shown = figures.show(record, ["starts", last, "arguments", "alignment_weight"], "{:g}")
            said.append(
                f"The loss is next-token prediction plus {shown} times multi-graph alignment (arXiv:2410.02615) "
                "between images, answers and, where there are any, extended answers."
            )
        else:
            said.append("The loss is next-token prediction alone: no alignment.")
        settings = list_settings(record, figures)
    if training is not None:
        for label, keys, form in TRAINING_ROWS:
            if training.has(*keys):
                rows.append({"label": label, "value": figures.show(training, keys, form)})
        for label, key in SHARE_ROWS:
            if training.has("metrics", key):
                rows.append({"label": label, "value": figures.show(training, ["metrics", key], "{:.1f}", 100)})
        if training.has("metrics", "train_runtime"):
            value = figures.show(training, ["metrics", "train_runtime"], "{:,.1f}", 1 / 60)
            rows.append({"label": "time of the last start (minutes)", "value": value})
    if record is not None:
        rows += list_hardware(record, figures)
    files = [results.name for results in (record, training) if results is not None]
    return {"said": " ".join(said), "rows": rows, "settings": settings, "files": files, "has_curves": has_curves}


def describe_data(record: ResultFile, figures: Figures) -> str:
    """What a model was trained on."""
    last = len(record.content["starts"]) - 1
    start = record.content["starts"][last]
    names = ", ".join(f"`{name}` (fingerprint `{print_[:12]}`)" for name, print_ in start["data"].items())
    text = f"Trained, and validated, on {names}."
    if record.has("starts", last, "generated_data"):
        seed = figures.show(record, ["starts", last, "generated_data", "arguments", "seed"])
        text += f" These are phantoms that `logramed.trainer.phantoms` drew with seed {seed}: no patient is in them."
    return text


def list_hardware(record: ResultFile, figures: Figures) -> list[dict[str, str]]:
    """Rows on machine, software and code."""
    last = len(record.content["starts"]) - 1
    start = record.content["starts"][last]
    place = ["starts", last, "hardware"]
    cores, memory = (
        figures.show(record, [*place, "num_cpu_cores"]),
        figures.show(record, [*place, "memory_gib"], "{:g}"),
    )
    devices = sorted(set(start["hardware"]["accelerators"]))
    accelerators = "no accelerator"
    if devices:
        accelerators = f"{figures.show(record, [*place, 'num_accelerators'])} x {', '.join(devices)}"
    packages = ", ".join(f"{name} {start['packages'][name]}" for name in ("torch", "transformers", "trl", "logramed"))
    rows = [{"label": "hardware", "value": f"{cores} CPU cores, {memory} GiB of memory, {accelerators}"}]
    if last:
        rows.append({"label": "starts of the run, the first included", "value": figures.show(record, ["num_starts"])})
    rows.append({"label": "software", "value": packages})
    revision = start["code"]["git_revision"]
    if revision:
        changes = ", with changes" if start["code"]["git_changes"] else ""
        rows.append({"label": "code", "value": f"git revision `{revision[:12]}`{changes}"})
    return rows


def list_settings(record: ResultFile, figures: Figures) -> list[dict[str, str]]:
    """The arguments of the last start that differ from the defaults of `logramed-train`."""
    last = len(record.content["starts"]) - 1
    arguments, defaults = record.content["starts"][last]["arguments"], default_arguments()
    settings = []
    for name in sorted(arguments):
        value = arguments[name]
        default = defaults.get(name)
        if name in NOT_LISTED or name.startswith(("_", "hub_")) or value == default or not (value or default):
            continue
        keys = ["starts", last, "arguments", name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = figures.show(record, keys, "{!r}") if is_number else json.dumps(value)
        settings.append({"label": name, "value": f"`{shown}`"})
    return settings
