"""The card of a model or an adapter, from the files that training and evaluation wrote."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData
from PIL import Image

from logramed.eval.comparison.run_folder import MAIN_FIGURES, RunFolder, count_of
from logramed.hub_cards.results import (
    PLOT,
    RUN_RECORD,
    TRAINING_RESULTS,
    Evaluation,
    Figures,
    ResultFile,
    hub_ids,
    read_results,
)


TEMPLATES = Path(__file__).parent / "templates"
FIGURES_FILE, EXAMPLES_FILE = "card_figures.json", "examples/examples.json"
NUM_EXAMPLES, EXAMPLE_SIDE = 4, 256
LABELS = {
    "open_recall": "open recall",
    "closed_accuracy": "closed accuracy",
    "accuracy": "accuracy",
    "relative_score": "score relative to the reference",
    "rouge_l": "ROUGE-L",
    "clinical_f1": "clinical F1",
}
# Arguments that the card's own rows name, and those that say where a run was and how it was shown.
NOT_LISTED = (
    *("output_dir", "logging_dir", "run_name", "report_to", "project", "trackio_space_id", "resume_from_checkpoint"),
    *("train_data", "validation_data", "first_stage_data", "image_folder", "extended_data", "train_ids", "model"),
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


@dataclass
class Card:
    """
    A card and what travels with it.

    Attributes:
        text (`str`): `README.md`.
        files (`dict[str, bytes]`): Result files, figures and pictures beside it, by their paths there.
        images (`set[str]`): Those of `files` that are images fit for sharing.
    """

    text: str
    files: dict[str, bytes] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)


@cache
def data_sets() -> dict[str, dict[str, Any]]:
    """What cards call the benchmarks."""
    return yaml.safe_load((Path(__file__).parent / "data_sets.yaml").read_text(encoding="utf-8"))


def render(template: str, **values: Any) -> str:
    """Fill a template; a name that it does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(**values)


def write_model_card(
    folder: Path,
    repo_id: str,
    *,
    kind: str = "model",
    license: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    datasets: Sequence[str] = (),
    base_models: Sequence[str] = (),
    share_images_of: Sequence[str] = (),
    language: str = "en",
    is_local: bool = False,
) -> Card:
    """
    The card of the model in `folder`.

    Args:
        folder (`Path`): As a training run or `save_pretrained` leaves it.
        repo_id (`str`): Where it will be on the Hub.
        kind (`str`): `"model"` or `"adapter"`.
        license (`str`, *optional*): Identifier of the licence; without one the card names none.
        evaluations: Of this very model (see `read_evaluations`).
        datasets, base_models: Ids on the Hub, beside those that the record of the run names.
        share_images_of: Benchmarks whose images may be shown, beside the generated ones.
        language (`str`, *optional*, defaults to `"en"`): Code of the language that it answers in.
        is_local (`bool`, *optional*, defaults to `False`): It is for this machine, where a base model may be a folder.

    Raises:
        ValueError: If an adapter has no base model on the Hub, or a file cannot be read.
    """
    figures, files = Figures(), {}
    record = _read_if_there(folder, RUN_RECORD)
    if record is not None:
        count_parts(record)
    training = _read_if_there(folder, TRAINING_RESULTS)
    if training is not None:
        training.content["log_history"] = training.content["log_history"][-1:]  # the curves show the rest
    for results in (record, training, *(evaluation.results for evaluation in evaluations)):
        if results is not None:
            files[results.name] = json.dumps(results.content, indent=2, ensure_ascii=False).encode() + b"\n"
    known_bases = [*base_models, *(record.content["starts"][-1].get("base_models", []) if record else [])]
    known_data = [*datasets, *(record.content["starts"][-1]["data"] if record else [])]
    if is_local and record is not None:
        known_bases.append(json.loads((folder / RUN_RECORD).read_text())["starts"][-1]["arguments"]["model"])
    base_models, datasets = known_bases if is_local else hub_ids(known_bases), hub_ids(known_data)
    if kind == "adapter" and not base_models:
        raise ValueError(
            f"The adapter in {folder} names no base model on the Hub, without which nobody can load it. Publish the "
            "base model, and name it with `--base_model`."
        )
    examples, example_files = choose_examples(evaluations, share_images_of)
    files |= example_files
    has_curves = (folder / PLOT).is_file() and training is not None
    if has_curves:
        files[PLOT] = (folder / PLOT).read_bytes()
    name = repo_id.rpartition("/")[2]
    shown = [describe_evaluation(evaluation, figures) for evaluation in evaluations]
    opening = describe_model(folder, kind, base_models, record, figures)
    told = describe_training(record, training, figures, has_curves) if record or training else None
    if figures.noted:
        files[FIGURES_FILE] = json.dumps(figures.noted, indent=1).encode() + b"\n"
    front_matter = describe_metadata(kind, name, license, language, hub_ids(base_models), datasets, evaluations)
    text = render(
        "model_card.md.jinja",
        front_matter=f"---\n{front_matter}\n---",
        kind=kind,
        name=name,
        repo_id=repo_id,
        opening=opening,
        base_models=base_models,
        first_question=json.dumps(examples[0]["question"] if examples else "Is there a lesion?", ensure_ascii=False),
        evaluations=shown,
        examples=[{key: escape_cell(value) for key, value in example.items()} for example in examples],
        examples_have_images=bool(examples) and all("image" in example for example in examples),
        examples_said="The first questions about the first images of the benchmark, in its order: nobody chose them.",
        training=told,
        limits=list_limits(evaluations, record),
        figures_file=FIGURES_FILE if figures.noted else None,
    )
    pictures = {name for name in files if name.endswith(".png")}
    return Card(text, files, pictures)


