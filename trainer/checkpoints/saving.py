"""Checkpoints that appear whole or not at all, and what a resumed run needs to go on as if it had never stopped."""

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
# Where a checkpoint is written before it takes its place. `Trainer` looks for `checkpoint-*` only.
STAGING_FOLDER = "unfinished"


class CheckpointError(UserError):
    """A checkpoint that could not be written or found."""


class WholeCheckpoints:
    """
    For a subclass of `transformers.Trainer`: a checkpoint is written to `output_dir/unfinished`, forced to the disk
    and then renamed, and only then are older ones deleted (`save_total_limit`). So a kill or a power failure at any
    moment leaves the last one in place. Checkpoints of an earlier run are moved to `output_dir/earlier-1` and so on. A
    checkpoint holds the states of the objects in `stateful` too, each process's own.
    """

    stateful: dict[str, Any]
    _staged = False

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        As `Trainer`'s; with `resume_from_checkpoint` true and no checkpoint, training starts from the beginning.
        Raises `CheckpointError` if there is no such folder. An error in training names the last checkpoint.
        """
        checkpoint = find_checkpoint(self.args.output_dir, resume_from_checkpoint)
        self.accelerator.wait_for_everyone()  # all have looked before one of them clears away
        if self.args.should_save:
            clear_output(self.args.output_dir, checkpoint)
        self.accelerator.wait_for_everyone()
        self._resumed_from = checkpoint
        # At its end `Trainer` would delete all but the best, the one that SIGTERM left among them: it sees no limit.
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
            if self.args.local_process_index == 0 and staged.is_dir():  # a machine with a disk of its own
                put_in_place(staged, final)
        except (OSError, RuntimeError, ValueError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            free = shutil.disk_usage(final.parent).free / 2**30
            raise CheckpointError(
                f"{final} could not be written: {type(error).__name__}: {error}. The disk has {free:.2f} GiB free; "
                "`save_total_limit` and `save_only_model` make checkpoints take less."
            ) from error
        if self.args.should_save:
            rotate_checkpoints(self.args.output_dir, self._limit, self.state.best_model_checkpoint)

    @contextmanager
    def _staging(self):
        """While this holds, `Trainer` saves into the staging folder and pushes nothing."""
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
        """`Trainer` has noted the staging folder where this is the best checkpoint; the state must name the final."""
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))

    def load_stateful(self) -> None:
        """What `stateful` and the best were in the checkpoint that is resumed from; nothing where there is none."""
        if self._resumed_from is None:
            return
        self._find_best_again(Path(self._resumed_from))
        path = Path(self._resumed_from) / STATE_NAME.format(self.args.process_index)
        if not path.is_file():
            return
        device = self.args.device
        # Of several processes on CPUs each has a device "cpu:0", which `torch.load` does not know.
        states = torch.load(path, map_location="cpu" if device.type == "cpu" else device, weights_only=True)
        for name, state in states.items():
            if name in self.stateful:
                self.stateful[name].load_state_dict(state)

    def _find_best_again(self, checkpoint: Path) -> None:
        """The best checkpoint stands beside `checkpoint`, wherever that was moved; if not, it is sought anew."""
        recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        if recorded is None:
            return
        beside = checkpoint.with_name(Path(recorded).name)
        if beside.is_dir():
            self.state.best_model_checkpoint = str(beside)
        else:
            self.state.best_model_checkpoint = self.state.best_metric = self.state.best_global_step = None
            logger.warning(f"The best checkpoint so far, {recorded}, is gone: the best of the later ones is kept.")


class ResumingCallback(TrainerCallback):
    """Calls `begin` once `Trainer` has reset its own sums, before the first step."""

    def __init__(self, begin: Callable[[], None]):
        self.begin = begin

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin()


class LoggedSums:
    """
    What a trainer has summed up since it last logged, which transformers forgets when it resumes: with it the first
    figures that a resumed run logs are those of the uninterrupted run.
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
            "training_mode": trainer.model.training,  # after an evaluation it is not, which the last log goes by
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
    The checkpoint that `resume_from_checkpoint` stands for, the same on all processes: that of a path, which must
    exist, or with true (also as text) the last one in `output_dir`, if there is one.
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
        raise CheckpointError(f"`resume_from_checkpoint` is {wanted}, but there is no such folder.")
    return str(wanted)


def find_last_checkpoint(output_dir: str | Path) -> str | None:
    return get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None


def step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.rpartition("-")[2])


def clear_output(output_dir: str | Path, resumed_from: str | None) -> None:
    """
    Remove what a killed run left of a checkpoint that it was writing, and move checkpoints that the run to come does
    not go on from into a folder of their own: later ones than `resumed_from`, or all, if that is not in `output_dir`.
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
        logger.warning(f"{output_dir} held {len(others)} checkpoint(s) of another run, which are in {folder} now.")


def put_in_place(staged: Path, final: Path) -> None:
    """Force a finished checkpoint to the disk and give it its name; one of that name makes way."""
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
    """Add to whatever error leaves this block which checkpoint is the last, and how to go on from it."""
    try:
        yield
    except BaseException as error:
        checkpoint = find_last_checkpoint(output_dir)
        if checkpoint is None:
            error.add_note(f"There is no checkpoint of this run in {output_dir} to go on from.")
        else:
            error.add_note(
                f"The last checkpoint is {checkpoint}. Once the cause is fixed, the same command with "
                "`--resume_from_checkpoint true` goes on from it."
            )
        raise
