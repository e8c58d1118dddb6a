"""Checkpoints that are whole or not there, and what a resumed run needs to go on as if it had never stopped."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
STATE_NAME = "logramed_state_rank{}.pt"
# Where a checkpoint is written before it takes its place. `Trainer` looks for `checkpoint-*` only.
STAGING_FOLDER = "unfinished"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
READ_SIZE = 1 << 24  # bytes hashed at a time


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written, or that is not what was written."""


class WholeCheckpoints:
    """
    For a subclass of `transformers.Trainer`: checkpoints appear complete or not at all, each with a manifest of its
    files, and `resume_from_checkpoint=True` goes on from the last one that is as it was written.

    A checkpoint is written to `output_dir/unfinished`, forced to the disk, and then renamed; only after that are older
    ones deleted (`save_total_limit`). So a kill or a power failure at any moment leaves the last one in place.

    Attributes:
        stateful (`dict[str, Any]`): Further objects with `state_dict()` and `load_state_dict(state)`, each process's
            own, that a checkpoint holds beside what transformers saves.
    """

    stateful: dict[str, Any]

    def train(self, resume_from_checkpoint: str | bool | None = None, is_checked: bool = False, **kwargs):
        """
        As `Trainer`'s.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint's folder, or true (also as text) for the
                last good one in `output_dir`; if there is none, training starts from the beginning and says so.
            is_checked (`bool`, *optional*, defaults to `False`): It is what `choose_checkpoint` has just returned, and
                need not be read through again.

        Raises:
            CheckpointError: If the folder that is named is damaged. An error in training names the last good
                checkpoint.
        """
        checkpoint = resume_from_checkpoint
        if not is_checked:
            checkpoint = choose_checkpoint(resume_from_checkpoint, self.args.output_dir)
        self.accelerator.wait_for_everyone()  # all have looked before one of them clears away
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
        self._resumed_from, self._randomness_restored = checkpoint, False
        with announce_last_checkpoint(self.args.output_dir):
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _save_checkpoint(self, model, trial):
        step = self.state.global_step
        output_folder = Path(super()._get_output_dir(trial))
        final = output_folder / f"checkpoint-{step}"
        staged = output_folder / STAGING_FOLDER / final.name
        try:
            with self._staging(trial):
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
            raise CheckpointError(describe_failure(final, error)) from error
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output_folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )

    @contextmanager
    def _staging(self, trial):
        """While this holds, `Trainer` saves into the staging folder, pushes nothing and deletes nothing."""
        self._staged, pushes = True, self.args.push_to_hub
        self.args.push_to_hub = False
        try:
            yield
        finally:
            self._staged, self.args.push_to_hub = False, pushes

    def _get_output_dir(self, trial):
        output_folder = super()._get_output_dir(trial)
        return os.path.join(output_folder, STAGING_FOLDER) if getattr(self, "_staged", False) else output_folder

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

    def restore_randomness(self) -> None:
        """
        The first time after a start, the random states of the checkpoint. `Trainer` sets them once it has skipped the
        batches of a checkpoint; where the data skip those themselves (`ignore_data_skip`), before the first is read.
        """
        if self.args.ignore_data_skip and not self._randomness_restored:
            self._load_rng_state(self._resumed_from)
        self._randomness_restored = True

    def load_stateful(self) -> None:
        """What `stateful` was in the checkpoint that is resumed from; nothing where there is none."""
        path = Path(self._resumed_from or "") / STATE_NAME.format(self.args.process_index)
        if self._resumed_from is None or not path.is_file():
            return
        device = self.args.device
        # Of several processes on CPUs each has a device "cpu:0", which `torch.load` does not know.
        states = torch.load(path, map_location="cpu" if device.type == "cpu" else device, weights_only=True)
        for name, state in states.items():
            if name in self.stateful:
                self.stateful[name].load_state_dict(state)


class ResumingCallback(TrainerCallback):
    """
    Calls `begin` once `Trainer` has reset its own sums and before the first step, and `before_step` before each, when
    the random states of the checkpoint are restored.
    """

    def __init__(self, begin: Callable[[], None], before_step: Callable[[], None]):
        self.begin, self.before_step = begin, before_step

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin()

    def on_step_begin(self, args, state, control, **kwargs):
        self.before_step()


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


