"""
Ask a model the questions of a benchmark, with the images and with blank ones, and score its answers:

    python eval/run.py --model DIR --benchmark vqa_rad --data FOLDER --output DIR

`logramed-eval` does the same. An interrupted run resumes where it stopped when the command is repeated.
"""

import logramed  # before torch: sets how its threads wait


# isort: split
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from logramed.eval.answering import answer_questions
from logramed.eval.arguments import GROUPS, USAGE, EvaluationArguments
from logramed.eval.benchmarks import get_benchmark
from logramed.eval.benchmarks.rows import describe_skipped
from logramed.eval.command_line import refuse_unknown, run_command
from logramed.eval.comparison.html_report import render_markdown, write_run_report
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.comparison.runs import compare_runs
from logramed.eval.files import hash_file, only_one_writer, write_json, write_json_lines
from logramed.eval.foreign.predictions import read_predictions
from logramed.eval.grounding import matched_images
from logramed.eval.grounding import measure as grounding
from logramed.eval.grounding.maps import find_grid, unwrap
from logramed.eval.grounding.questions import find_boxed_questions
from logramed.eval.grouped_help import add_grouped_help
from logramed.eval.image_check import find_unreadable, image_key
from logramed.eval.judge_client import JudgeSettings
from logramed.eval.judging import judge_answers
from logramed.eval.leakage import find_leakage, hide_folder, training_rows, training_split
from logramed.eval.likelihood import score_options
from logramed.eval.metrics.medical_vqa.vqa_scoring import yes_or_no
from logramed.eval.models import fingerprint_model, load_model, read_stop_string
from logramed.eval.prompts import list_options
from logramed.eval.question_images import all_images, list_images, name_images, show_volumes
from logramed.eval.report import compute_metrics, figures_without_leakage
from logramed.eval.resumable_file import ResumableFile, check_settings
from logramed.eval.volumes import VolumeOptions, count_image_tokens, hash_image, is_volume


