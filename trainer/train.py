"""
Train a LoGra-Med model: `python trainer/train.py RECIPE.yaml [--any_argument value]`, also `logramed-train`.

A recipe is a YAML file of arguments; the command line overrides it. `--help` lists all arguments.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from transformers import AutoProcessor, ProgressCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from trl import TrlParser

from logramed import LoGraMedForConditionalGeneration, LoGraMedProcessor
from logramed.hub_cards.model_card import FIGURES_FILE, write_model_card
from logramed.hub_cards.publications import CARD_NAME
from logramed.trainer.arguments import DataArguments, LoGraMedTrainingArguments, ModelArguments
from logramed.trainer.build_model import new_model
from logramed.trainer.checkpoints import Run, discard, list_checkpoints, note_run, open_run
from logramed.trainer.curves import plot_curves
from logramed.trainer.data import (
    RowStream,
    SetEpochCallback,
    TurnShuffler,
    hold_out_turns,
    load_training_rows,
    questions_of_rows,
)
from logramed.trainer.data.subsets import select_listed
from logramed.trainer.dry_run import dry_run
from logramed.trainer.image_cache import check_room
from logramed.trainer.interruption import TERMINATED_EXIT_CODE
from logramed.trainer.parts import (
    add_adapters,
    describe_trained,
    freeze_parts,
    parse_parts,
    quantization,
    unwrap_adapters,
)
from logramed.trainer.progress import LossProgressCallback, describe_evaluation
from logramed.trainer.provenance import record_run
from logramed.trainer.run_pictures import MatchingPictures
from logramed.trainer.trainer import LoGraMedTrainer


RECIPE_FOLDER = Path(__file__).parent / "recipes"
# Rows of a stream that a new tokenizer is trained on.
NUM_TOKENIZER_ROWS = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    model_arguments, data_arguments, training_arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if data_arguments.dry_run:
        return look_before_start(model_arguments, data_arguments, training_arguments)
    fingerprints: dict[str, str] = {}
    run, first_run = open_stages(training_arguments, data_arguments.first_stage_data is not None)
    if data_arguments.streaming:
        stream, validation_rows = open_rows(data_arguments, training_arguments, run.checkpoint, fingerprints)
        train_rows = stream.as_dataset()
        text_rows = (row for _, row in islice(stream.read_once(), NUM_TOKENIZER_ROWS))
    else:
        train_rows, validation_rows = load_rows(data_arguments, training_arguments, fingerprints)
        text_rows = train_rows
    first_rows = load_first_stage(data_arguments, training_arguments, fingerprints)
    if training_arguments.process_index == 0:
        record_run(
            training_arguments.output_dir,
            [model_arguments, data_arguments, training_arguments],
            fingerprints,
            run.checkpoint or (first_run and first_run.checkpoint),
            run.id,
        )
        note_run(training_arguments.output_dir, run)
    model, processor = load_model(model_arguments, chain(text_rows, first_rows), training_arguments.seed)
    model = choose_trained(model, model_arguments, training_arguments.seed)
    if training_arguments.process_index == 0:
        print(describe_trained(model))
    if first_run is not None and run.checkpoint is None:
        first_trainer = train_first_stage(
            model, processor, first_rows, training_arguments, data_arguments.first_stage_epochs, first_run
        )
        if first_trainer.termination.terminated:
            return leave_after_termination(first_trainer)
    shuffler = TurnShuffler(training_arguments.seed) if data_arguments.shuffle_turns else None
    if shuffler is not None:
        train_rows = train_rows.with_transform(shuffler)
    trainer = LoGraMedTrainer(
        model,
        training_arguments,
        processing_class=processor,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        validation_questions=questions_of_rows(validation_rows or []),
    )
    if shuffler is not None:
        trainer.add_callback(SetEpochCallback(shuffler))
    if trainer.image_cache is not None and training_arguments.process_index == 0 and not data_arguments.streaming:
        num_images = sum(len(images) for images in train_rows.with_format(None)["images"])
        print(check_room(unwrap_adapters(trainer.model), trainer.image_cache, num_images))
    if training_arguments.matching_picture_steps:
        trainer.add_callback(MatchingPictures(trainer, training_arguments.matching_picture_steps))
    show_progress(trainer)
    result = trainer.train(run=run)
    if trainer.termination.terminated:
        return leave_after_termination(trainer)
    trainer.save_model(_internal_call=True)  # published at the end, with its results
    log_history = list(trainer.state.log_history)  # without the evaluation of the model that is kept
    metrics = dict(result.metrics)
    if validation_rows is not None:
        metrics |= trainer.evaluate()
    if trainer.is_world_process_zero():
        write_results(trainer, metrics, log_history)
        for path in list_checkpoints(first_stage_folder(training_arguments), run.id):
            discard(path, first_stage_folder(training_arguments))
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # no process leaves the group while another still works
    trainer.accelerator.end_training()
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, LoGraMedTrainingArguments]:
    """
    Arguments of a run from `[RECIPE.yaml] [--argument value ...]`.

    A recipe that is no file is looked for among those of the package, so that `quickstart.yaml` alone is enough.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If the recipe or the command line has an argument that does not exist.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(find_recipe(argv[0])), *argv[1:]]
    parser = TrlParser((ModelArguments, DataArguments, LoGraMedTrainingArguments), prog="logramed-train")
    return parser.parse_args_and_config(argv)


