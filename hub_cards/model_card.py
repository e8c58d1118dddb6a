"""Write the card of a model or adapter from the files of training and evaluation."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from logramed.eval.benchmarks import BENCHMARKS
from logramed.eval.comparison.run_folder import MAIN_FIGURES
from logramed.eval.comparison.summary import baseline_lines, question_lines
from logramed.hub_cards.results import Evaluation, as_json, hub_ids, read_results


TEMPLATES = Path(__file__).parent / "templates"
RUN_RECORD, TRAINING_RESULTS, CURVES = "run.json", "train_metrics.json", "curves.png"
BASE = "base_model_name_or_path"
PARTS_FILE = "parts.json"  # what the model was built or converted from
LABELS = {
    "open_recall": "open recall",
    "closed_accuracy": "closed accuracy",
    "accuracy": "accuracy",
    "relative_score": "score relative to the reference",
    "rouge_l": "ROUGE-L",
}
# Metrics of `train_metrics.json`: label, name, format and factor.
METRIC_ROWS = (
    ("epochs", "epoch", "{:g}", 1),
    ("validation: closed accuracy (%)", "eval_closed_accuracy", "{:.1f}", 1),
    ("validation: open recall (%)", "eval_open_recall", "{:.1f}", 1),
    ("validation: language-modeling loss", "eval_language_modeling_loss", "{:.4f}", 1),
    ("validation: alignment loss", "eval_alignment_loss", "{:.3f}", 1),
    ("validation: matching accuracy (%)", "eval_matching_accuracy", "{:.1f}", 100),
    ("validation: recall@1, image to answer (%)", "eval_recall_at_1_image_to_answer", "{:.1f}", 100),
    ("validation: recall@1, image to extended answer (%)", "eval_recall_at_1_image_to_extended", "{:.1f}", 100),
    ("time of the last start (minutes)", "train_runtime", "{:,.1f}", 1 / 60),
)


@dataclass
class Card:
    """The text of a card (`README.md`), and its result files and pictures by path in the repository."""

    text: str
    files: dict[str, bytes] = field(default_factory=dict)


def render(template: str, **values: Any) -> str:
    """Fill a template of `templates/`; a missing value raises an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(**values)


def write_model_card(
    folder: Path,
    repo_id: str,
    *,
    license: str | None = None,
    evaluations: Sequence[Evaluation] = (),
    datasets: Sequence[str] = (),
    base_models: Sequence[str] = (),
    language: str = "en",
) -> Card:
    """
    Write the card of the model or adapter in `folder`, saved by a training run or `save_pretrained`.

    `repo_id` is its future place on the Hub, or its local folder; `evaluations` belong to this model (see
    `read_evaluations`); `datasets` and `base_models` are Hub ids in addition to those in the run record; `language` is
    the language code of its answers. Without a `license`, the card names none.
    """
    record, training = read_results(folder / RUN_RECORD), read_results(folder / TRAINING_RESULTS)
    config, parts = read_results(folder / "config.json"), read_results(folder / PARTS_FILE)
    is_adapter = (folder / "adapter_config.json").is_file()
    # Not `read_results`: the card of a local run names the local folder.
    base = json.loads((folder / "adapter_config.json").read_text()).get(BASE) if is_adapter else None
    start = record["starts"][-1] if record else None
    if start:
        base_models, datasets = [*base_models, *start.get("base_models", [])], [*datasets, *start["data"]]
    elif not base_models:
        base_models = parts.get("base_models") or [base]
    if training:
        training["log_history"] = training["log_history"][-1:]  # the curves show the rest
    hub_models, name = hub_ids(base_models), repo_id.rpartition("/")[2]
    files = {evaluation.file: as_json(evaluation.metrics) for evaluation in evaluations}
    files |= {
        name: as_json(content) for name, content in ((RUN_RECORD, record), (TRAINING_RESULTS, training)) if content
    }
    if (folder / CURVES).is_file() and training:
        files[CURVES] = (folder / CURVES).read_bytes()
    metadata = ModelCardData(
        language=language,
        **choose_license(folder, license),
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["logramed", "medical", "visual-question-answering", *(["lora"] if is_adapter else [])],
        base_model=hub_models or None,
        datasets=hub_ids(datasets) or None,
        model_name=name,
        eval_results=[result for evaluation in evaluations for result in list_results(evaluation)] or None,
    )
    text = render(
        "model_card.md.jinja",
        front_matter=f"---\n{metadata.to_yaml(line_break=chr(10))}\n---",
        is_adapter=is_adapter,
        is_ours=config.get("model_type", "logramed") == "logramed",
        has_code=any(folder.glob("*_logramed.py")),
        name=name,
        repo_id=repo_id,
        config=config,
        parts=parts,
        hub_models=hub_models,
        base=hub_models[0] if hub_models else base,
        evaluations=[describe_evaluation(evaluation) for evaluation in evaluations],
        start=start,
        training=training,
        training_rows=[*list_training(training), *list_machine(record)],
        has_curves=CURVES in files,
    )
    return Card(text, files)


