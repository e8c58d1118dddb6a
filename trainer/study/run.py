"""
Run the study of PROTOCOL.md, or a part of it, two runs at a time:

    python trainer/mini.py --output runs/mini
    python trainer/study/run.py --output runs/study --parts runs/mini --slake FOLDER --vqa_rad FOLDER

Each run is one `logramed-train` and one `logramed-eval`. After a kill, the same command resumes where it stopped: runs
with a row in OUTPUT/table.jsonl are skipped.
"""

import argparse
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from os import environ
from pathlib import Path

from logramed.eval.command_line import UserError, run_command
from logramed.eval.files import only_one_writer, write_json
from logramed.trainer.checkpoints.provenance import describe_code
from logramed.trainer.study.analysis import summarize
from logramed.trainer.study.arms import (
    PLAIN,
    PRIMARY,
    SHARES,
    TUNING_SEED,
    Run,
    planned_runs,
    smoke_runs,
)
from logramed.trainer.study.commands import (
    ENVIRONMENT,
    Paths,
    build_command,
    evaluation_command,
    training_commands,
)
from logramed.trainer.study.data import prepare_data, write_training_file
from logramed.trainer.study.settings import (
    FIXED_WEIGHT,
    NINE_TRIALS,
    ORTHOGONAL_ARRAY,
    SETTINGS_FILE,
    STRENGTHS,
    Settings,
    choose_settings,
    parse_settings,
    read_settings,
    settings_of,
    trials,
    write_settings,
)
from logramed.trainer.study.table import Table, make_row


TABLE_NAME, TUNING_TABLE_NAME, FURTHER_TABLE_NAME = "table.jsonl", "tuning.jsonl", "further.jsonl"
SMOKE_STEPS, SMOKE_QUESTIONS = 5, 6


class CommandError(UserError):
    """A command failed; the message has the last lines of its output."""


@dataclass
class Study:
    """
    Executes runs with the settings of each model and arm, and appends their rows, scored on `split`, to `table`.
    `execute` runs a command with a log file and a lock to hold; tests replace it.
    """

    paths: Paths
    split: str
    settings: Mapping[str, Mapping[str, Settings]]
    table: Table
    num_questions: int | None = None  # None asks all
    execute: Callable[[list[str], Path, int | None], None] = field(default_factory=lambda: Commands())

    def run_all(self, runs: Sequence[Run], num_parallel: int) -> list[str]:
        """Execute the runs without a row yet; a failure does not stop the others. Returns messages of failures."""
        waiting = [run for run in runs if (run.name, self.split) not in self.table.rows]
        print(f"{len(waiting)} of {len(runs)} runs to go, {num_parallel} at a time.", flush=True)
        if waiting:
            prepare_data(self.paths.data, str(self.paths.slake), str(self.paths.vqa_rad))
        for run in waiting:
            self.build(run)
        failures = []
        with ThreadPoolExecutor(num_parallel) as pool:
            started = {pool.submit(self.run_one, run): run for run in waiting}
            try:
                for number, future in enumerate(as_completed(started), start=1):
                    run, error = started[future], future.exception()
                    if error is not None:
                        failures.append(f"{run.name}: {error}")
                    print(f"{number}/{len(waiting)} {run.name}: {'FAILED' if error else 'done'}", flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return failures

    def build(self, run: Run) -> None:
        """Build the untrained model of a run, unless it exists; all arms of a seed start from the same one."""
        folder = self.paths.untrained(run)
        if not folder.is_dir():
            unfinished = folder.with_name(folder.name + ".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            self.execute(build_command(run, self.paths, unfinished), folder.with_suffix(".log"), None)
            unfinished.rename(folder)

    def run_one(self, run: Run) -> None:
        """Train and evaluate one run and append its row; skips steps that are already done."""
        folder, settings = self.paths.run(run), settings_of(run, self.settings)
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / "lock") as lock:
            commands = training_commands(run, self.paths, settings, self.settings[run.model][PLAIN])
            record = self.record(run, commands)
            evaluation = folder / f"evaluation_{self.split}"
            for output, command in commands.items():
                if not is_trained(folder / output):
                    shutil.rmtree(evaluation, ignore_errors=True)  # answers of a deleted model
                    self.execute(command, folder / f"{output}.log", lock)
                for checkpoint in (folder / output).glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
            command = evaluation_command(run, self.paths, self.split, self.num_questions)
            self.execute(command, folder / f"{evaluation.name}.log", lock)
            training = json.loads((folder / "model" / "train_metrics.json").read_text(encoding="utf-8"))
            record |= {
                "commands": {name: self.paths.without_places(words) for name, words in commands.items()},
                "evaluation_command": self.paths.without_places(command),
            }
            row = make_row(run, self.split, settings, record, training, evaluation)
            self.table.append({**row, "ended": datetime.now(UTC).isoformat(timespec="seconds")})
            for output in commands:
                for path in (folder / output).glob("*.safetensors"):
                    path.unlink()

    def record(self, run: Run, commands: Mapping[str, list[str]]) -> dict:
        """
        Write the training files and the record of the run to its folder; a resumed run keeps its git revision. Raises
        `ValueError` if the folder holds a run with other commands or other data.
        """
        path = self.paths.run(run) / "study_run.json"
        digests = {}
        for output in commands:
            source, of = f"{run.data}.json", run
            if run.data == "pretraining" and output == "model":
                source, of = "slake.json", Run(run.model, "slake", 100, PLAIN, run.seed)
            digests[output] = write_training_file(path.with_name(f"{output}.json"), self.paths.data / source, of)
        wanted = {"commands": dict(commands), "training_data": digests}
        if path.is_file():
            former = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name, value in wanted.items() if former[name] != value]
            if changed:
                raise ValueError(
                    f"{path.parent} holds this run with other {' and '.join(changed)}. Delete that folder to rerun "
                    "it, or choose another `--output`."
                )
            return former
        record = {**wanted, **describe_code()}
        write_json(path, record)
        return record