def find_recipe(name: str) -> Path:
    for path in (Path(name), RECIPE_FOLDER / name):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in RECIPE_FOLDER.glob("*.yaml")))
    raise FileNotFoundError(f"There is no recipe {name}. Give the path of a YAML file, or one of {known}.")


def look_before_start(model: ModelArguments, data: DataArguments, training: LoGraMedTrainingArguments) -> int:
    """Print what a dry run finds; 1 if there is an error, else 0."""
    if data.streaming:
        raise ValueError("`dry_run` needs all rows at hand, and a stream (`streaming`) has not: leave one out.")

    def load_chosen(rows: Dataset) -> tuple[torch.nn.Module, LoGraMedProcessor]:
        loaded, processor = load_model(model, rows, training.seed)
        return choose_trained(loaded, model, training.seed), processor

    def load_all(arguments: LoGraMedTrainingArguments) -> tuple[Dataset, Dataset | None]:
        load_first_stage(data, arguments, check_images=False)  # refused where it is bad
        return load_rows(data, arguments, check_images=False)

    report = dry_run(training, load_all, load_chosen)
    print(report)
    return 1 if report.errors else 0


def load_rows(
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    fingerprints: dict[str, str] | None = None,
    check_images: bool = True,
) -> tuple[Dataset, Dataset | None]:
    """Training and validation rows; `fingerprints`, where given, gets that of each source."""
    require_extended = training.alignment_weight > 0 and training.use_extended_answers
    rows = load_and_list_skipped(
        data.train_data,
        "",
        data,
        training,
        fingerprints,
        train_ids=data.train_ids,
        extended=data.extended_data,
        check_images=check_images,
        require_extended=require_extended,
    )
    if data.validation_data is not None:
        return rows, load_and_list_skipped(
            data.validation_data,
            "_validation",
            data,
            training,
            fingerprints,
            require_extended=require_extended,
            check_images=check_images,
        )
    if data.validation_share:
        train, validation = hold_out_turns(list(rows), data.validation_share, training.seed)
        return Dataset.from_list(train), Dataset.from_list(validation)
    return rows, None


