"""
Train a LoGra-Med model: `python trainer/train.py RECIPE.yaml [--any_argument value]`, also `logramed-train`.

A recipe is a YAML file of arguments; the command line overrides it. `--help` lists all arguments.
"""

# Registers LoGra-Med with the Auto classes. Stands before bitsandbytes, whose warning it leaves out.
import logramed.eval  # noqa: F401


# isort: split
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    ProcessorMixin,
    ProgressCallback,
    TrainerState,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from trl import TrlParser, get_peft_config, get_quantization_config

from logramed import LoGraMedConfig
from logramed.eval.command_line import refuse_unknown, run_command
from logramed.eval.model_names import naming_base_model, naming_model, processor_source, resolve_adapter
from logramed.eval.volumes import count_image_tokens
from logramed.trainer.arguments import DataArguments, LoGraMedTrainingArguments, ModelArguments
from logramed.trainer.build_model import join_new_language_model, new_model, training_texts
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
from logramed.trainer.data.reports import holds_reports
from logramed.trainer.data.subsets import select_listed
from logramed.trainer.dry_run import dry_run
from logramed.trainer.image_cache import check_room
from logramed.trainer.interruption import TERMINATED_EXIT_CODE
from logramed.trainer.parts import (
    complete_adapters,
    describe_trained,
    find_weights,
    freeze_parts,
    keep_tower_in_evaluation_mode,
    parse_parts,
    unquantized_modules,
)
from logramed.trainer.progress import LossProgressCallback, describe_evaluation
from logramed.trainer.provenance import record_run
from logramed.trainer.run_pictures import MatchingPictures
from logramed.trainer.trainer import LoGraMedTrainer


RECIPE_FOLDER = Path(__file__).parent / "recipes"
# Rows of a stream that a new tokenizer is trained on.
NUM_TOKENIZER_ROWS = 10_000


class Rows(NamedTuple):
    """What a run reads: rows to train on, to evaluate on, of the first stage, and those of a new tokenizer's texts."""

    train: Dataset | IterableDataset
    validation: Dataset | None
    first_stage: Dataset | tuple[()]
    texts: Iterable[dict]


def main(argv: Sequence[str] | None = None) -> int:
    model_arguments, data, training = parse_arguments(sys.argv[1:] if argv is None else argv)
    tokens_per_image = partial(find_image_tokens, model_arguments, training)
    data.volumes = replace(data.volumes, tokens_per_image=tokens_per_image)
    if data.dry_run:
        return look_before_start(model_arguments, data, training)
    fingerprints: dict[str, str] = {}
    given = [model_arguments, data, training]
    run, first_run = open_stages(training, data.first_stage_data is not None)
    first_training, training = arguments_of_stages(training, data.alignment_stages)
    rows = read_data(data, training, run.checkpoint, fingerprints, first_training)
    if training.process_index == 0:
        started_from = run.checkpoint or (first_run and first_run.checkpoint)
        record_run(training.output_dir, given, fingerprints, started_from, run.id)
        note_run(training.output_dir, run)
    model, processor, peft_config = load_model(model_arguments, rows.texts, training)
    if first_run is not None and run.checkpoint is None:
        first = train_first_stage(
            model, processor, peft_config, rows.first_stage, first_training, data.first_stage_epochs, first_run
        )
        if first.termination.terminated:
            return leave_after_termination(first)
        model, peft_config = first.model.model, None  # with its adapters
    trainer = build_trainer(model, processor, peft_config, rows, data, training)
    result = trainer.train(run=run)
    if trainer.termination.terminated:
        return leave_after_termination(trainer)
    trainer.save_model(_internal_call=True)  # published at the end, with its results
    log_history = list(trainer.state.log_history)  # without the evaluation of the model that is kept
    metrics = dict(result.metrics) | (trainer.evaluate() if rows.validation is not None else {})
    if trainer.is_world_process_zero():
        write_results(trainer, metrics, log_history)
        for path in list_checkpoints(first_stage_folder(training), run.id):
            discard(path, first_stage_folder(training))
    if training.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # no process leaves the group while another still works
    trainer.accelerator.end_training()
    return 0


def arguments_of_stages(
    training: LoGraMedTrainingArguments, alignment_stages: str
) -> tuple[LoGraMedTrainingArguments, LoGraMedTrainingArguments]:
    """Those of the first stage and of the main one: without alignment where `alignment_stages` leaves it out."""
    plain = replace(training, alignment_weight=0.0)
    return plain if alignment_stages == "main" else training, plain if alignment_stages == "first" else training