class Commands:
    """Executes commands, one thread each, and terminates the running ones when this process is terminated."""

    def __init__(self):
        self._lock, self._running, self._ended = threading.RLock(), set(), False

    def __call__(self, command: list[str], log: Path, lock: int | None) -> None:
        """
        Run `command`, appending its output to `log`; it holds `lock` until it ends, even if this process is killed.
        Raises `CommandError` if it fails.
        """
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n$ {subprocess.list2cmdline(command)}\n")
            file.flush()
            with self._lock:
                if self._ended:
                    raise CommandError("not started: the study was terminated")
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environ | ENVIRONMENT,
                    pass_fds=() if lock is None else (lock,),
                    start_new_session=True,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise CommandError(f"`{command[2]}` ended with {code}; {log}:\n{tail}")

    def end(self) -> None:
        """Send SIGTERM to running commands, which then save and end, and start no more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


@contextmanager
def held(path: Path) -> Iterator[int]:
    """
    Hold a lock, which the commands of a run inherit: if this process was killed and a command of the run is still
    running, the next start waits for it.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def is_trained(folder: Path) -> bool:
    """Whether training has written its results, the last files that an evaluation needs."""
    try:
        return "metrics" in json.loads((folder / "train_metrics.json").read_text(encoding="utf-8")) and any(
            folder.glob("*.safetensors")
        )
    except (OSError, ValueError):
        return False


def tune(study: Study, num_parallel: int, output: Path) -> list[str]:
    """
    Run the trials of `TUNED_ARMS` for the model from scratch on validation images, and write the chosen settings.
    Returns messages of failures.
    """
    chosen = {model: dict(settings) for model, settings in study.settings.items()}
    study.settings, of_scratch, failures = chosen, chosen["scratch"], []
    for stage in (NINE_TRIALS, (FIXED_WEIGHT,)):
        runs = {arm: tuning_runs(arm) for arm in stage}
        failures += study.run_all([run for of_arm in runs.values() for run in of_arm], num_parallel)
        for arm, of_arm in runs.items():
            rows = [study.table.rows.get((run.name, "validation")) for run in of_arm]
            if all(rows):
                scores = [row["with_sight"]["all"] for row in rows]
                of_scratch[arm] = choose_settings(trials(arm, of_scratch[PRIMARY]), scores)
    print(f"Wrote {write_settings(output, chosen)}. Commit it as {SETTINGS_FILE} before the study is run.")
    return failures


