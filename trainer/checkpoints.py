"""Checkpoints that are whole or not there, and what a resumed run needs to go on as if it had never stopped."""

import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from logramed.eval.command_line import UserError
from logramed.eval.files import write_whole


logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
STATE_NAME = "logramed_state_rank{}.pt"
RUN_ID_NAME = "run_id"  # in `output_dir`: the id of the run that was last started there
# Where a checkpoint is written before it takes its place. `Trainer` looks for `checkpoint-*` only.
STAGING_FOLDER = "unfinished"
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
READ_SIZE = 1 << 24  # bytes hashed at a time


class CheckpointError(UserError):
    """A checkpoint that could not be written, or that is not what was written."""


@dataclass(frozen=True)
class Run:
    """
    A run of training, which knows its own checkpoints in a folder that other runs may have used.

    Attributes:
        id (`str`): In the manifest of each of its checkpoints; a run that is resumed keeps it.
        folder (`str`): Where it writes checkpoints: `output_dir`, or `run-ID` in it where there are those of others.
        checkpoint (`str`, *optional*): The checkpoint that it goes on from.
    """

    id: str
    folder: str
    checkpoint: str | None = None


class WholeCheckpoints:
    """
    For a subclass of `transformers.Trainer`: checkpoints appear complete or not at all, each with a manifest of its
    files and the id of its run, and `resume_from_checkpoint=True` goes on from the run's last one that is as it was
    written.

    A checkpoint is written to `output_dir/unfinished`, forced to the disk, and then renamed; only after that are older
    ones of the same run deleted (`save_total_limit`). So a kill or a power failure at any moment leaves the last one
    in place. Nothing else deletes any: neither the end of training nor another run.

    Attributes:
        run (`Run`): The run of the last call of `train`.
        stateful (`dict[str, Any]`): Further objects with `state_dict()` and `load_state_dict(state)`, each process's
            own, that a checkpoint holds beside what transformers saves.
    """

    run: Run
    stateful: dict[str, Any]
    _staged = False

    def train(self, resume_from_checkpoint: str | bool | None = None, run: Run | None = None, **kwargs):
        """
        As `Trainer`'s.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint's folder, or true (also as text) for the
                last good one of the run that was last started in `output_dir`; if there is none, training starts from
                the beginning and says so.
            run (`Run`, *optional*): What `open_run` has returned, in place of `resume_from_checkpoint`; its caller
                then notes it (`note_run`).

        Raises:
            CheckpointError: If the folder that is named is damaged. An error in training names the last good
                checkpoint.
        """
        is_noted = run is not None
        self.run = run = run or open_run(self.args, resume_from_checkpoint)
        self.accelerator.wait_for_everyone()  # all have looked before one of them clears away
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
            if not is_noted:
                note_run(self.args.output_dir, run)
        self._resumed_from, self._randomness_restored = run.checkpoint, False
        # `Trainer` counts the checkpoints of other runs, and at the end deletes all but the best: it sees no limit.
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with announce_last_checkpoint(self.args.output_dir, run.id):
                return super().train(resume_from_checkpoint=run.checkpoint, **kwargs)
        finally:
            self.args.save_total_limit = self._limit

    def _save_checkpoint(self, model, trial):
        final = Path(self.run.folder) / f"checkpoint-{self.state.global_step}"
        staged = Path(self.args.output_dir) / STAGING_FOLDER / final.name
        try:
            with self._staging():
                super()._save_checkpoint(model, trial)
            self._save_stateful(staged)
            self._correct_best_checkpoint(staged, final)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                put_in_place(staged, final, self.run.id)
            self.accelerator.wait_for_everyone()
            if self.args.local_process_index == 0 and staged.is_dir():  # a machine with a disk of its own
                put_in_place(staged, final, self.run.id)
        except (OSError, RuntimeError, ValueError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise CheckpointError(describe_failure(final, error)) from error
        if self.args.should_save:
            delete_older(self.args.output_dir, self.run.id, self._limit, self.state.best_model_checkpoint)

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
        return os.path.join(self.args.output_dir, STAGING_FOLDER) if self._staged else self.run.folder

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

    def _find_best_again(self, checkpoint: Path) -> None:
        """
        Name the best checkpoint by where it is now, beside `checkpoint` where the folder was moved. Where it is gone,
        as an abandoned later one was better and is damaged, the best is sought anew.
        """
        recorded = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        if recorded is None:
            return
        beside = checkpoint.with_name(Path(recorded).name)
        places = [path for path in (beside, Path(recorded)) if read_run_id(path) == read_run_id(checkpoint)]
        found = next((str(path) for path in places if path.is_dir()), None)
        self.state.best_model_checkpoint = found
        if found is None:
            self.state.best_metric = self.state.best_global_step = None
            logger.warning(f"The best checkpoint so far, {recorded}, is gone: the best of the later ones is kept.")

    def restore_randomness(self) -> None:
        """
        The first time after a start, the random states of the checkpoint. `Trainer` sets them once it has skipped the
        batches of a checkpoint; where the data skip those themselves (`ignore_data_skip`), before the first is read.
        """
        if self.args.ignore_data_skip and not self._randomness_restored:
            self._load_rng_state(self._resumed_from)
        self._randomness_restored = True

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


def put_in_place(staged: Path, final: Path, run_id: str) -> None:
    """
    Force a finished checkpoint to the disk and give it its name; one of that name and run makes way.

    Raises:
        FileExistsError: If a checkpoint of another run has that name.
    """
    own = list_checkpoints(staged.parents[1], run_id)
    write_manifest(staged, run_id, number=1 + max(map(_number, own), default=0))
    if final.exists():
        if read_run_id(final) != run_id:
            raise FileExistsError(f"{final} is another run's")
        discard(final, staged.parents[1])
    final.parent.mkdir(exist_ok=True)
    staged.rename(final)
    if not any(staged.parent.iterdir()):
        staged.parent.rmdir()
    _force_to_disk(final.parent)


def discard(checkpoint: Path, output_dir: str | Path) -> None:
    """Delete a checkpoint so that a kill leaves all of it or nothing: what is in the staging folder is none."""
    trash = Path(output_dir) / STAGING_FOLDER / f"discarded-{checkpoint.name}"
    shutil.rmtree(trash, ignore_errors=True)
    trash.parent.mkdir(exist_ok=True)
    checkpoint.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)
    if not any(trash.parent.iterdir()):
        trash.parent.rmdir()