def read_data(
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    checkpoint: str | None,
    fingerprints: dict[str, str],
    first_training: LoGraMedTrainingArguments,
) -> Rows:
    """All rows of a run; `fingerprints` gets that of each source."""
    if data.streaming:
        stream, validation = open_rows(data, training, checkpoint, fingerprints)
        train, texts = stream.as_dataset(), (row for _, row in islice(stream.read_once(), NUM_TOKENIZER_ROWS))
    else:
        train, validation = load_rows(data, training, fingerprints)
        texts = train
    first_stage = load_first_stage(data, first_training, fingerprints)
    return Rows(train, validation, first_stage, chain(texts, first_stage))


def build_trainer(
    model: nn.Module,
    processor: Any,
    peft_config: LoraConfig | None,
    rows: Rows,
    data: DataArguments,
    training: LoGraMedTrainingArguments,
) -> LoGraMedTrainer:
    """The trainer of the run itself, with what watches it; says what is trained."""
    shuffler = TurnShuffler(training.seed, data.max_turns) if data.shuffle_turns else None
    trainer = LoGraMedTrainer(
        model,
        training,
        processing_class=processor,
        peft_config=peft_config,
        train_dataset=rows.train if shuffler is None else rows.train.with_transform(shuffler),
        eval_dataset=rows.validation,
        validation_questions=questions_of_rows(rows.validation or []),
    )
    if training.process_index == 0:
        print(describe_trained(trainer.model))
    if shuffler is not None:
        trainer.add_callback(SetEpochCallback(shuffler))
    if trainer.image_cache is not None and training.process_index == 0 and not data.streaming:
        num_images = sum(len(images) for images in rows.train.with_format(None)["images"])
        print(check_room(trainer.model.base, trainer.image_cache, num_images))
    if training.matching_picture_steps:
        trainer.add_callback(MatchingPictures(trainer, training.matching_picture_steps))
    show_progress(trainer)
    return trainer


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
    refuse_unknown(parser, argv)
    try:
        return parser.parse_args_and_config(argv)
    except yaml.YAMLError as error:
        recipe, mark = argv[argv.index("--config") + 1], getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{recipe}{place} is not YAML: {problem}.") from error


def find_recipe(name: str) -> Path:
    for path in (Path(name), RECIPE_FOLDER / name):
        if path.is_file():
            return path
    known = sorted(path.name for path in RECIPE_FOLDER.glob("*.yaml"))
    raise FileNotFoundError(f"There is no recipe {name}. Give the path of a YAML file, or one of {', '.join(known)}.")