def tuning_runs(arm: str) -> list[Run]:
    num_trials = len(STRENGTHS["alignment_weight"] if arm == FIXED_WEIGHT else ORTHOGONAL_ARRAY)
    return [Run("scratch", "slake", 10, arm, TUNING_SEED, f"trial{number}") for number in range(num_trials)]


def select_runs(runs: Sequence[Run], shares: Sequence[int] | None, seeds: Sequence[int] | None) -> list[Run]:
    """
    The planned runs with these shares and seeds, by default all. A seed that is not planned (for replication) gets the
    runs of seed 0.
    """
    found = [run for run in runs if not shares or run.share in shares]
    if not seeds:
        return found
    planned = {run.seed for run in found}
    further = [replace(run, seed=seed) for seed, run in product(seeds, found) if seed not in planned and run.seed == 0]
    return [run for run in found if run.seed in seeds] + further


def further_runs(descriptions: Sequence[str], seeds: Sequence[int], shares: Sequence[int] = (10,)) -> list[Run]:
    """Runs outside the plan, of the model from scratch on SLAKE: each description with every share and seed."""
    runs = []
    for seed, share, description in product(seeds, shares, descriptions):
        arm, _, values = description.partition("@")
        parse_settings(values, arm)
        runs.append(Run("scratch", "slake", share, arm, seed, values))
    return runs


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the study of PROTOCOL.md, or a part of it.")
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="folder for runs and table")
    parser.add_argument("--parts", type=Path, default=Path("runs/mini"), help="folder that trainer/mini.py wrote")
    parser.add_argument("--slake", type=Path, required=True, help="SLAKE's folder")
    parser.add_argument("--vqa_rad", type=Path, required=True, help="VQA-RAD's folder")
    parser.add_argument("--shares", nargs="+", type=int, choices=SHARES, help="percent; default: as planned")
    parser.add_argument("--seeds", nargs="+", type=int, help="planned or further ones; default: as planned")
    parser.add_argument("--split", default="test", choices=["test", "validation"], help="to score (default test)")
    parser.add_argument("--num_parallel", type=int, default=2, help="runs at a time, one thread each (default 2)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tune", action="store_true", help="choose settings on validation images")
    kind.add_argument("--smoke", action="store_true", help="each arm once, with a few steps and questions")
    kind.add_argument(
        "--further",
        nargs="+",
        metavar="ARM[+ARGUMENT=VALUE]@SETTINGS",
        help="runs outside the plan: the model from scratch on SLAKE (10%% without --shares), SETTINGS as "
        "1e-3,400,0.2[,STRENGTH], steps at 10%%",
    )
    options = parser.parse_args(argv)
    if options.further:
        if not options.seeds:
            parser.error("--further needs --seeds")
        try:
            options.further = further_runs(options.further, options.seeds, options.shares or (10,))
        except ValueError as error:
            parser.error(f"--further: {error}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    settings, output, num_questions = read_settings(), options.output, None
    if options.smoke:
        output, num_questions = output / "smoke", SMOKE_QUESTIONS
        settings = {
            model: {arm: replace(own, num_steps=SMOKE_STEPS) for arm, own in of_model.items()}
            for model, of_model in settings.items()
        }
    output.mkdir(parents=True, exist_ok=True)
    paths = Paths(*(path.resolve() for path in (output, options.parts, options.slake, options.vqa_rad)))
    table_name = TUNING_TABLE_NAME if options.tune else FURTHER_TABLE_NAME if options.further else TABLE_NAME
    with only_one_writer(output):
        table = Table(output / table_name)
        split = "validation" if options.tune else options.split
        study = Study(paths, split, settings, table, num_questions)
        with ending_commands(study.execute):
            if options.tune:
                failures = tune(study, options.num_parallel, output / "settings.yaml")
            else:
                planned = smoke_runs() if options.smoke else planned_runs()
                runs = options.further or select_runs(planned, options.shares, options.seeds)
                failures = study.run_all(runs, options.num_parallel)
                print(summarize(list(table.rows.values()), split))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


@contextmanager
def ending_commands(commands: Commands) -> Iterator[None]:
    """On SIGTERM or Ctrl-C, let the commands save and end before this process does."""

    def end(number: int, frame: object) -> None:
        commands.end()
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