# Maximum number of tokens in an answer, by task. The release allows 1,024; VQA answers have a few words.
MAX_NEW_TOKENS = {"vqa": 32, "multiple_choice": 64, "chat": 512, "report": 512}
# Arguments that answers depend on. The slices of a volume that are shown, and their window, are part of the image's
# name and hash.
OF_AN_ANSWER = (
    "benchmark",
    "model",
    "adapter",
    "predictions",
    "missing_as_empty",
    "split",
    "subset",
    "limit",
    "max_new_tokens",
    "stop_string",
    "yes_no_hint",
    "multiple_choice",
)
# Settings that may differ when a run is resumed: paths that have a fingerprint may have moved.
MAY_CHANGE = {"model", "adapter", "predictions", "versions"}
# Results of earlier answers, deleted when a run starts over.
RESULTS = (
    "metrics.json",
    "report.html",
    "scores.jsonl",
    "scores.blank_images.jsonl",
    grounding.FILE,
    grounding.PICTURE,
    matched_images.FILE,
    matched_images.PICTURE,
)
PRINTED = ("summary", "remarks", "figures", "judge", "sight", "groups", "release")  # sections of the report
NO_BLANK = "they were turned off (`no_blank_images`)"
NO_BLANK_OF_ANOTHER = "another system answered; pass its answers about blank images as `blank_predictions`"
UNJUDGED = "The answers are written. To have them judged, run again with `--judge_url` and `--judge_model`."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`), print the main tables and return 0."""
    parser = HfArgumentParser(EvaluationArguments, prog="logramed-eval", add_help=False)
    add_grouped_help(parser, GROUPS, USAGE, "Ask a model the questions of a benchmark, or score answers, and report.")
    argv = sys.argv[1:] if argv is None else list(argv)
    refuse_unknown(parser, argv)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    metrics = evaluate_benchmark(arguments)
    if metrics is None:
        print(UNJUDGED)
        return 0
    print(render_markdown(compare_runs([read_run_folder(arguments.output)]), PRINTED))
    print(f"Report: {Path(arguments.output) / 'report.html'}")
    return 0


def evaluate_benchmark(arguments: EvaluationArguments) -> dict | None:
    """
    Ask the questions that have no answer in `arguments.output` yet, and write answers, figures and a report there.
    Returns the content of `metrics.json`, or `None` if chat answers were written but no judge was given. Raises
    `ValueError` if the output folder holds answers of a run with other settings, or another run is writing to it.
    """
    run = Run(arguments)
    run.output.mkdir(parents=True, exist_ok=True)
    with only_one_writer(run.output):
        return answer_and_score(run)


def answer_and_score(run: "Run") -> dict | None:
    """Like `evaluate_benchmark`, in an output folder that no other run writes to."""
    files = [run.path("predictions", blank) for blank in (False, True)]
    if check_settings(run.output / "run.json", run.settings, files, MAY_CHANGE):
        for name in RESULTS:
            (run.output / name).unlink(missing_ok=True)
    paths = {row["question_id"]: row.get("images") or row["image"] for row in run.questions}
    write_json(run.output / "local_paths.json", {"images": paths})
    answered = {
        blank: [row | {"image_id": run.image_ids[row["question_id"]]} for row in run.collect_answers(blank)]
        for blank in (False, True)
        if run.has_answers(blank)
    }
    if run.task == "chat" and run.arguments.judge_model is None:
        return None
    if True not in answered:  # scores of an earlier run
        run.path("scores", blank=True).unlink(missing_ok=True)
    figures = {blank: run.score(rows, blank) for blank, rows in answered.items()}
    metrics = {
        "run": run.settings | {name: value for name, value in run.further_settings().items() if value is not None},
        "task": run.task,
        "protocol": "strict",
        "interval_unit": "report" if run.task == "report" else "image",
        **figures[False],
        "blank_images": figures.get(True, {"missing": NO_BLANK if run.arguments.model else NO_BLANK_OF_ANOTHER}),
        "leakage": run.find_leakage(answered[False]),
        "differences": run.find_differences(),
    }
    if run.arguments.grounding:
        metrics |= run.measure_grounding() | run.draw_matched_images()
    write_json(run.output / "metrics.json", metrics)
    write_run_report(run.output, images=run.arguments.images)
    return metrics


class Run:
    """One system's answers to the questions of one benchmark, about the images or blank ones."""

    def __init__(self, arguments: EvaluationArguments):
        self.arguments = arguments
        self.output = Path(arguments.output)
        self.benchmark = get_benchmark(arguments.benchmark)
        self.task = self.benchmark.TASK
        self.split = arguments.split or self.benchmark.SPLITS[0]
        bad_rows: list[str] | None = [] if arguments.on_bad_row == "skip" else None
        self.all_questions = self.benchmark.load_questions(arguments.data, self.split, arguments.subset, bad_rows)
        self.bad_rows = hide_folder(bad_rows or [], arguments.data)
        if not self.all_questions:
            first = f" Bad rows: {describe_skipped(self.bad_rows)}." if self.bad_rows else ""
            raise ValueError(f"`data` {arguments.data} holds no questions of the {self.split} split.{first}")
        self.all_questions, self.bad_volumes = show_volumes(self.all_questions, self.volumes)
        self.training_split = training_split(self.benchmark, self.split)
        self.bad_training_rows: list[str] = []
        self.questions = self.all_questions[: arguments.limit]
        if arguments.model is not None:
            self.leave_out_unreadable()
        _ = self.foreign_answers  # raises before anything is written
        self.boxes = None
        if arguments.grounding and hasattr(self.benchmark, "load_boxes"):
            self.boxes = self.benchmark.load_boxes(arguments.data, self.questions)
            find_boxed_questions(self.questions, self.boxes)
        hashes = {image: hash_image(image) for image in all_images(self.questions)}
        self.image_ids = {row["question_id"]: identify_images(row, hashes) for row in self.questions}
        self.settings = describe_run(arguments, self.task, self.split, self.questions, hashes)
        if len(self.questions) == len(self.all_questions):
            self.settings["limit"] = None  # all questions are asked

    @property
    def volumes(self) -> VolumeOptions:
        """How DICOM and NIfTI volumes are shown."""
        told = self.arguments
        tokens = None if told.model is None else (lambda: count_image_tokens(self.model[1]))
        return VolumeOptions(told.slices, told.window, told.volume_tokens, tokens)

    def leave_out_unreadable(self) -> None:
        """Leave out and list the questions with an undecodable image before the run starts."""
        images = all_images(self.questions)
        by_key = find_unreadable(image for image in images if image not in self.bad_volumes)
        unreadable = {image: self.bad_volumes.get(image) or by_key.get(image_key(image)) for image in images}
        problems: dict[str, str] = {}
        for question in self.questions:
            question_id = question["question_id"]
            for image in filter(unreadable.get, reversed(list_images(question))):  # names the first one
                problems[question_id] = (
                    f"question {question_id}: the image {image} cannot be read, {unreadable[image]}."
                )
        if not problems:
            return
        self.bad_rows += hide_folder(list(problems.values()), self.arguments.data)
        warnings.warn(describe_skipped(list(problems.values())), stacklevel=2)
        self.questions = [row for row in self.questions if row["question_id"] not in problems]
        self.all_questions = [row for row in self.all_questions if row["question_id"] not in problems]
        if not self.questions:
            raise ValueError(f"None of the images can be read: {describe_skipped(self.bad_rows)}.")

    def path(self, stem: str, blank: bool) -> Path:
        """The path of a JSON lines file in the output folder; blank images have their own."""
        return self.output / (f"{stem}.blank_images.jsonl" if blank else f"{stem}.jsonl")

    def has_answers(self, blank: bool) -> bool:
        """Whether there are answers to score."""
        if self.arguments.model is not None:
            return self.arguments.blank_images or not blank
        return (self.arguments.blank_predictions if blank else self.arguments.predictions) is not None

    @cached_property
    def model(self) -> tuple[torch.nn.Module, Any]:
        """Model and processor, loaded when the first question is asked."""
        loaded = load_model(self.arguments.model, self.arguments.adapter, self.arguments.trust_remote_code)
        if self.arguments.grounding:
            find_grid(unwrap(loaded[0]).config)  # raises before any question is asked
        return loaded

    def collect_answers(self, blank: bool) -> list[dict]:
        """The question rows with `prediction`, from the file; asks the model for those that are missing there."""
        path, by_id = self.path("predictions", blank), {row["question_id"]: row for row in self.questions}
        if self.arguments.model is None:  # reading is cheap, and the file of blank answers may have changed
            answers, _ = self.foreign_answers["blank_predictions" if blank else "predictions"]
            rows = [prediction_row(row, answers[question_id]) for question_id, row in by_id.items()]
            write_json_lines(path, rows)
            return rows
        file = ResumableFile(path, list(by_id), lambda row: row["question_id"], kind="answer")
        missing = file.missing()
        if missing:
            with file.open_for_append() as write_line:
                for question, answer, fields in self.ask([by_id[key] for key in missing], blank):
                    # The benchmark's row: the question that was shown may be worded differently.
                    write_line(prediction_row(by_id[question["question_id"]], answer) | fields)
        rows = list(file.finish().values())
        assert len(rows) == len(by_id)
        return rows

    def ask(self, questions: Sequence[dict], blank: bool) -> Iterator[tuple[dict, str, dict]]:
        """Yield question rows, their answers and, if options were scored, `option_scores`."""
        shown = [show_question(question, self.settings["yes_no_hint"]) for question in questions]
        options: dict[str, Any] = {"batch_size": self.arguments.batch_size, "blank_images": blank}
        if self.task == "multiple_choice" and self.settings["multiple_choice"] == "likelihood":
            for question, scores in score_options(*self.model, shown, **options):
                likeliest = question["options"][scores.index(max(scores))]
                yield question, likeliest, {"option_scores": scores}
            return
        stop_strings = [self.settings["stop_string"]] if self.settings["stop_string"] else []
        options |= {"max_new_tokens": self.settings["max_new_tokens"], "stop_strings": stop_strings}
        yield from ((question, answer, {}) for question, answer in answer_questions(*self.model, shown, **options))

    @cached_property
    def foreign_answers(self) -> dict[str, tuple[dict, dict]]:
        """Answers of other systems and descriptions of their files, by the argument that names the file."""
        files = {name: getattr(self.arguments, name) for name in ("predictions", "blank_predictions")}
        return {
            name: read_predictions(
                path, self.all_questions, self.task, missing_as_empty=self.arguments.missing_as_empty
            )
            for name, path in files.items()
            if path is not None
        }

    def score(self, rows: Sequence[dict], blank: bool) -> dict:
        """The figures of answered questions; those of each question are written to `scores.jsonl`."""
        if self.task == "chat":
            figures = self._judge(rows, blank)
            scores = figures.pop("scores")
            items = [scores.get(row["question_id"], {}) for row in rows]
        else:
            figures = compute_metrics(rows, self.task)
            items = figures.pop("items")
        write_json_lines(self.path("scores", blank), describe_items(rows, items))
        return figures

    def _judge(self, rows: Sequence[dict], blank: bool) -> dict:
        arguments = self.arguments
        settings = JudgeSettings(arguments.judge_url, arguments.judge_model, concurrency=arguments.judge_concurrency)
        predictions = {row["question_id"]: row["prediction"] for row in rows}
        return judge_answers(rows, predictions, settings, self.path("judgements", blank))

    def measure_grounding(self) -> dict:
        """
        Where the model looks, as `grounding` without the figures of single questions, if the benchmark has boxes; read
        from `grounding.json` if that is up to date.
        """
        if self.boxes is None:
            return {}
        boxes = [self.boxes[image] for image in all_images(self.questions)]
        digest = hashlib.sha256(json.dumps(boxes).encode()).hexdigest()
        settings = {"boxes": digest, "blank_images": self.arguments.blank_images}
        result = grounding.read_former(self.output / grounding.FILE, settings)
        if result is None:
            shown = [show_question(row, self.settings["yes_no_hint"]) for row in self.questions]
            result = grounding.measure_grounding(
                *self.model,
                [row | {"image_id": self.image_ids[row["question_id"]]} for row in shown],
                self.boxes,
                self.output,
                settings=settings,
                batch_size=self.arguments.batch_size,
                blank_images=self.arguments.blank_images,
                pictures=self.arguments.images,
            )
        return {"grounding": {name: value for name, value in result.items() if name not in ("settings", "questions")}}

    def draw_matched_images(self) -> dict:
        """
        The image regions that some questions are matched to, as `matched_images`: questions with several images if
        there are any, otherwise any questions if the benchmark has no boxes.
        """
        several = [question for question in self.questions if len(list_images(question)) > 1]
        drawn = several or (self.questions if self.boxes is None else [])
        if not drawn:
            return {}
        settings = {"pictures": self.arguments.images}
        result = grounding.read_former(self.output / matched_images.FILE, settings)
        if result is None:
            shown = [show_question(row, self.settings["yes_no_hint"]) for row in drawn]
            result = matched_images.draw_matched_images(
                *self.model, shown, self.output, settings=settings, pictures=self.arguments.images
            )
        return {"matched_images": result["questions"]}

    def find_differences(self) -> list[str]:
        """Describe how the questions differ from the known split."""
        differences = self.benchmark.count_differences(self.all_questions, self.split, self.arguments.subset)
        return differences + ([describe_skipped(self.bad_rows)] if self.bad_rows else [])

    @cached_property
    def training(self) -> list[dict] | str:
        """The rows of the benchmark's training split, or why there are none."""
        data, subset, split = self.arguments.data, self.arguments.subset, self.training_split
        return training_rows(self.benchmark, data, subset, self.bad_training_rows, split)

    def find_leakage(self, rows: Sequence[dict]) -> dict:
        """Which questions also occur in the training split, and the figures without them; or why that is unknown."""
        if isinstance(self.training, str):
            return {"missing": self.training}
        leakage = find_leakage(self.questions, self.training, self.bad_training_rows, self.training_split)
        clean = None if self.task == "chat" else figures_without_leakage(rows, self.task, leakage)
        return leakage | ({} if clean is None else {"overall_without_triplets": clean})

    def further_settings(self) -> dict:
        """Settings that a reader of the figures needs but no answer depends on."""
        read = {name: description for name, (_, description) in self.foreign_answers.items()}
        notes = [note for description in read.values() for note in description["notes"]]
        return {
            "system": self.arguments.system,
            "read": read or None,
            "notes": notes or None,
            "window": self.arguments.window if any(map(is_volume, all_images(self.questions))) else None,
        }


def prediction_row(question: dict, answer: str) -> dict:
    """A line of `predictions.jsonl`: the question row, with file names of its images, and the `prediction`."""
    return question | name_images(question) | {"prediction": answer}


def show_question(question: dict, yes_no_hint: str = "") -> dict:
    """
    A question row as it is asked: with its options, or with a hint if it is a yes/no question.

    Example:
        >>> show_question({"question": "Mass?", "answer": "no", "answer_type": "CLOSED"}, " Yes or no?")["question"]
        'Mass? Yes or no?'
    """
    if "options" in question:
        return question | {"question": list_options(question["question"], question["options"])}
    if question.get("answer_type") == "CLOSED" and yes_or_no(question["answer"]) is not None:
        return question | {"question": question["question"] + yes_no_hint}
    return question


def identify_images(question: dict, hashes: Mapping[str, bytes]) -> str:
    """
    An id that questions about the same images share: made from the `hashes` of the images' bytes, in any order.

    File names would not do: all images of SLAKE are called "source.jpg". Lists that share only some images differ.
    """
    digests = sorted(hashes[image] for image in list_images(question))
    return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()[:16]


def describe_items(rows: Sequence[dict], items: Sequence[dict]) -> Iterator[dict]:
    """Lines of `scores.jsonl`."""
    for row, scores in zip(rows, items, strict=True):
        told = ("question_id", "image_id", "groups", "answer_type")
        yield {name: row[name] for name in told if name in row} | {"scores": scores}


def describe_run(
    arguments: EvaluationArguments, task: str, split: str, questions: Sequence[dict], hashes: Mapping[str, bytes]
) -> dict:
    """Everything that answers depend on, and the versions that made them."""
    settings = {name: getattr(arguments, name) for name in OF_AN_ANSWER}
    settings["split"] = split
    settings["max_new_tokens"] = arguments.max_new_tokens or MAX_NEW_TOKENS[task]
    if arguments.model is not None:
        settings["model_fingerprint"] = fingerprint_model(arguments.model, arguments.adapter)
        if arguments.stop_string is None:
            settings["stop_string"] = read_stop_string(arguments.model, arguments.adapter)
    else:
        settings["predictions"] = Path(arguments.predictions).name
        settings["predictions_fingerprint"] = hash_file(arguments.predictions).hex()
    return settings | {
        "data_fingerprint": fingerprint_questions(questions, hashes),
        "num_questions": len(questions),
        "versions": {"logramed": logramed.__version__} | {name: version(name) for name in ("transformers", "torch")},
    }


def fingerprint_questions(questions: Sequence[dict], hashes: Mapping[str, bytes]) -> str:
    """A hash of the questions, the answers and the `hashes` of their images' bytes; folders do not matter."""
    digest = hashlib.sha256()
    for question in questions:
        told = {key: value for key, value in question.items() if key not in ("image", "images")}
        if "images" in question:  # their order counts
            told["images"] = [hashes[image].hex() for image in question["images"]]
        digest.update(json.dumps(told, sort_keys=True, ensure_ascii=False).encode())
    for image in sorted(hashes, key=lambda image: (Path(image).name, image)):
        digest.update(Path(image).name.encode())
        digest.update(hashes[image])
    return digest.hexdigest()


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