def look_before_start(model: ModelArguments, data: DataArguments, training: LoGraMedTrainingArguments) -> int:
    """Print what a dry run finds; 1 if there is an error, else 0."""
    if data.streaming:
        raise ValueError("`dry_run` needs all rows at hand, and a stream (`streaming`) has not: leave one out.")

    def load_chosen(rows: Dataset) -> tuple[nn.Module, Any, LoraConfig | None]:
        return load_model(model, rows, training)

    def load_all(arguments: LoGraMedTrainingArguments) -> tuple[Dataset, Dataset | None]:
        first_arguments, arguments = arguments_of_stages(arguments, data.alignment_stages)
        load_first_stage(data, first_arguments, check_images=False)  # refused where it is bad
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
    needs = needs_of_alignment(training)
    rows = load_and_list_skipped(
        data.train_data,
        "",
        data,
        training,
        fingerprints,
        train_ids=data.train_ids,
        extended=data.extended_data,
        split=data.dataset_train_split,
        check_images=check_images,
        **needs,
    )
    validation, split = data.validation_data, "train"
    if validation is None and data.dataset_name and training.eval_strategy != "no" and not data.validation_share:
        validation = data.dataset_name
    if validation == data.train_data and not Path(validation).is_file():
        split = data.dataset_test_split
    if validation is not None:
        return rows, load_and_list_skipped(
            validation,
            "_validation",
            data,
            training,
            fingerprints,
            split=split,
            check_images=check_images,
            **needs,
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
    needs = needs_of_alignment(training)
    num_skipped = 0
    if checkpoint is not None:
        batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
        num_skipped = batch_size * TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    training.ignore_data_skip = True  # the stream does that itself, without making batches
    stream = RowStream(
        data.train_data,
        data.image_folder,
        on_bad_row=data.on_bad_row,
        seed=training.seed,
        num_skipped=num_skipped,
        split=data.dataset_train_split,
        volumes=data.volumes,
        **needs,
    )
    if training.process_index == 0:
        fingerprints[data.train_data] = stream.fingerprint
    validation = None
    if data.validation_data is not None:
        validation = load_and_list_skipped(data.validation_data, "_validation", data, training, fingerprints, **needs)
    return stream, validation


def needs_of_alignment(training: LoGraMedTrainingArguments) -> dict[str, Any]:
    """What batches need of each row, as arguments of `load_training_rows`: nothing further without alignment."""
    if training.alignment_weight == 0:
        return {"require_extended": False}
    return {
        "require_extended": training.uses_extended_answers,
        "rows_without_image": training.rows_without_image,
        "require_questions": training.alignment_granularity != "sample",
    }


def load_first_stage(
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    fingerprints: dict[str, str] | None = None,
    check_images: bool = True,
) -> Dataset | tuple[()]:
    """The rows of the first stage, if there is one; without alignment they need no extended answers."""
    if data.first_stage_data is None:
        return ()
    return load_and_list_skipped(
        data.first_stage_data,
        "_first_stage",
        data,
        training,
        fingerprints,
        **needs_of_alignment(training),
        check_images=check_images,
    )


def load_and_list_skipped(
    source: str,
    suffix: str,
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    fingerprints: dict[str, str] | None = None,
    train_ids: str | None = None,
    split: str = "train",
    **options,
) -> Dataset:
    """Rows of `source`; those skipped, if any, are counted and listed in a file in the output folder."""
    options |= {"split": split, "image_folder": data.image_folder, "on_bad_row": data.on_bad_row}
    options["volumes"] = data.volumes
    if source == data.train_data or holds_reports(source):
        options["report_section"] = data.report_section
    rows = load_training_rows(source, **options)
    if fingerprints is not None:
        fingerprints[source if split == "train" else f"{source} ({split})"] = rows.fingerprint
    if rows.skipped:
        path = Path(training.output_dir) / f"skipped_rows{suffix}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.write_skipped(path)
        print(f"Skipped {len(rows.skipped)} rows of {source}; see {path}.")
    return rows.dataset if train_ids is None else select_listed(rows, train_ids)


def train_first_stage(
    model: nn.Module,
    processor: Any,
    peft_config: LoraConfig | None,
    rows: Dataset,
    training: LoGraMedTrainingArguments,
    num_epochs: float,
    run: Run,
) -> LoGraMedTrainer:
    """
    Train `model` on `rows`, then leave it to the main stage; what aligned it is left behind.

    Checkpoints are saved as the second stage's are, the last one alone, in a folder of their own, until the run ends;
    a run that is to be resumed, and has none of the second stage, goes on from there.
    """
    arguments = replace(
        training,
        output_dir=str(first_stage_folder(training)),
        num_train_epochs=num_epochs,
        eval_strategy="no",
        save_strategy="epoch" if training.save_strategy == "best" else training.save_strategy,
        save_total_limit=1,
        load_best_model_at_end=False,
        push_to_hub=False,
        cache_image_features=None,
    )
    trainer = LoGraMedTrainer(
        model, arguments, processing_class=processor, peft_config=peft_config, train_dataset=rows
    )
    show_progress(trainer)
    trainer.train(run=run)
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


def find_image_tokens(arguments: ModelArguments, training: LoGraMedTrainingArguments) -> int:
    """How many tokens the model, existing or new, makes of a slice of a volume; no weights are loaded."""
    if arguments.model is not None:
        base, adapter = resolve_adapter(arguments.model)
        options = {"revision": arguments.model_revision, "trust_remote_code": training.trust_remote_code}
        with naming_base_model(arguments.model, base):
            return count_image_tokens(AutoProcessor.from_pretrained(processor_source(base, adapter), **options))
    vision_config = arguments.vision_config
    if arguments.vision is not None:
        with naming_model(arguments.vision, "`--vision`"):
            vision_config = AutoConfig.from_pretrained(arguments.vision)
        vision_config = getattr(vision_config, "vision_config", vision_config)
    return LoGraMedConfig(vision_config=vision_config, **(arguments.logramed_config or {})).num_image_tokens


def load_model(
    arguments: ModelArguments, train_rows: Iterable[dict], training: LoGraMedTrainingArguments
) -> tuple[nn.Module, Any, LoraConfig | None]:
    """
    The model to train (the one that `arguments.model` names, or a new one), frozen where it is not trained, its
    processor, and the adapters that it is to get, if any.
    """
    if arguments.model is not None:
        base, adapter = resolve_adapter(arguments.model)
        options = {"revision": arguments.model_revision, "trust_remote_code": training.trust_remote_code}
        with naming_base_model(arguments.model, base):
            processor = AutoProcessor.from_pretrained(processor_source(base, adapter), **options)
        if not isinstance(processor, ProcessorMixin):  # the tokenizer alone, where its class lacks a package
            raise ValueError(
                f"The processor of {arguments.model} cannot be loaded, only its tokenizer: its class needs a package "
                "that is not installed, such as torchvision (Qwen2.5-VL, SmolVLM) or num2words (SmolVLM)."
            )
        model = AutoModelForImageTextToText.from_pretrained(
            base,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            quantization_config=quantize_language_model(arguments, base, options),
            **options,
        )
        if adapter is not None:
            return go_on_with_adapter(model, adapter, arguments), processor, None
    elif arguments.vision is not None:
        model, processor = join_new_language_model(
            arguments.vision,
            arguments.text_config,
            training_texts(train_rows),
            arguments.vocab_size,
            seed=training.seed,
            **(arguments.logramed_config or {}),
        )
    else:
        model, processor = new_model(
            arguments.vision_config,
            arguments.text_config,
            training_texts(train_rows),
            arguments.vocab_size,
            arguments.logramed_config,
            training.seed,
            arguments.position_embedding_scale,
        )
    parts, peft_config = parse_parts(arguments.train, arguments.use_peft), get_peft_config(arguments)
    if peft_config is None:
        freeze_parts(model, parts)
    else:
        complete_adapters(peft_config, model, parts)
        keep_tower_in_evaluation_mode(model)
    set_seed(training.seed)  # of the adapters
    return model, processor, peft_config


def go_on_with_adapter(model: nn.Module, adapter: str, arguments: ModelArguments) -> nn.Module:
    """
    The model with an adapter that is trained further, and what the adapter's folder has beside it (the projector).

    Raises:
        ValueError: If the arguments ask for an adapter of another kind than this one is.
    """
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    config = model.active_peft_config
    for name, own in {"lora_r": config.r, "lora_alpha": config.lora_alpha, "use_dora": config.use_dora}.items():
        asked, default = getattr(arguments, name), ModelArguments.__dataclass_fields__[name].default
        if asked not in (own, default):
            raise ValueError(f"`{name}` is {asked}, but the adapter in {adapter} has {own}: leave it out.")
    parts = parse_parts(arguments.train, use_peft=True)
    if "projector" not in parts:
        for weight in find_weights(model)["projector"]:
            weight.requires_grad_(False)
    keep_tower_in_evaluation_mode(model)
    return model


def quantize_language_model(
    arguments: ModelArguments, base: str, options: dict[str, Any]
) -> BitsAndBytesConfig | None:
    """TRL's quantization, of the language model's layers alone: the projector is trained in full."""
    config = get_quantization_config(arguments)
    if config is not None:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                AutoConfig.from_pretrained(base, **options),
                trust_remote_code=options["trust_remote_code"],
            )
        config.llm_int8_skip_modules = unquantized_modules(model)
    return config


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
    if any("loss" in entry or "eval_loss" in entry for entry in log_history):  # not so where no step was logged
        plot_curves(log_history, output / "curves.png")
    write_local_card(output)
    print(f"\nTrained {state.global_step} steps in {metrics['train_runtime'] / 60:.1f} minutes; wrote {output}.")
    if "eval_loss" in metrics:
        print(f"On validation: {describe_evaluation(metrics)}.")