def open_rows(
    data: DataArguments, training: LoGraMedTrainingArguments, checkpoint: str | None, fingerprints: dict[str, str]
) -> tuple[RowStream, Dataset | None]:
    """
    A stream of training rows, those left out that the run had had at `checkpoint`, and validation rows;
    `fingerprints` gets that of each source.

    Raises:
        ValueError: If an argument does not go with a stream.
    """
    if training.max_steps <= 0:
        raise ValueError("A stream (`streaming`) has no end, so training needs `max_steps`.")
    if training.dataloader_num_workers > 1:
        raise ValueError(
            f"A stream (`streaming`) needs `dataloader_num_workers` of 0 or 1, got "
            f"{training.dataloader_num_workers}: more would read every row several times."
        )
    if training.matching_picture_steps and data.validation_data is None:
        raise ValueError(
            "`matching_picture_steps` draws the same samples each time, which a stream (`streaming`) has not at hand: "
            "give `validation_data`."
        )
    require_extended = training.alignment_weight > 0 and training.use_extended_answers
    num_skipped = 0
    if checkpoint is not None:
        batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        num_skipped = batch_size * TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    training.ignore_data_skip = True  # the stream does that itself, without making batches
    stream = RowStream(
        data.train_data, data.image_folder, require_extended, data.on_bad_row, training.seed, num_skipped
    )
    if training.process_index == 0:
        fingerprints[data.train_data] = stream.fingerprint
    validation = None
    if data.validation_data is not None:
        validation = load_and_list_skipped(
            data.validation_data, "_validation", data, training, fingerprints, require_extended=require_extended
        )
    return stream, validation


def load_first_stage(
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    fingerprints: dict[str, str] | None = None,
    check_images: bool = True,
) -> Dataset | tuple[()]:
    """The rows of the first stage, if there is one; they need no extended answers."""
    if data.first_stage_data is None:
        return ()
    return load_and_list_skipped(
        data.first_stage_data,
        "_first_stage",
        data,
        training,
        fingerprints,
        require_extended=False,
        check_images=check_images,
    )


def load_and_list_skipped(
    source: str,
    suffix: str,
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    fingerprints: dict[str, str] | None = None,
    train_ids: str | None = None,
    **options,
) -> Dataset:
    """Rows of `source`; those skipped, if any, are counted and listed in a file in the output folder."""
    rows = load_training_rows(source, image_folder=data.image_folder, on_bad_row=data.on_bad_row, **options)
    if fingerprints is not None:
        fingerprints[source] = rows.fingerprint
    if rows.skipped:
        path = Path(training.output_dir) / f"skipped_rows{suffix}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.write_skipped(path)
        print(f"Skipped {len(rows.skipped)} rows of {source}; see {path}.")
    return rows.dataset if train_ids is None else select_listed(rows, train_ids)


def train_first_stage(
    model: LoGraMedForConditionalGeneration,
    processor: LoGraMedProcessor,
    rows: Dataset,
    training: LoGraMedTrainingArguments,
    num_epochs: float,
    run: Run,
) -> LoGraMedTrainer:
    """
    Train `model` on `rows` with the language-modeling loss alone, then leave it to the second stage.

    Checkpoints are saved as the second stage's are, the last one alone, in a folder of their own, until the run ends;
    a run that is to be resumed, and has none of the second stage, goes on from there.
    """
    arguments = replace(
        training,
        output_dir=str(first_stage_folder(training)),
        num_train_epochs=num_epochs,
        alignment_weight=0.0,
        eval_strategy="no",
        save_strategy="epoch" if training.save_strategy == "best" else training.save_strategy,
        save_total_limit=1,
        load_best_model_at_end=False,
        push_to_hub=False,
        cache_image_features=None,
    )
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    trainer = LoGraMedTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    show_progress(trainer)
    trainer.train(run=run)
    for name, weight in model.named_parameters():  # without alignment the graph network was frozen
        weight.requires_grad_(trained[name])
    return trainer


def first_stage_folder(training: LoGraMedTrainingArguments) -> Path:
    return Path(training.output_dir) / "first_stage"


def open_stages(training: LoGraMedTrainingArguments, has_first_stage: bool) -> tuple[Run, Run | None]:
    """
    The run, and the same run as its first stage knows it, if there is one: that goes on where the second has nothing
    to go on from, or where the checkpoint that is named is one of the first stage's.
    """
    wanted, folder = training.resume_from_checkpoint, first_stage_folder(training)
    if has_first_stage and isinstance(wanted, str) and Path(wanted).resolve().is_relative_to(folder.resolve()):
        first_run = open_run(training, wanted, folder)
        return open_run(training, None, run_id=first_run.id), first_run
    run = open_run(training, wanted)
    is_at_first = has_first_stage and run.checkpoint is None
    return run, open_run(training, wanted, folder, run.id) if is_at_first else None


