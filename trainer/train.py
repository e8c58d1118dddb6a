"""
Train a LoGra-Med model: `python trainer/train.py RECIPE.yaml [--any_argument value]`, also `logramed-train`.

A recipe is a YAML file of arguments; the command line overrides it. `--help` lists the arguments by group.
"""

# Registers LoGra-Med with the Auto classes. Stands before bitsandbytes, whose warning it leaves out.
import logramed.eval  # noqa: F401


# isort: split
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import LoraConfig
from torch import nn
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints
from trl import TrlParser

from logramed.eval.command_line import refuse_unknown, run_command
from logramed.eval.grouped_help import add_grouped_help
from logramed.trainer.arguments import GROUPS, DataArguments, LoGraMedTrainingArguments, ModelArguments
from logramed.trainer.checkpoints.interruption import TERMINATED_EXIT_CODE
from logramed.trainer.checkpoints.provenance import record_run
from logramed.trainer.checkpoints.saving import clear_output, find_checkpoint
from logramed.trainer.data import SetEpochCallback, TurnShuffler, questions_of_rows
from logramed.trainer.data.run_data import Rows, read_data
from logramed.trainer.engines.parts import describe_trained
from logramed.trainer.model_loading import find_image_tokens, load_model
from logramed.trainer.trainer import LoGraMedTrainer
from logramed.trainer.watching.curves import plot_curves
from logramed.trainer.watching.dry_run import dry_run
from logramed.trainer.watching.progress import LossProgressCallback, describe_evaluation