def write_local_card(output: Path) -> None:
    """The card of a run that has just ended, for this machine; publishing writes it anew."""
    from logramed.hub_cards.model_card import write_model_card
    from logramed.hub_cards.publications import CARD_NAME

    (output / CARD_NAME).write_text(write_model_card(output, str(output)).text, encoding="utf-8")


def publish(trainer: LoGraMedTrainer, commit_message: str, token: str | None = None) -> str | None:
    """
    Publish what is in `output_dir` with its card, in one commit (see `logramed.hub_cards.push`). Private unless
    `hub_private_repo` is false.

    Returns:
        `str`: the hash of the commit, on the main process; None on others.

    Raises:
        PushError: If it could not be published, or holds what must not be.
    """
    from logramed.hub_cards.publications import prepare
    from logramed.hub_cards.push import PushError, push

    arguments = trainer.args
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    folder, repo_id = arguments.output_dir, trainer.hub_model_id
    publication = prepare(folder, repo_id, license=arguments.hub_license)
    try:
        return push(
            publication,
            repo_id,
            private=arguments.hub_private_repo is not False,
            revision=arguments.hub_revision,
            message=commit_message,
            token=token or arguments.hub_token,
        )
    except PushError as error:
        error.add_note(
            f"The run is complete in {folder}. Publish it with `logramed-push {folder} --repo {repo_id} "
            f"--license {arguments.hub_license}`."
        )
        raise


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