def delete_older(output_dir: str | Path, run_id: str, limit: int | None, best: str | None) -> None:
    """Delete checkpoints of a run until `limit` are left, but never the one written last, nor the best."""
    own = list_checkpoints(output_dir, run_id)
    protected = [path for path in own if path == own[0] or (best and path.resolve() == Path(best).resolve())]
    others = [path for path in own if path not in protected]
    if limit and limit > 0:
        for path in others[max(limit - len(protected), 0) :]:
            discard(path, output_dir)


def write_manifest(folder: Path, run_id: str, number: int) -> None:
    """
    Write the run, the number among its checkpoints, and the size and digest (XXH3, 128 bits) of each file in `folder`,
    after forcing all of it to the disk.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.name != MANIFEST_NAME):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "xxh3_128": hash_file(path)}
        _force_to_disk(path)
    manifest = folder / MANIFEST_NAME
    content = {"run_id": run_id, "number": number, "files": files}
    manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
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


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        content = json.loads((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_run_id(checkpoint: Path) -> str | None:
    """The id of the run that wrote a checkpoint; None for one of an earlier version or another program."""
    return _read_manifest(checkpoint).get("run_id")


def _number(checkpoint: Path) -> int:
    return _read_manifest(checkpoint).get("number", 0)


def list_checkpoints(output_dir: str | Path, run_id: str | None = None) -> list[Path]:
    """
    The checkpoints in a folder, of one run or of all, damaged ones among them. The one written last comes first: after
    a step back to an earlier one, later steps are older.
    """
    paths = [*Path(output_dir).glob("checkpoint-*"), *Path(output_dir).glob("run-*/checkpoint-*")]
    found = [path for path in paths if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir()]
    if run_id is not None:
        found = [path for path in found if read_run_id(path) == run_id]
    return sorted(found, key=lambda path: (_number(path), int(path.name.split("-")[1])), reverse=True)


def find_last_checkpoint(output_dir: str | Path, run_id: str | None = None) -> Path | None:
    """The last checkpoint that is as it was written; damaged ones are passed over with a warning that names them."""
    for checkpoint in list_checkpoints(output_dir, run_id):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning(f"The checkpoint {checkpoint} is passed over: {damage}.")
    return None


def open_run(
    args: TrainingArguments,
    resume_from_checkpoint: str | bool | None,
    output_dir: str | Path | None = None,
    run_id: str | None = None,
) -> Run:
    """
    The run that is to train, the same on all processes (see `choose_run`). One line says what was found.

    Args:
        args (`TrainingArguments`): Of the run.
        resume_from_checkpoint (`str` or `bool`, *optional*): See `WholeCheckpoints.train`.
        output_dir (`str` or `Path`, *optional*): Instead of that in `args`: the folder of a further stage.
        run_id (`str`, *optional*): That of the run, where another stage of it has one already.
    """
    chosen = [None]
    if args.process_index == 0:
        chosen[0], found = choose_run(output_dir or args.output_dir, resume_from_checkpoint, run_id)
        if found:
            logger.warning(found)
    return broadcast_object_list(chosen)[0]


def note_run(output_dir: str | Path, run: Run) -> None:
    """Note `run` as the one that was last started in `output_dir`."""
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    write_whole(Path(output_dir) / RUN_ID_NAME, run.id + "\n")


def choose_run(
    output_dir: str | Path, resume_from_checkpoint: str | bool | None, run_id: str | None = None
) -> tuple[Run, str]:
    """
    The run that `resume_from_checkpoint` stands for, and in a line what was found, which is empty in a new folder.

    True resumes the run that was last started in `output_dir`, as noted there; a path resumes that checkpoint's run;
    anything else is a new run. Checkpoints of other runs are left alone.
    """
    wanted, output_dir = resume_from_checkpoint, Path(output_dir)
    if isinstance(wanted, str) and wanted.lower() in ("true", "false"):
        wanted = wanted.lower() == "true"
    checkpoint, found = None, []
    if wanted is True:
        noted = output_dir / RUN_ID_NAME
        run_id = run_id or (noted.read_text(encoding="utf-8").strip() if noted.is_file() else None)
        checkpoint = find_last_checkpoint(output_dir, run_id) if run_id else None
        if checkpoint is None:
            known = f"of run {run_id}" if run_id else "of a run that was started here"
            found = [f"There is no good checkpoint {known} in {output_dir}: training starts from the beginning."]
    elif wanted:
        checkpoint = Path(wanted)
        check_named(checkpoint)
        run_id = read_run_id(checkpoint)
    run_id = run_id or secrets.token_hex(4)
    if checkpoint is not None:
        found = [f"Training goes on from {checkpoint} (run {run_id})."]
    others = [path for path in list_checkpoints(output_dir) if read_run_id(path) != run_id]
    folder = output_dir / f"run-{run_id}" if any(path.parent == output_dir for path in others) else output_dir
    if others:
        ids = sorted({f"id {read_run_id(path)}" if read_run_id(path) else "without an id" for path in others})
        found.append(
            f"{output_dir} holds {len(others)} checkpoint(s) of other runs ({', '.join(ids)}), which are left alone; "
            f"this run (id {run_id}) keeps its own in {folder}."
        )
    return Run(run_id, str(folder), checkpoint and str(checkpoint)), " ".join(found)


def check_named(checkpoint: Path) -> None:
    """
    Raises:
        CheckpointError: If there is no such folder, or its files are not as its manifest says.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"`resume_from_checkpoint` is {checkpoint}, but there is no such folder.")
    damage = find_damage(checkpoint)
    if damage is not None and (checkpoint / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"The checkpoint {checkpoint} is damaged: {damage}. `resume_from_checkpoint=true` takes the last good one."
        )
    if damage is not None:
        logger.warning(f"The checkpoint {checkpoint} cannot be checked: {damage}.")


def remove_unfinished(output_dir: str | Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing."""
    staging = Path(output_dir) / STAGING_FOLDER
    if staging.is_dir():
        logger.warning(f"{staging} holds parts of a checkpoint, of a run that was killed, and is removed.")
        shutil.rmtree(staging)


def describe_failure(checkpoint: Path, error: Exception) -> str:
    free = shutil.disk_usage(checkpoint.parent).free / 2**30
    return (
        f"{checkpoint} could not be written, and nothing of it is left: {type(error).__name__}: {error}. The disk has "
        f"{free:.2f} GiB free; `save_total_limit` and `save_only_model` make checkpoints take less of it."
    )


@contextmanager
def announce_last_checkpoint(output_dir: str | Path, run_id: str) -> Iterator[None]:
    """Add to whatever error leaves this block which checkpoint is the last good one, and how to go on from it."""
    try:
        yield
    except BaseException as error:
        checkpoint = find_last_checkpoint(output_dir, run_id)
        if checkpoint is None:
            error.add_note(f"There is no checkpoint of this run in {output_dir} to go on from.")
        else:
            error.add_note(
                f"The last good checkpoint is {checkpoint}. Once the cause is mended, the same command with "
                "`--resume_from_checkpoint true` goes on from it."
            )
        raise
