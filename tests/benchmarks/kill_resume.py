"""
Training that is killed again and again, against the same training left alone: are its losses equal, bit for bit?

    OMP_NUM_THREADS=1 python -m tests.benchmarks.kill_resume [--num_runs 20] [--num_kills 3] [--seed 0]

Each run trains a tiny model in two stages, with dropout, noise in the matching, remembered nodes, accumulation, turns
in another order each epoch, evaluations, and logging that is not in step with saving. SIGKILL ends it at a random
moment, every second time while a checkpoint is being written; then `--resume_from_checkpoint true` goes on, until the
next. In the end every logged figure but times, and every weight, is compared with those of the undisturbed run.
"""

import argparse
import json
import os
import random
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
from logramed.trainer.checkpoints import STAGING_FOLDER
from tests.trainer.conftest import write_data_file
from tests.trainer.test_train import NEW_MODEL


TIMES = ("runtime", "per_second", "memory")
# Checkpoints that a run may save before it is killed, and seconds after the last of them.
MOST_CHECKPOINTS, LONGEST_DELAY = 7, 0.3
RECIPE = {
    **NEW_MODEL,
    "vision_config": {**NEW_MODEL["vision_config"], "attention_dropout": 0.1},
    "text_config": {**NEW_MODEL["text_config"], "attention_dropout": 0.1},
    "logramed_config": {"graph_num_neighbors": 2, "graph_dropout": 0.1},
    "first_stage_epochs": 2,
    "shuffle_turns": True,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "alignment_memory": 3,
    "gradient_estimator": "imle",
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_runs", type=int, default=20)
    parser.add_argument("--num_kills", type=int, default=3, help="kills of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print("| run | last step saved at each kill | kills in a checkpoint | figures equal | weights equal |")
        print("| --- | --- | --- | --- | --- |")
        for line in compare_runs(Path(folder), arguments.num_runs, arguments.num_kills, arguments.seed):
            print(line, flush=True)


def compare_runs(folder: Path, num_runs: int, num_kills: int, seed: int):
    """Yield a row of the table for each run that was killed, and at the end how many were equal throughout."""
    data = write_data_file(folder)
    whole = write_recipe(folder / "whole", data)
    finish(whole, [])
    expected = read_results(folder / "whole")
    generator, num_equal = random.Random(seed), 0
    for number in range(num_runs):
        run = folder / f"killed_{number}"
        recipe = write_recipe(run, data)
        kills = [kill_in_child(recipe, run, generator, place % 2 == 1) for place in range(num_kills)]
        finish(recipe, ["--resume_from_checkpoint", "true"])
        figures, weights = read_results(run)
        equal = (figures == expected[0], same_weights(weights, expected[1]))
        num_equal += all(equal)
        places = ", ".join(place for place, _ in kills)
        num_aimed = sum(in_checkpoint for _, in_checkpoint in kills)
        for before, after in zip(expected[0], figures, strict=False):
            if before != after:
                yield f"run {number} logged {after} instead of {before}"
        yield f"| {number} | {places} | {num_aimed} | {' | '.join('yes' if same else 'no' for same in equal)} |"
    yield f"\n{num_equal} of {num_runs} runs equal the undisturbed one, bit for bit."


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


def kill_in_child(recipe: Path, run: Path, generator: random.Random, in_checkpoint: bool) -> tuple[str, bool]:
    """
    Go on with a run and kill it once it has saved a random number of checkpoints more, after a random moment, or then
    while a checkpoint is written.

    Returns:
        `tuple[str, bool]`: the last step saved, as text ("end" where the run was over before), and whether a
        checkpoint was being written.
    """
    enough = sum(last_saved(run)) + generator.randint(0, MOST_CHECKPOINTS) * RECIPE["save_steps"]
    delay, deadline = generator.uniform(0.0, LONGEST_DELAY), None
    child = start_child(recipe, ["--resume_from_checkpoint", "true"])
    staging = [run / "model" / STAGING_FOLDER, run / "model" / "first_stage" / STAGING_FOLDER]
    while True:
        if os.waitpid(child, os.WNOHANG)[0]:
            return "end", False
        if deadline is None and sum(last_saved(run)) >= enough:
            deadline = time.perf_counter() + delay
        hit = any(map(holds_anything, staging))
        if deadline is not None and time.perf_counter() > deadline and (hit or not in_checkpoint):
            break
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    first, second = last_saved(run)
    return f"{second}" if second else f"{first} of the first stage", hit


def last_saved(run: Path) -> tuple[int, int]:
    """The last step saved of the first stage, and of the second; 0 where there is none."""
    steps = []
    for folder in (run / "model" / "first_stage", run / "model"):
        names = os.listdir(folder) if folder.is_dir() else []
        steps.append(max((int(name.split("-")[1]) for name in names if name.startswith("checkpoint-")), default=0))
    return steps[0], steps[1]


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
