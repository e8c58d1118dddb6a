"""
Training that is ended again and again, against the same training left alone: are its losses equal, bit for bit?

    OMP_NUM_THREADS=1 python -m tests.benchmarks.kill_resume [--num_runs 24] [--num_kills 3] [--seed 0]

Each run trains a tiny model in two stages, with dropout, noise in the matching, accumulation, turns
in another order each epoch, evaluations, and logging that is not in step with saving. SIGKILL or SIGTERM ends it at a
random moment, every second time while a checkpoint is being written; then `--resume_from_checkpoint true` goes on,
until the next. In the end every logged figure but times, and every weight, is compared with those of the undisturbed
run. The runs go through all combinations of signal, `save_total_limit`, `load_best_model_at_end`, and a folder that
another run has used, whose checkpoints must still be there. What SIGTERM's message names must be there.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
import yaml
from tqdm import tqdm

from logramed.trainer import train
from logramed.trainer.checkpoints.interruption import TERMINATED_EXIT_CODE
from logramed.trainer.checkpoints.saving import STAGING_FOLDER, step_of
from tests.trainer.conftest import write_data_file
from tests.trainer.test_train import NEW_MODEL


RESUME = ["--resume_from_checkpoint", "true"]
TIMES = ("runtime", "per_second", "memory")
# Checkpoints that a run may save before it is killed, and seconds after the last of them.
MOST_CHECKPOINTS, LONGEST_DELAY = 7, 0.3
RECIPE = {
    **NEW_MODEL,
    "vision_config": {**NEW_MODEL["vision_config"], "attention_dropout": 0.1},
    "text_config": {**NEW_MODEL["text_config"], "attention_dropout": 0.1},
    "num_neighbors": 2,
    "graph_dropout": 0.1,
    "alignment_preset": "paper",
    "first_stage_epochs": 2,
    "shuffle_turns": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "alignment_loss": "paper",  # has noise
    "max_steps": 20,
    "learning_rate": 1.0e-2,
    "logging_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "load_best_model_at_end": False,
    "max_validation_questions": 2,
    "max_new_tokens": 2,
    "report_to": "none",
    "use_cpu": True,
    "seed": 5,
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a run is ended, and what it keeps."""

    signal: signal.Signals
    limit: int | None
    best: bool
    used: bool

    def values(self) -> dict:
        """What of the recipe is other than `RECIPE`."""
        best = {"load_best_model_at_end": True, "save_steps": RECIPE["eval_steps"]} if self.best else {}
        return {"save_total_limit": self.limit, **best}

    def __str__(self) -> str:
        used, best = ("yes" if value else "no" for value in (self.used, self.best))
        return f"{self.signal.name} | {self.limit or 'none'} | {best} | {used}"