def leave_after_termination(trainer: LoGraMedTrainer) -> int:
    """Say where a run that SIGTERM ended goes on from; the exit code."""
    if trainer.is_world_process_zero():
        saved = list_checkpoints(trainer.args.output_dir, trainer.run.id)[0]
        print(
            f"\nStopped by SIGTERM after step {trainer.state.global_step}, which is saved in {saved}. The same "
            "command with `--resume_from_checkpoint true` goes on from there."
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return TERMINATED_EXIT_CODE


def show_progress(trainer: LoGraMedTrainer) -> None:
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossProgressCallback)


def load_model(
    arguments: ModelArguments, train_rows: Iterable[dict], seed: int
) -> tuple[LoGraMedForConditionalGeneration, LoGraMedProcessor]:
    """The model to train and its processor: the one that `arguments.model` names, or a new one."""
    if arguments.model is not None:
        options = {"dtype": arguments.dtype}
        if arguments.load_in_4bit:
            options["quantization_config"] = quantization(
                torch.float32 if arguments.dtype in ("auto", "float32") else getattr(torch, arguments.dtype)
            )
        model = LoGraMedForConditionalGeneration.from_pretrained(arguments.model, **options)
        return model, AutoProcessor.from_pretrained(arguments.model)
    return new_model(
        arguments.vision_config,
        arguments.text_config,
        iterate_texts(train_rows),
        arguments.vocab_size,
        arguments.logramed_config,
        seed,
        arguments.position_embedding_scale,
    )


def choose_trained(model: LoGraMedForConditionalGeneration, arguments: ModelArguments, seed: int) -> torch.nn.Module:
    """The model, frozen where `arguments` do not train it, and with adapters, drawn with `seed`, if they say so."""
    parts = parse_parts(arguments.train, arguments.use_peft)
    if not arguments.use_peft:
        freeze_parts(model, parts)
        return model
    set_seed(seed)
    return add_adapters(
        model,
        parts,
        arguments.lora_r,
        arguments.lora_alpha,
        arguments.lora_dropout,
        arguments.lora_target_modules,
    )


def iterate_texts(rows: Iterable[dict]) -> Iterable[str]:
    """All text of training rows: what a new tokenizer is trained on. The words of the chat template are among it."""
    yield "USER: ASSISTANT:"
    for row in rows:
        for message in row["messages"]:
            yield from (part["text"] for part in message["content"] if part["type"] == "text")
        yield from row["extended_answers"] or ()


def write_results(trainer: LoGraMedTrainer, metrics: dict[str, float], log_history: list[dict]) -> None:
    """Write `train_metrics.json` (final figures and the log of every step) and `curves.png`, and say what came out."""
    output = Path(trainer.args.output_dir)
    state, rows = trainer.state, trainer.train_dataset
    results = {
        "metrics": metrics,
        "best_checkpoint": {"metric": trainer.args.metric_for_best_model, "value": state.best_metric},
        "num_parameters": trainer.model.num_parameters(),
        "num_train_samples": None if isinstance(rows, IterableDataset) else len(rows),
        "num_validation_questions": len(trainer.validation_questions),
        "log_history": log_history,
    }
    (output / "train_metrics.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot_curves(log_history, output / "curves.png")
    write_local_card(output)
    print(f"\nTrained {state.global_step} steps in {metrics['train_runtime'] / 60:.1f} minutes; wrote {output}.")
    if "eval_loss" in metrics:
        print(f"On validation: {describe_evaluation(metrics)}.")


def write_local_card(output: Path) -> None:
    """The card of a run that has just ended, for this machine; publishing writes it anew."""
    kind = "adapter" if (output / "adapter_config.json").is_file() else "model"
    card = write_model_card(output, str(output), kind=kind, is_local=True)
    (output / CARD_NAME).write_text(card.text, encoding="utf-8")
    (output / FIGURES_FILE).write_bytes(card.files[FIGURES_FILE])


if __name__ == "__main__":
    raise SystemExit(main())