def put_in_place(staged: Path, final: Path) -> None:
    """Force a finished checkpoint to the disk and give it its name; a damaged one of that name makes way."""
    write_manifest(staged)
    if final.exists():
        shutil.rmtree(final)
    staged.rename(final)
    if not any(staged.parent.iterdir()):
        staged.parent.rmdir()
    _force_to_disk(final.parent)


def write_manifest(folder: Path) -> None:
    """Write the size and digest (XXH3, 128 bits) of each file in `folder`, after forcing all of it to the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.name != MANIFEST_NAME):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "xxh3_128": hash_file(path)}
        _force_to_disk(path)
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    _force_to_disk(manifest)
    _force_to_disk(folder)


def hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(READ_SIZE):
            digest.update(part)
    return digest.hexdigest()


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words that name the file, or None if it is as it was written."""
    manifest = checkpoint / MANIFEST_NAME
    if not manifest.is_file():
        return f"it has no {MANIFEST_NAME}, so it was not finished or was written by another program"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError) as error:
        return f"its {MANIFEST_NAME} cannot be read ({error})"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"its file {name} has {path.stat().st_size} bytes where {expected['size']} were written"
        if hash_file(path) != expected["xxh3_128"]:
            return f"its file {name} has another content than was written"
    return None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder, the latest step first, damaged ones among them."""
    folder = Path(output_dir)
    found = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return [path for _, path in sorted(((int(match[1]), path) for match, path in found if match), reverse=True)]


def find_last_checkpoint(output_dir: str | Path) -> Path | None:
    """The last checkpoint that is as it was written; damaged ones are passed over with a warning that names them."""
    for checkpoint in list_checkpoints(output_dir):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning(f"The checkpoint {checkpoint} is passed over: {damage}.")
    return None


def choose_checkpoint(resume_from_checkpoint: str | bool | None, output_dir: str | Path) -> str | None:
    """The checkpoint that `resume_from_checkpoint` (see `WholeCheckpoints.train`) stands for, or None."""
    wanted = resume_from_checkpoint
    if isinstance(wanted, str) and wanted.lower() in ("true", "false"):
        wanted = wanted.lower() == "true"
    if not wanted:
        return None
    if wanted is True:
        checkpoint = find_last_checkpoint(output_dir)
        if checkpoint is None:
            logger.warning(f"There is no good checkpoint in {output_dir}: training starts from the beginning.")
            return None
        logger.warning(f"Training goes on from {checkpoint}.")
        return str(checkpoint)
    if not Path(wanted).is_dir():
        raise CheckpointError(f"`resume_from_checkpoint` is {wanted}, but there is no such folder.")
    damage = find_damage(Path(wanted))
    if damage is not None and (Path(wanted) / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"The checkpoint {wanted} is damaged: {damage}. `resume_from_checkpoint=true` takes the last good one."
        )
    if damage is not None:
        logger.warning(f"The checkpoint {wanted} cannot be checked: {damage}.")
    return str(wanted)


def remove_unfinished(output_dir: str | Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing."""
    staging = Path(output_dir) / STAGING_FOLDER
    if staging.is_dir():
        logger.warning(f"{staging} holds the beginning of a checkpoint, of a run that was killed, and is removed.")
        shutil.rmtree(staging)


def describe_failure(checkpoint: Path, error: Exception) -> str:
    free = shutil.disk_usage(checkpoint.parent).free / 2**30
    return (
        f"{checkpoint} could not be written, and nothing of it is left: {type(error).__name__}: {error}. The disk has "
        f"{free:.2f} GiB free; `save_total_limit` and `save_only_model` make checkpoints take less of it."
    )


@contextmanager
def announce_last_checkpoint(output_dir: str | Path) -> Iterator[None]:
    """Add to whatever error leaves this block which checkpoint is the last good one, and how to go on from it."""
    try:
        yield
    except BaseException as error:
        checkpoint = find_last_checkpoint(output_dir)
        if checkpoint is None:
            error.add_note(f"There is no checkpoint in {output_dir} to go on from.")
        else:
            error.add_note(
                f"The last good checkpoint is {checkpoint}. Once the cause is mended, the same command with "
                "`--resume_from_checkpoint true` goes on from it."
            )
        raise
