"""Atomic checkpoints, and the states that a resumed run needs to continue as if it had never stopped."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints, sort_checkpoints

from logramed.eval.command_line import UserError


logger = logging.getLogger(__name__)

STATE_NAME = "logramed_state_rank{}.pt"
# Checkpoints are written here and then renamed. `Trainer` only looks for `checkpoint-*`.
STAGING_FOLDER = "unfinished"


class CheckpointError(UserError):
    """A checkpoint could not be written or found."""


class WholeCheckpoints:
    """
    Mixin for `transformers.Trainer`: a checkpoint is written to `output_dir/unfinished`, synced to the disk and then
    renamed; only then are older ones deleted (`save_total_limit`). A kill or power failure at any moment thus leaves
    the last one intact. Checkpoints of an earlier run are moved to `output_dir/earlier-1` and so on. A checkpoint also
    holds each process's states of the objects in `stateful`.
    """

    stateful: dict[str, Any]
    _staged = False

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        As `Trainer`'s; with `resume_from_checkpoint` true and no checkpoint, training starts from the beginning.
        Raises `CheckpointError` if the folder does not exist. Errors during training name the last checkpoint.
        """
        checkpoint = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self.accelerator.wait_for_everyone()  # all must have looked before one moves checkpoints
        if self.args.should_save:
            clear_output(self.args.output_dir, checkpoint)
        self.accelerator.wait_for_everyone()
        self._resumed_from = checkpoint
        # At its end `Trainer` would delete all but the best, including the one saved at SIGTERM: hide the limit.
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with announce_last_checkpoint(self.args.output_dir):
                return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            self.args.save_total_limit = self._limit

    def _save_checkpoint(self, model, trial):
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        staged = final.parent / STAGING_FOLDER / final.name
        try:
            with self._staging():
                super()._save_checkpoint(model, trial)
            self._save_stateful(staged)
            self._correct_best_checkpoint(staged, final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                put_in_place(staged, final)
            self.accelerator.wait_for_everyone()
            if self.args.local_process_index == 0 and staged.is_dir():  # machines that share no disk
                put_in_place(staged, final)
        except (OSError, RuntimeError, ValueError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            free = shutil.disk_usage(final.parent).free / 2**30
            raise CheckpointError(
                f"{final} could not be written: {type(error).__name__}: {error}. The disk has {free:.2f} GiB free; "
                "`save_total_limit` and `save_only_model` reduce the space for checkpoints."
            ) from error
        if self.args.should_save:
            rotate_checkpoints(self.args.output_dir, self._limit, self.state.best_model_checkpoint)

    @contextmanager
    def _staging(self):
        """Within this context, `Trainer` saves to the staging folder and pushes nothing."""
        self._staged, pushes = True, self.args.push_to_hub
        self.args.push_to_hub = False
        try:
            yield
        finally:
            self._staged, self.args.push_to_hub = False, pushes

    def _get_output_dir(self, trial):
        return os.path.join(self.args.output_dir, STAGING_FOLDER) if self._staged else self.args.output_dir

    def _save_stateful(self, folder: Path) -> None:
        states = {name: part.state_dict() for name, part in self.stateful.items()}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(states, folder / STATE_NAME.format(self.args.process_index))

    def _correct_best_checkpoint(self, staged: Path, final: Path) -> None:
        """If this is the best checkpoint, `Trainer` has recorded the staging folder; record the final one instead."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def load_stateful(self) -> None:
        """Restore `stateful` and the best checkpoint from the checkpoint to resume from, if there is one."""
        if self._resumed_from is None:
            return
        self._find_best_again(Path(self._resumed_from))
        path = Path(self._resumed_from) / STATE_NAME.format(self.args.process_index)
        if not path.is_file():
            return
        device = self.args.device
        # With several processes on CPUs the device is "cpu:0", which `torch.load` does not accept.
        states = torch.load(path, map_location="cpu" if device.type == "cpu" else device, weights_only=True)
        for name, state in states.items():
            if name in self.stateful:
                self.stateful[name].load_state_dict(state)

    def _find_best_again(self, checkpoint: Path) -> None:
        """Look for the best checkpoint next to `checkpoint`, which may have been moved; forget it if it is missing."""
        recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        if recorded is None:
            return
        beside = checkpoint.with_name(Path(recorded).name)
        if beside.is_dir():
            self.state.best_model_checkpoint = str(beside)
        else:
            self.state.best_model_checkpoint = self.state.best_metric = self.state.best_global_step = None
            logger.warning(f"The best checkpoint so far, {recorded}, is missing: the best of the later ones is kept.")


class ResumingCallback(TrainerCallback):
    """Calls `begin` once `Trainer` has reset its own sums, before the first step."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin()


class LoggedSums:
    """
    A trainer's sums since it last logged, which transformers loses when it resumes. Restoring them makes the first
    figures that a resumed run logs equal those of an uninterrupted run.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "loss": trainer._tr_loss.item(),
            "total_loss": trainer._total_loss_scalar,
            "last_logged_step": trainer._globalstep_last_logged,
            "first_step": trainer._initial_global_step,
            "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
            "num_tokens": int(trainer._total_train_tokens),
            "training_mode": trainer.model.training,  # False after an evaluation; the last log depends on it
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer._tr_loss.fill_(state["loss"])
        trainer._total_loss_scalar = state["total_loss"]
        trainer._globalstep_last_logged = state["last_logged_step"]
        trainer._initial_global_step = state["first_step"]
        trainer._metrics["train"].update(state["metrics"])
        trainer._total_train_tokens = state["num_tokens"]
        trainer.model.train(state["training_mode"])


def find_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | bool | None) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` selects, the same on all processes: a path, which must exist, or for
    true (also as text) the last one in `output_dir`, if any.
    """
    wanted = resume_from_checkpoint
    if isinstance(wanted, str) and wanted.lower() in ("true", "false"):
        wanted = wanted.lower() == "true"
    if wanted is True:
        found = broadcast_object_list([find_last_checkpoint(output_dir)])[0]
        if found is None:
            logger.warning(f"There is no checkpoint in {output_dir}: training starts from the beginning.")
        return found
    if not wanted:
        return None
    if not Path(wanted).is_dir():
        raise CheckpointError(f"`resume_from_checkpoint` is {wanted}, but this folder does not exist.")
    return str(wanted)


def find_last_checkpoint(output_dir: str | Path) -> str | None:
    return get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None


def step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2])