def count_parts(record: ResultFile) -> None:
    """Note in the record of a run how many starts and accelerators it lists, so that the card can point at it."""
    record.content["num_starts"] = len(record.content["starts"])
    for start in record.content["starts"]:
        start["hardware"]["num_accelerators"] = len(start["hardware"]["accelerators"])


def _read_if_there(folder: Path, name: str) -> ResultFile | None:
    return read_results(folder / name, name) if (folder / name).is_file() else None


def describe_metadata(
    kind: str,
    name: str,
    license: str | None,
    language: str,
    base_models: Sequence[str],
    datasets: Sequence[str],
    evaluations: Iterable[Evaluation],
) -> str:
    """The front matter, as YAML. What is not known is left out."""
    results = [result for evaluation in evaluations for result in list_results(evaluation)]
    data = ModelCardData(
        language=language,
        license=license,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["logramed", "medical", "visual-question-answering", *(["lora"] if kind == "adapter" else [])],
        base_model=list(base_models) or None,
        datasets=list(datasets) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n")


def list_results(evaluation: Evaluation) -> list[EvalResult]:
    """The main figures, as `model-index` has them, with counts and protocol."""
    run, metrics = evaluation.run.run, evaluation.results
    known = data_sets()[run["benchmark"]]
    results = []
    for figure in figure_names(evaluation):
        low, high = metrics.get("overall", "intervals", figure)
        results.append(
            EvalResult(
                task_type=known["task"],
                dataset_type=run["benchmark"],
                dataset_name=known["name"],
                dataset_split=run["split"],
                dataset_config=run.get("subset"),
                dataset_args={"num_questions": run["num_questions"], "data_fingerprint": run["data_fingerprint"]},
                metric_type=figure,
                metric_name=f"{LABELS[figure]} (percent)",
                metric_value=round(metrics.get("overall", figure), 2),
                metric_args={
                    "protocol": metrics.get("protocol"),
                    "num_items": count_of(metrics.get("overall"), figure),
                    "interval_95": [round(low, 2), round(high, 2)],
                    "max_new_tokens": run["max_new_tokens"],
                },
            )
        )
    return results


def figure_names(evaluation: Evaluation) -> list[str]:
    """The main figures of the task that this evaluation has."""
    task = evaluation.results.get("task")
    return [name for name in MAIN_FIGURES[task] if evaluation.results.has("overall", name)]


def describe_evaluation(evaluation: Evaluation, figures: Figures) -> dict[str, Any]:
    """What the card says of one evaluation, every figure noted."""
    results, run = evaluation.results, evaluation.run.run
    known = data_sets()[run["benchmark"]]
    has_blank = results.has("blank_images", "overall")
    rows = []
    for figure in figure_names(evaluation):
        low, high = (figures.show(results, ["overall", "intervals", figure, end], "{:.1f}") for end in (0, 1))
        blank = ""
        if has_blank:
            blank = figures.show(results, ["blank_images", "overall", figure], "{:.1f}")
        rows.append(
            {
                "label": LABELS[figure],
                "value": figures.show(results, ["overall", figure], "{:.1f}"),
                "interval": f"{low} to {high}",
                "count": figures.show(results, count_keys(results, figure)),
                "blank": blank,
            }
        )
    count = figures.show(results, ["run", "num_questions"])
    subset = f", {run['subset']}" if run.get("subset") else ""
    said = f"{count} questions of {known['name']}{subset}, {run['split']} split, {results.get('protocol')} protocol"
    return {
        "title": known["name"],
        "said": f"{said} of `logramed-eval`, answered by greedy decoding.",
        "rows": rows,
        "has_blank": has_blank,
        "notes": list_notes(results, figures),
        "file": results.name,
    }


def count_keys(results: ResultFile, figure: str) -> list[str]:
    """Where the number of questions behind a figure stands."""
    if results.has("overall", "counts", figure):
        return ["overall", "counts", figure]
    kind = figure.split("_")[0]
    return ["overall", f"num_{kind}" if kind in ("open", "closed") else "num_items"]


def list_notes(results: ResultFile, figures: Figures) -> list[str]:
    """What a reader of the figures has to know."""
    notes = []
    if results.has("run", "limit"):
        limit = figures.show(results, ["run", "limit"])
        notes.append(f"Only the first {limit} questions were asked: these are not the benchmark's figures.")
    for difference in results.content.get("differences", []):
        notes.append(f"The questions differ from the known split: {difference}.")
    if results.has("blank_images", "overall"):
        notes.append('"With blank images": the same model, shown an evenly grey image in place of each.')
    if results.has("constant_answer"):
        constant = figures.show(results, ["constant_answer", "closed_accuracy"], "{:.1f}")
        answer = results.get("constant_answer", "answer")
        notes.append(f'The constant answer "{answer}" has a closed accuracy of {constant}.')
    if results.has("leakage", "num_triplets_in_training"):
        images = figures.show(results, ["leakage", "num_test_images_in_training"])
        of_images = figures.show(results, ["leakage", "num_test_images"])
        triplets = figures.show(results, ["leakage", "num_triplets_in_training"])
        notes.append(
            f"{images} of {of_images} test images and {triplets} triplets of image, question and answer also stand in "
            "the benchmark's training split."
        )
    return notes


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
    from logramed.trainer.arguments import default_arguments

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


def describe_model(
    folder: Path, kind: str, base_models: Sequence[str], record: ResultFile | None, figures: Figures
) -> str:
    """The first sentences."""
    what = "An adapter (LoRA) for" if kind == "adapter" else "A"
    sentence = f"{what} LoGra-Med: a vision-language model that answers questions about medical images."
    settings = _read_if_there(folder, "config.json")
    if settings is not None:
        tower = settings.get("vision_config", "model_type").removesuffix("_vision_model")
        size = figures.show(settings, ["vision_config", "image_size"])
        sentence += (
            f" Its vision tower is of the kind {tower} and sees {size} x {size} pixels, its language model is of the "
            f"kind {settings.get('text_config', 'model_type')}."
        )
    if hub_ids(base_models):
        links = ", ".join(f"[{name}](https://huggingface.co/{name})" for name in hub_ids(base_models))
        sentence += f" Made from {links}."
    elif record is not None and record.get("starts", -1, "arguments").get("model") is None:
        sentence += " It was trained from new weights."
    else:
        sentence += " The record of its training does not name what it was made from."
    return sentence


def list_limits(evaluations: Sequence[Evaluation], record: ResultFile | None) -> list[str]:
    """What the model cannot be trusted with, as far as the files tell."""
    limits = ["It was never tested on patients, in a clinic, or against clinicians."]
    if not evaluations:
        limits.append("No evaluation of it is published here: how well it answers is not known.")
    for evaluation in evaluations:
        results = evaluation.results
        if not (results.has("constant_answer") and results.has("overall", "closed_accuracy")):
            continue
        low = results.get("overall", "intervals", "closed_accuracy", 0)
        if low <= results.get("constant_answer", "closed_accuracy"):
            limits.append(
                f"On closed questions of {data_sets()[evaluation.benchmark]['name']} it is not shown to be better "
                "than one constant answer to all of them."
            )
    if record is not None and record.has("starts", -1, "generated_data"):
        limits.append("It has seen generated phantoms only: of real images it knows nothing.")
    limits.append(
        "It was trained and tested in the languages and on the kinds of images of its data; others may fail."
    )
    limits.append("It gives one answer whether it knows or not, and says nothing of how sure it is.")
    limits.append("Bias of its data towards hospitals, devices, ages, sexes and origins was not measured.")
    return limits


def choose_examples(
    evaluations: Sequence[Evaluation], share_images_of: Sequence[str] = ()
) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """
    The first questions about the first images of the first evaluation, and the files that go with them.

    Their images go along where they are generated, or `share_images_of` names the benchmark.
    """
    unknown = [name for name in share_images_of if name not in data_sets()]
    if unknown:
        raise ValueError(f"`share_images_of` names {unknown[0]!r}, which is no benchmark: {', '.join(data_sets())}.")
    for evaluation in evaluations:
        shows = data_sets()[evaluation.benchmark]["shows_images"] or evaluation.benchmark in share_images_of
        rows = first_of_images(evaluation.run)
        files: dict[str, bytes] = {}
        examples = []
        for number, row in enumerate(rows):
            example = {key: str(row[key]) for key in ("question", "prediction", "answer")}
            path = Path(evaluation.run.images.get(row["question_id"], ""))
            if shows and path.is_file():
                example["image"] = f"examples/{number}.png"
                example["image_said"] = f"Image {number + 1}"
                files[example["image"]] = shrink_image(path)
            examples.append(example)
        if examples:
            files[EXAMPLES_FILE] = json.dumps(examples, indent=1, ensure_ascii=False).encode() + b"\n"
            return examples, files
    return [], {}


def first_of_images(run: RunFolder) -> list[dict[str, Any]]:
    """The first question about each of the first images."""
    first: dict[str, dict[str, Any]] = {}
    for row in run.rows.values():
        first.setdefault(row["image"], row)
    return list(first.values())[:NUM_EXAMPLES]


def shrink_image(path: Path) -> bytes:
    """A PNG of at most `EXAMPLE_SIDE` pixels a side, without what the file says beside its pixels."""
    with Image.open(path) as image:
        bare = Image.new(image.mode, image.size)
        bare.paste(image)
    factor = EXAMPLE_SIDE / max(bare.size)
    size = (max(1, round(bare.width * factor)), max(1, round(bare.height * factor)))
    file = io.BytesIO()
    bare.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def escape_cell(text: str) -> str:
    """
    A text in a cell of a Markdown table.

    Example:
        >>> escape_cell("left | right\\nlung <b>")
        'left \\\\| right lung &lt;b>'
    """
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())
