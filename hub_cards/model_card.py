"""The card of a model or an adapter, from the files that training and evaluation wrote."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from logramed.hub_cards.evaluation_section import data_sets, describe_evaluation, list_results
from logramed.hub_cards.example_answers import choose_examples, escape_cell
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
from logramed.hub_cards.training_section import describe_training


TEMPLATES = Path(__file__).parent / "templates"
FIGURES_FILE = "card_figures.json"
PARTS_FILE = "parts.json"  # what a model was joined or converted from


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
    figures = Figures()
    record, training = read_run(folder)
    base_models, datasets = name_origins(folder, record, base_models, datasets, is_local)
    if kind == "adapter" and not base_models:
        raise ValueError(
            f"The adapter in {folder} names no base model on the Hub, without which nobody can load it. Publish the "
            "base model, and name it with `--base_model`."
        )
    examples, files = choose_examples(evaluations, share_images_of)
    for results in (record, training, *(evaluation.results for evaluation in evaluations)):
        if results is not None:
            files[results.name] = json.dumps(results.content, indent=2, ensure_ascii=False).encode() + b"\n"
    has_curves = (folder / PLOT).is_file() and training is not None
    if has_curves:
        files[PLOT] = (folder / PLOT).read_bytes()
    name = repo_id.rpartition("/")[2]
    recorded = recorded_license(folder)
    licence = recorded if recorded.get("license") == license else {"license": license}
    front_matter = describe_metadata(kind, name, licence, language, hub_ids(base_models), datasets, evaluations)
    first_question = examples[0]["question"] if examples else "Is there a lesion?"
    text = render(
        "model_card.md.jinja",
        front_matter=f"---\n{front_matter}\n---",
        kind=kind,
        has_code=any(folder.glob("*_logramed.py")),
        name=name,
        repo_id=repo_id,
        opening=describe_model(folder, kind, base_models, record, figures),
        base_models=base_models,
        first_question=json.dumps(first_question, ensure_ascii=False),
        evaluations=[describe_evaluation(evaluation, figures) for evaluation in evaluations],
        examples=[{key: escape_cell(value) for key, value in example.items()} for example in examples],
        examples_have_images=bool(examples) and all("image" in example for example in examples),
        examples_said="The first questions about the first images of the benchmark, in its order: nobody chose them.",
        training=describe_training(record, training, figures, has_curves) if record or training else None,
        limits=list_limits(evaluations, record),
        figures_file=FIGURES_FILE if figures.noted else None,
    )
    if figures.noted:
        files[FIGURES_FILE] = json.dumps(figures.noted, indent=1).encode() + b"\n"
    return Card(text, files, {name for name in files if name.endswith(".png")})


def recorded_license(folder: Path) -> dict[str, str]:
    """The licence of a converted model, as its folder records it under the names of the front matter."""
    parts = _read_if_there(folder, PARTS_FILE)
    names = ("license", "license_name", "license_link")
    return {} if parts is None else {name: parts.content[name] for name in names if name in parts.content}


def read_run(folder: Path) -> tuple[ResultFile | None, ResultFile | None]:
    """The record of a run and its results, each None where there is none."""
    record, training = (_read_if_there(folder, name) for name in (RUN_RECORD, TRAINING_RESULTS))
    if record is not None:
        count_parts(record)
    if training is not None:
        training.content["log_history"] = training.content["log_history"][-1:]  # the curves show the rest
    return record, training


def name_origins(
    folder: Path, record: ResultFile | None, base_models: Sequence[str], datasets: Sequence[str], is_local: bool
) -> tuple[list[str], list[str]]:
    """The base models and data sets that the user, the record of a run or an adapter names, as ids on the Hub."""
    if record is None:  # converted, or of a trainer that was called from Python
        parts = _read_if_there(folder, PARTS_FILE)
        base_models = base_models or ([] if parts is None else parts.content.get("base_models", []))
        adapter = _read_if_there(folder, "adapter_config.json")
        base = "" if adapter is None else adapter.content.get("base_model_name_or_path") or ""
        return hub_ids(base_models or ([] if Path(base).is_dir() else [base])), hub_ids(datasets)
    start = record.content["starts"][-1]
    base_models = hub_ids([*base_models, *start.get("base_models", [])])
    if is_local and not base_models:  # a folder of this machine, whose path the record here has lost
        whole = json.loads((folder / RUN_RECORD).read_text(encoding="utf-8"))
        base_models = [model for model in [whole["starts"][-1]["arguments"]["model"]] if model]
    return base_models, hub_ids([*datasets, *start["data"]])


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
    license: Mapping[str, str | None],
    language: str,
    base_models: Sequence[str],
    datasets: Sequence[str],
    evaluations: Iterable[Evaluation],
) -> str:
    """The front matter, as YAML. What is not known is left out."""
    results = [result for evaluation in evaluations for result in list_results(evaluation)]
    data = ModelCardData(
        language=language,
        **license,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["logramed", "medical", "visual-question-answering", *(["lora"] if kind == "adapter" else [])],
        base_model=list(base_models) or None,
        datasets=list(datasets) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n")


def describe_model(
    folder: Path, kind: str, base_models: Sequence[str], record: ResultFile | None, figures: Figures
) -> str:
    """The first sentences."""
    settings = _read_if_there(folder, "config.json")
    model_type = "logramed" if settings is None else settings.content.get("model_type", "logramed")
    is_ours = model_type == "logramed"
    what = "An adapter (LoRA) for" if kind == "adapter" else "A"
    what += " LoGra-Med: a vision-language model" if is_ours else f" vision-language model (`{model_type}`)"
    sentence = f"{what} that answers questions about medical images."
    if settings is not None and is_ours:
        tower = settings.get("vision_config", "model_type").removesuffix("_vision_model")
        size = figures.show(settings, ["vision_config", "image_size"])
        sentence += (
            f" Its vision tower is of the kind {tower} and sees {size} x {size} pixels, its language model is of the "
            f"kind {settings.get('text_config', 'model_type')}."
        )
    parts = _read_if_there(folder, PARTS_FILE)
    if record is None and parts is not None and parts.has("format"):
        sentence += f" Converted from {parts.get('source')}, a checkpoint in the form of {parts.get('format')}."
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