SETTINGS = [
    Setting(*values)
    for values in itertools.product((signal.SIGKILL, signal.SIGTERM), (1, 2, None), (False, True), (False, True))
]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_runs", type=int, default=len(SETTINGS))
    parser.add_argument("--num_kills", type=int, default=3, help="ends of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        heads = "run|signal|limit|best model|used folder|last step saved at each end|ends in a checkpoint|"
        heads += "announced and there|others as they were|figures equal|weights equal"
        heads = heads.split("|")
        print(f"| {' | '.join(heads)} |\n| {' | '.join('---' for _ in heads)} |")
        for line in compare_runs(Path(folder), arguments.num_runs, arguments.num_kills, arguments.seed):
            print(line, flush=True)


def compare_runs(folder: Path, num_runs: int, num_kills: int, seed: int):
    """Yield a row of the table for each run that was ended, and at last how many were equal throughout."""
    data = write_data_file(folder)
    generator, num_equal, expected = random.Random(seed), 0, {}
    settings = generator.sample(SETTINGS, len(SETTINGS))
    for number in range(num_runs):
        setting = settings[number % len(settings)]
        if setting.best not in expected:
            expected[setting.best] = undisturbed_results(folder / f"whole_{setting.best}", data, setting)
        figures, weights = expected[setting.best]
        run = EndedRun(folder / f"ended_{number}", data, setting, generator)
        for place in range(num_kills):
            run.end(in_checkpoint=place % 2 == 1)
        finish(run.recipe, RESUME)
        results = read_results(run.folder)
        kept = (run.announced_are_there, run.others_are_whole())
        equal = (*kept, results[0] == figures, same_weights(results[1], weights))
        num_equal += all(equal)
        for before, after in zip(figures, results[0], strict=False):
            if before != after:
                yield f"run {number} logged {after} instead of {before}"
        said = " | ".join("yes" if same else "no" for same in equal)
        yield f"| {number} | {setting} | {', '.join(run.places)} | {run.num_in_checkpoint} | {said} |"
    yield f"\n{num_equal} of {num_runs} runs equal the undisturbed one, bit for bit."


def undisturbed_results(run: Path, data: Path, setting: Setting) -> tuple[list[dict], dict[str, torch.Tensor]]:
    finish(write_recipe(run, data, setting.values()), [])
    return read_results(run)


def write_recipe(run: Path, data: Path, further: dict | None = None) -> Path:
    run.mkdir()
    values = {"train_data": data, "first_stage_data": data, "validation_data": data, "output_dir": run / "model"}
    values = {**RECIPE, **(further or {}), **{name: str(value) for name, value in values.items()}}
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return path


def start_child(recipe: Path, options: Sequence[str]) -> int:
    """Train in a process of its own, forked from this one, which has everything imported; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # tqdm's own lock is shared between processes, and one that is killed may hold it, for ever.
        tqdm.set_lock(threading.RLock())
        output = os.open(recipe.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = train.main([str(recipe), *options])
    except Exception:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)  # the parent's clean-up is not this process's to do


def finish(recipe: Path, options: Sequence[str]) -> None:
    """Train to the end; an error shows what the run had to say."""
    code = os.waitstatus_to_exitcode(os.waitpid(start_child(recipe, options), 0)[1])
    if code:
        output = (recipe.parent / "output.txt").read_text()
        raise RuntimeError(f"The run ended with {code}:\n{output[-3000:]}")


class EndedRun:
    """
    A run that is ended again and again.

    Attributes:
        places (`list[str]`): The last step saved at each end; "end" where the run was over before.
        num_in_checkpoint (`int`): Ends while a checkpoint was being written.
        announced_are_there (`bool`): Whether each checkpoint that a message of SIGTERM named was there, and whole.
    """

    def __init__(self, folder: Path, data: Path, setting: Setting, generator: random.Random):
        self.folder, self.setting, self.generator = folder, setting, generator
        self.recipe = write_recipe(folder, data, setting.values())
        self.places, self.num_in_checkpoint, self.announced_are_there = [], 0, True
        if setting.used:
            finish(self.recipe, ["--seed", "6"])
        self.others = contents(folder / "model")
        (folder / "output.txt").unlink(missing_ok=True)

    def end(self, in_checkpoint: bool) -> None:
        """
        Go on, and end the run once it has saved a random number of checkpoints more, after a random moment, or then
        while a checkpoint is written.
        """
        saved = 0 if self.others and not self.places else sum(self.last_saved())
        enough = saved + self.generator.randint(0, MOST_CHECKPOINTS) * RECIPE["save_steps"]
        delay, deadline = self.generator.uniform(0.0, LONGEST_DELAY), None
        child = start_child(self.recipe, RESUME if self.places or not self.setting.used else [])
        staging = [self.folder / "model" / STAGING_FOLDER, self.folder / "model" / "first_stage" / STAGING_FOLDER]
        while True:
            if os.waitpid(child, os.WNOHANG)[0]:
                self.places.append("end")
                return
            # Before it has read its data a run has not yet moved the checkpoints of others out of its way.
            has_begun = not self.others or (self.folder / "model" / "earlier-1").is_dir()
            if deadline is None and has_begun and sum(self.last_saved()) >= enough:
                deadline = time.perf_counter() + delay
            hit = any(map(holds_anything, staging))
            if deadline is not None and time.perf_counter() > deadline and (hit or not in_checkpoint):
                break
            time.sleep(0.0005)
        os.kill(child, self.setting.signal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.num_in_checkpoint += hit
        self.announced_are_there &= code != TERMINATED_EXIT_CODE or self.is_announced_there()
        first, second = self.last_saved()
        self.places.append(f"{second}" if second else f"{first} of the first stage")

    def is_announced_there(self) -> bool:
        output = (self.folder / "output.txt").read_text()
        return Path(re.findall(r"which is saved in (\S+)\. The same", output)[-1], "trainer_state.json").is_file()

    def others_are_whole(self) -> bool:
        return contents(self.folder / "model" / "earlier-1") == self.others

    def last_saved(self) -> tuple[int, int]:
        """The last step saved of the first stage, and of the second; 0 where there is none."""
        steps = []
        for folder in (self.folder / "model" / "first_stage", self.folder / "model"):
            steps.append(max((step_of(path) for path in folder.glob("checkpoint-*")), default=0))
        return steps[0], steps[1]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of all checkpoints in a folder."""
    files = [path for path in folder.glob("checkpoint-*/**/*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def holds_anything(folder: Path) -> bool:
    try:
        return bool(os.listdir(folder))
    except FileNotFoundError:
        return False


def read_results(run: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """The log of a run without its times, and its final weights."""
    metrics = json.loads((run / "model" / "train_metrics.json").read_text())
    history = [
        {name: value for name, value in entry.items() if not any(part in name for part in TIMES)}
        for entry in metrics["log_history"]
    ]
    return history, safetensors.torch.load_file(run / "model" / "model.safetensors")


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


if __name__ == "__main__":
    main()
