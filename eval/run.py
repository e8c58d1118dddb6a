"""
Ask a model the questions of a benchmark and score its answers:

    python eval/run.py --model DIR --benchmark vqa_rad --data FOLDER --output DIR

`logramed-eval` does the same. A run that was stopped goes on where it stopped when started again.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import logramed  # also registers LoGra-Med with the Auto classes
from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks import BENCHMARKS, get_benchmark
from logramed.eval.predictions import PredictionFile
from logramed.eval.report import compute_metrics, format_table


# Of each weight file this much is read from its start and from its end: enough to tell any two trained models apart
# without reading a whole 7B.
FINGERPRINT_BYTES = 1 << 20
MODEL_FILES = ("*config.json", "tokenizer*", "*.jinja", "*.safetensors", "pytorch_model*.bin")


@dataclass
class EvaluationArguments:
    """What `eval/run.py` can be told."""

    model: str = field(metadata={"help": "Folder or Hub id of the model: LoGra-Med or any image-text-to-text model."})
    benchmark: str = field(metadata={"help": f"Which questions: {', '.join(BENCHMARKS)}."})
    data: str = field(metadata={"help": "Folder with the files of the benchmark."})
    output: str = field(metadata={"help": "Folder for predictions.jsonl and metrics.json."})
    split: str = field(default="test", metadata={"help": "Split of the benchmark."})
    batch_size: int = field(default=16, metadata={"help": "Questions asked at once. Lower it if memory runs out."})
    max_new_tokens: int = field(default=32, metadata={"help": "Tokens of an answer at most."})
    blank_images: bool = field(
        default=False,
        metadata={"help": "Show evenly grey images instead. Written beside the sighted run, which it never replaces."},
    )
    limit: int | None = field(default=None, metadata={"help": "Ask the first so many questions only."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with the model."})

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"`benchmark` must be one of {', '.join(BENCHMARKS)}, got {self.benchmark!r}.")
        for name in ("batch_size", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: of this process), print the table and return 0."""
    (arguments,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(args=argv)
    metrics = evaluate_benchmark(arguments)
    print(format_table(metrics, load_counterpart(arguments, metrics)))
    return 0


def evaluate_benchmark(arguments: EvaluationArguments) -> dict:
    """
    Ask what is not yet answered in `arguments.output`, write `predictions.jsonl` and `metrics.json` there.

    With `blank_images` the files are `predictions.blank_images.jsonl` and so on.

    Returns:
        `dict`: the metrics as written (see `report.compute_metrics`).

    Raises:
        ValueError: If the output folder holds answers of a run with other settings.
    """
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    questions = get_benchmark(arguments.benchmark).load_questions(arguments.data, arguments.split)[: arguments.limit]
    settings = describe_run(arguments, questions)
    predictions = PredictionFile(output / output_name("predictions", "jsonl", arguments.blank_images), questions)
    check_settings(output / output_name("run", "json", arguments.blank_images), settings, predictions.path)
    unanswered = predictions.resume()
    if unanswered:
        with predictions.open_for_append() as write_answer:
            for question, answer in ask(arguments, unanswered):
                write_answer(question, answer)
    rows = predictions.finish()
    metrics = compute_metrics(rows, settings)
    write_json(output / output_name("metrics", "json", arguments.blank_images), metrics)
    return metrics


def ask(arguments: EvaluationArguments, questions: Sequence[dict]) -> Iterator[tuple[dict, str]]:
    """Load the model and let it answer `questions`."""
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=arguments.trust_remote_code)
    model = AutoModelForImageTextToText.from_pretrained(
        arguments.model, dtype="auto", trust_remote_code=arguments.trust_remote_code
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return answer_questions(
        model.eval(),
        processor,
        questions,
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        blank_images=arguments.blank_images,
    )


def output_name(stem: str, suffix: str, blank_images: bool) -> str:
    """
    The name of an output file; runs without sight have their own.

    Example:
        >>> output_name("metrics", "json", blank_images=True)
        'metrics.blank_images.json'
    """
    return f"{stem}.blank_images.{suffix}" if blank_images else f"{stem}.{suffix}"


def describe_run(arguments: EvaluationArguments, questions: Sequence[dict]) -> dict:
    """Everything that answers depend on, and what made them."""
    settings = asdict(arguments)
    # Where files lie and how many questions are asked at once do not change an answer.
    for name in ("output", "data", "batch_size", "trust_remote_code"):
        settings.pop(name)
    return settings | {
        "model_fingerprint": fingerprint_model(arguments.model),
        "data_fingerprint": fingerprint_questions(questions),
        "num_questions": len(questions),
        "versions": {"logramed": logramed.__version__} | {name: version(name) for name in ("transformers", "torch")},
    }


def check_settings(path: Path, settings: dict, predictions_path: Path) -> None:
    """Write `settings` to `path`, or refuse if answers of other settings lie beside it. Versions may differ."""
    if not predictions_path.is_file():
        write_json(path, settings)
        return
    if not path.is_file():
        raise ValueError(
            f"{predictions_path} is there, but not {path.name}, which says what was asked. Choose another `--output`."
        )
    former = json.loads(path.read_text(encoding="utf-8"))
    differences = [
        f"`{name}` was {former.get(name)!r} and now is {value!r}"
        for name, value in settings.items()
        if name != "versions" and former.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{predictions_path} holds answers of another run: {'; '.join(differences)}. Choose another `--output`, "
            "or delete that file to start over."
        )


def fingerprint_model(model: str) -> str:
    """
    A hash of a folder's configuration, tokenizer and weight files (name, size, first and last MiB), or the Hub id.

    Two trainings of one configuration differ in it; a copy of a folder does not.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(f"{path.name} {size}".encode())
            for start in (0, max(0, size - FINGERPRINT_BYTES)):
                file.seek(start)
                digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def fingerprint_questions(questions: Sequence[dict]) -> str:
    """A hash of the questions and answers and of the bytes of their images, wherever these lie."""
    digest = hashlib.sha256()
    for question in questions:
        told = {key: value for key, value in question.items() if key != "image"}
        digest.update(json.dumps(told, sort_keys=True, ensure_ascii=False).encode())
    for image in sorted({question["image"] for question in questions}, key=lambda image: (Path(image).name, image)):
        digest.update(Path(image).name.encode())
        with open(image, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_counterpart(arguments: EvaluationArguments, metrics: dict) -> dict | None:
    """The metrics of the same model and questions with (without) sight, if the output folder holds them."""
    path = Path(arguments.output) / output_name("metrics", "json", not arguments.blank_images)
    if not path.is_file():
        return None
    counterpart = json.loads(path.read_text(encoding="utf-8"))
    same = ("model_fingerprint", "data_fingerprint", "max_new_tokens")
    if any(counterpart["run"][name] != metrics["run"][name] for name in same):
        return None
    return counterpart


def write_json(path: Path, content: dict) -> None:
    """Write `content` to `path`, whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