RECIPE_FOLDER = Path(__file__).parent / "recipes"
DESCRIPTION = (
    "Train a vision-language model with the alignment loss. A recipe is a YAML file of arguments, or the name of one "
    "that comes with the package, such as quickstart.yaml; the command line overrides it."
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = model_arguments, data, training = parse_arguments(sys.argv[1:] if argv is None else argv)
    data.volumes = replace(data.volumes, tokens_per_image=partial(find_image_tokens, model_arguments, training))
    if data.dry_run:
        return look_before_start(model_arguments, data, training)
    fingerprints: dict[str, str] = {}
    first_checkpoint, checkpoint = find_checkpoints(training, data.first_stage_data is not None)
    first_training = arguments_of_first_stage(training, data.first_stage_epochs)
    rows = read_data(data, training, fingerprints)
    if training.process_index == 0:
        record_run(training.output_dir, arguments, fingerprints, checkpoint or first_checkpoint)
        clear_output(training.output_dir, checkpoint)
        clear_output(first_training.output_dir, first_checkpoint)
    model, processor, peft_config = load_model(model_arguments, rows.texts, training)
    if data.first_stage_data is not None and checkpoint is None:
        first = train_first_stage(model, processor, peft_config, rows.first_stage, first_training, first_checkpoint)
        if first.termination.terminated:
            return exit_after_sigterm(first)
        model, peft_config = first.model.model, None  # with its adapters
    trainer = build_trainer(model, processor, peft_config, rows, data, training)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.termination.terminated:
        return exit_after_sigterm(trainer)
    finish(trainer, dict(result.metrics))
    return 0


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, LoGraMedTrainingArguments]:
    """
    Arguments of a run from `[RECIPE.yaml] [--argument value ...]`.

    A recipe that is not a file is looked for among those of the package, so `quickstart.yaml` alone is enough.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If the recipe or the command line has an unknown argument.
        yaml.YAMLError: If the recipe is not YAML.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(find_recipe(argv[0])), *argv[1:]]
    kinds = (ModelArguments, DataArguments, LoGraMedTrainingArguments)
    parser = TrlParser(kinds, prog="logramed-train", add_help=False)
    add_grouped_help(parser, GROUPS, "[RECIPE.yaml] [--argument VALUE ...]", DESCRIPTION)
    refuse_unknown(parser, argv)
    return parser.parse_args_and_config(argv)


def find_recipe(name: str) -> Path:
    for path in (Path(name), RECIPE_FOLDER / name):
        if path.is_file():
            return path
    known = sorted(path.name for path in RECIPE_FOLDER.glob("*.yaml"))
    raise FileNotFoundError(f"There is no recipe {name}. Give the path of a YAML file, or one of {', '.join(known)}.")


def look_before_start(model: ModelArguments, data: DataArguments, training: LoGraMedTrainingArguments) -> int:
    """Run and print the dry run."""
    if data.streaming:
        raise ValueError("`dry_run` needs all rows at once, which a stream (`streaming`) does not have: drop one.")

    def load(arguments: LoGraMedTrainingArguments) -> tuple[Dataset, nn.Module, Any, LoraConfig | None]:
        rows = read_data(data, arguments, {})
        return rows.train, *load_model(model, rows.texts, arguments)

    print(dry_run(training, load))
    return 0


def arguments_of_first_stage(training: LoGraMedTrainingArguments, num_epochs: float) -> LoGraMedTrainingArguments:
    """The arguments of the first stage: no alignment, and one checkpoint in a folder of its own."""
    return replace(
        training,
        alignment_weight=0.0,
        output_dir=str(first_stage_folder(training)),
        num_train_epochs=num_epochs,
        eval_strategy="no",
        save_strategy="epoch" if training.save_strategy == "best" else training.save_strategy,
        save_total_limit=1,
        load_best_model_at_end=False,
        push_to_hub=False,
        cache_image_features=None,
    )


def first_stage_folder(training: LoGraMedTrainingArguments) -> Path:
    return Path(training.output_dir) / "first_stage"


def find_checkpoints(training: LoGraMedTrainingArguments, has_first_stage: bool) -> tuple[str | None, str | None]:
    """
    The checkpoints from which the first and the main stage resume. The first stage resumes only if the main stage has
    no checkpoint, or if the named checkpoint is the first stage's.
    """
    wanted, folder = training.resume_from_checkpoint, first_stage_folder(training)
    if has_first_stage and isinstance(wanted, str) and Path(wanted).resolve().is_relative_to(folder.resolve()):
        return find_checkpoint(folder, wanted), None
    checkpoint = find_checkpoint(training.output_dir, wanted)
    return find_checkpoint(folder, wanted) if has_first_stage and checkpoint is None else None, checkpoint


def train_first_stage(
    model: nn.Module,
    processor: Any,
    peft_config: LoraConfig | None,
    rows: Dataset,
    training: LoGraMedTrainingArguments,
    checkpoint: str | None,
) -> LoGraMedTrainer:
    """Train `model` on `rows` before the main stage; its wrapper for alignment is dropped."""
    trainer = LoGraMedTrainer(model, training, processing_class=processor, peft_config=peft_config, train_dataset=rows)
    show_progress(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def build_trainer(
    model: nn.Module,
    processor: Any,
    peft_config: LoraConfig | None,
    rows: Rows,
    data: DataArguments,
    training: LoGraMedTrainingArguments,
) -> LoGraMedTrainer:
    """The trainer of the main stage; prints which parts are trained."""
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
    show_progress(trainer)
    return trainer


def show_progress(trainer: LoGraMedTrainer) -> None:
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # in a notebook another than `ProgressCallback`
    trainer.add_callback(LossProgressCallback)


def exit_after_sigterm(trainer: LoGraMedTrainer) -> int:
    """Print how to resume a run that SIGTERM ended, and return the exit code."""
    if trainer.is_world_process_zero():
        print(
            f"\nStopped by SIGTERM after step {trainer.state.global_step}, which is saved in "
            f"{get_last_checkpoint(trainer.args.output_dir)}. The same command with "
            "`--resume_from_checkpoint true` goes on from there."
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return TERMINATED_EXIT_CODE


def finish(trainer: LoGraMedTrainer, metrics: dict[str, float]) -> None:
    """Save the model, evaluate it, write the results, and publish them if `push_to_hub` is set."""
    trainer.save_model(_internal_call=True)  # published at the end, with its results
    log_history = list(trainer.state.log_history)  # without the evaluation of the model that is kept
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    if trainer.is_world_process_zero():
        write_results(trainer, metrics, log_history)
        for path in sort_checkpoints(first_stage_folder(trainer.args)):
            shutil.rmtree(path)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # no process leaves the group while another still works
    trainer.accelerator.end_training()


def write_results(trainer: LoGraMedTrainer, metrics: dict[str, float], log_history: list[dict]) -> None:
    """Write `train_metrics.json` (final figures and the log of every step) and `curves.png`, and print a summary."""
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
    """Write the card of a finished run into its folder; publishing writes it again."""
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
        PushError: If it could not be published, or has content that must not be published.
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