def choose_license(folder: Path, license: str | None) -> dict[str, str | None]:
    """The licence for the front matter: the one recorded in the folder of a converted model, or `license`."""
    recorded = read_results(folder / PARTS_FILE)
    if "license" in recorded and license in (None, recorded["license"]):
        return {name: recorded[name] for name in ("license", "license_name", "license_link") if name in recorded}
    return {"license": license}


def list_results(evaluation: Evaluation) -> Iterable[EvalResult]:
    """The main figures in the form of `model-index`, with counts and protocol."""
    run, metrics = evaluation.metrics["run"], evaluation.metrics
    for row in describe_evaluation(evaluation)["rows"]:
        yield EvalResult(
            task_type="image-text-to-text" if metrics["task"] in ("chat", "report") else "visual-question-answering",
            dataset_type=run["benchmark"],
            dataset_name=BENCHMARKS[run["benchmark"]],
            dataset_split=run["split"],
            dataset_config=run.get("subset"),
            dataset_args={"num_questions": run["num_questions"], "data_fingerprint": run["data_fingerprint"]},
            metric_type=row["figure"],
            metric_name=f"{row['label']} (percent)",
            metric_value=round(row["value"], 2),
            metric_args={
                "protocol": metrics["protocol"],
                "num_items": row["count"],
                "interval_95": [round(end, 2) for end in row["interval"]],
                "max_new_tokens": run["max_new_tokens"],
            },
        )


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Values of one evaluation for `templates/evaluation.md.jinja`."""
    metrics = evaluation.metrics
    overall, blank = metrics["overall"], (metrics.get("blank_images") or {}).get("overall")
    rows = [
        {
            "figure": figure,
            "label": LABELS[figure],
            "value": overall[figure],
            "interval": tuple(overall["intervals"][figure]),
            "count": overall["counts"][figure],
            "blank": blank[figure] if blank else None,
        }
        for figure in MAIN_FIGURES[metrics["task"]]
        if overall.get(figure) is not None
    ]
    constant = (metrics.get("constant_answer") or {}).get("closed_accuracy")
    closed = next((row for row in rows if row["figure"] == "closed_accuracy"), None)
    return {
        "title": BENCHMARKS[metrics["run"]["benchmark"]],
        "file": evaluation.file,
        "metrics": metrics,
        "rows": rows,
        "lines": [*question_lines(metrics), *baseline_lines(metrics)],
        "has_blank": bool(blank),
        "interval_unit": metrics["interval_unit"],
        "beats_constant": closed is None or constant is None or closed["interval"][0] > constant,
    }


def list_training(training: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Table rows about training, from `train_metrics.json`."""
    if not training:
        return
    metrics = training["metrics"]
    if training["log_history"]:
        yield "steps", f"{training['log_history'][-1]['step']:,}"
    if training.get("num_train_samples") is not None:  # unknown for streamed data
        yield "training samples", f"{training['num_train_samples']:,}"
    yield "parameters", f"{training['num_parameters']:,}"
    for label, name, form, factor in METRIC_ROWS:
        if name in metrics:
            yield label, form.format(metrics[name] * factor)


def list_machine(record: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Table rows about machine, software and code of the last start, from `run.json`."""
    if not record:
        return
    start = record["starts"][-1]
    hardware, packages, code = start["hardware"], start["packages"], start["code"]
    devices = hardware["accelerators"]
    accelerators = f"{len(devices)} x {', '.join(sorted(set(devices)))}" if devices else "no accelerator"
    yield (
        "hardware",
        f"{hardware['num_cpu_cores']} CPU cores, {hardware['memory_gib']:g} GiB of memory, {accelerators}",
    )
    if len(record["starts"]) > 1:
        yield "starts of the run, the first included", str(len(record["starts"]))
    yield "software", ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "trl", "logramed"))
    if code["git_revision"]:
        changes = ", with changes" if code["git_changes"] else ""
        yield "code", f"git revision `{code['git_revision'][:12]}`{changes}"