def clear_output(output_dir: str | Path, resumed_from: str | None) -> None:
    """
    Remove the unfinished checkpoint of a killed run, and move checkpoints that the new run does not continue to a
    separate folder: those after `resumed_from`, or all if that is not in `output_dir`.
    """
    output_dir = Path(output_dir)
    shutil.rmtree(output_dir / STAGING_FOLDER, ignore_errors=True)
    is_inside = resumed_from is not None and Path(resumed_from).resolve().parent == output_dir.resolve()
    last_step = step_of(resumed_from) if is_inside else -1
    others = [Path(path) for path in sort_checkpoints(output_dir) if step_of(path) > last_step]
    if others:
        number = 1 + len(list(output_dir.glob("earlier-*")))
        folder = output_dir / f"earlier-{number}"
        folder.mkdir()
        for path in others:
            path.rename(folder / path.name)
        logger.warning(f"Moved {len(others)} checkpoint(s) of another run from {output_dir} to {folder}.")


def put_in_place(staged: Path, final: Path) -> None:
    """Sync a finished checkpoint to the disk and rename it, replacing an existing one of that name."""
    for path in [*staged.rglob("*"), staged]:
        _force_to_disk(path)
    former = staged.with_name(f"former-{final.name}")
    if final.exists():
        final.rename(former)
    staged.rename(final)
    shutil.rmtree(former, ignore_errors=True)
    if not any(staged.parent.iterdir()):
        staged.parent.rmdir()
    _force_to_disk(final.parent)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def announce_last_checkpoint(output_dir: str | Path) -> Iterator[None]:
    """Add a note to errors raised in this block: which checkpoint is the last, and how to resume from it."""
    try:
        yield
    except BaseException as error:
        checkpoint = find_last_checkpoint(output_dir)
        if checkpoint is None:
            error.add_note(f"There is no checkpoint of this run in {output_dir} to resume from.")
        else:
            error.add_note(
                f"The last checkpoint is {checkpoint}. Once the cause is fixed, resume from it with the same command "
                "and `--resume_from_checkpoint true`."
            )
        raise
