"""Checkpoints, resuming and early ends of runs; `tests/benchmarks/kill_resume.py` is the long form."""

import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint, sort_checkpoints

from logramed.trainer import train
from logramed.trainer.checkpoints import saving as checkpoints
from logramed.trainer.checkpoints.interruption import check_gradient_norm, check_loss
from logramed.trainer.checkpoints.saving import (
    CheckpointError,
    WholeCheckpoints,
    clear_output,
    find_checkpoint,
    put_in_place,
)
from logramed.trainer.watching.callbacks import LoggedMeans
from tests.benchmarks import kill_resume
from tests.tiny import tiny_processor
from tests.trainer.test_trainer import LoGraMedTrainer, arguments, small_model


def trainer_for(folder, rows, eval_dataset=None, **values):
    defaults = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    return LoGraMedTrainer(
        small_model(),
        arguments(folder, **{**defaults, **values}),
        processing_class=tiny_processor(),
        train_dataset=rows,
        eval_dataset=eval_dataset,
    )


def write_checkpoint(folder, step, text="weights"):
    staged = folder / "unfinished" / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "model.bin").write_text(text)
    put_in_place(staged, folder / staged.name)
    return folder / staged.name


def checkpoints_in(folder):
    return [Path(path).name for path in sort_checkpoints(folder)]


def test_killed_runs_end_with_the_figures_and_weights_of_the_undisturbed_run(tmp_path):
    # In a process of its own: it forks, which one with threads of earlier tests should not.
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.kill_resume",
        "--num_runs",
        "1",
        "--num_kills",
        "2",
        "--seed",
        "1",
    ]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "1 of 1 runs equal the undisturbed one, bit for bit." in done.stdout, done.stderr[-2000:]


def test_true_stands_for_the_last_checkpoint_and_a_path_for_itself(tmp_path, caplog):
    for wanted in ("true", True):
        assert find_checkpoint(tmp_path, wanted) is None
    assert "training starts from the beginning" in caplog.text
    first, last = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    (tmp_path / "unfinished" / "checkpoint-11").mkdir(parents=True)
    for wanted, found in (
        ("true", str(last)),
        (True, str(last)),
        (str(first), str(first)),
        ("false", None),
        (None, None),
    ):
        assert find_checkpoint(tmp_path, wanted) == found
    with pytest.raises(CheckpointError, match="but this folder does not exist"):
        find_checkpoint(tmp_path, str(tmp_path / "other"))


def test_a_checkpoint_takes_the_place_of_one_of_its_name(tmp_path):
    write_checkpoint(tmp_path, 4)
    checkpoint = write_checkpoint(tmp_path, 4, "others")
    assert (checkpoint / "model.bin").read_text() == "others"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_checkpoints_that_a_run_does_not_go_on_from_are_moved_out_of_its_way(tmp_path, caplog):
    for step in (4, 8, 12):
        write_checkpoint(tmp_path, step)
    clear_output(tmp_path, str(tmp_path / "checkpoint-8"))  # a step back
    assert checkpoints_in(tmp_path) == ["checkpoint-4", "checkpoint-8"]
    assert checkpoints_in(tmp_path / "earlier-1") == ["checkpoint-12"]
    clear_output(tmp_path, str(tmp_path / "earlier-1" / "checkpoint-12"))
    assert checkpoints_in(tmp_path) == []
    assert checkpoints_in(tmp_path / "earlier-2") == ["checkpoint-4", "checkpoint-8"]
    write_checkpoint(tmp_path, 1)
    clear_output(tmp_path, None)  # a new run
    assert checkpoints_in(tmp_path / "earlier-3") == ["checkpoint-1"]
    assert f"Moved 1 checkpoint(s) of another run from {tmp_path} to {tmp_path / 'earlier-3'}." in caplog.text


def test_checkpoints_of_a_run_are_whole_and_as_many_as_were_asked_for(tmp_path, rows):
    trainer = trainer_for(tmp_path, rows, save_total_limit=2)
    trainer.train()
    assert checkpoints_in(tmp_path / "run") == ["checkpoint-2", "checkpoint-3"]
    assert all((tmp_path / "run" / f"checkpoint-{step}" / "trainer_state.json").is_file() for step in (2, 3))
    assert not any((tmp_path / "run" / "unfinished").glob("*"))


def test_best_checkpoint_is_named_by_its_final_place(tmp_path, rows):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 0.0}
    trainer = LoGraMedTrainer(
        small_model(),
        arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=2, **options),
        processing_class=tiny_processor(),
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert os.path.samefile(best, tmp_path / "run" / "checkpoint-1")
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == best


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_whole(tmp_path, rows, monkeypatch):
    trainer, save = trainer_for(tmp_path, rows), torch.save

    def fill_disk(content, path, *args, **kwargs):
        if "checkpoint-2" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fill_disk)
    with pytest.raises(CheckpointError, match=r"checkpoint-2 could not be written.*No space left on device") as error:
        trainer.train()
    assert f"The last checkpoint is {tmp_path / 'run' / 'checkpoint-1'}" in error.value.__notes__[0]
    assert [path.name for path in (tmp_path / "run").glob("**/checkpoint-*")] == ["checkpoint-1"]


class SpoilWeights(TrainerCallback):
    """Makes a weight infinite after the first step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            control.should_save = True

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            with torch.no_grad():
                model.base.model.language_model.norm.weight.fill_(torch.inf)


def test_a_loss_that_is_no_number_names_step_and_samples_and_the_last_checkpoint(tmp_path, rows):
    trainer = trainer_for(tmp_path, rows, alignment_weight=0.0)
    trainer.add_callback(SpoilWeights())
    words = r"loss of step 2 is not finite: `loss` is nan.*answers '.*(lung|liver|heart|brain)"
    with pytest.raises(FloatingPointError, match=words) as error:
        trainer.train()
    assert "checkpoint-1. Once the cause is fixed" in error.value.__notes__[0]


def test_nodes_that_are_no_numbers_name_the_modality_the_step_and_the_last_checkpoint(tmp_path, rows):
    trainer = trainer_for(tmp_path, rows)
    trainer.add_callback(SpoilWeights())
    with pytest.raises(ValueError, match="The answer features hold NaN or infinity") as error:
        trainer.train()
    assert "checkpoint-1. Once the cause is fixed" in error.value.__notes__[0]
    assert error.value.__notes__[1] == "1 steps of training had been taken."


def test_the_part_of_a_loss_that_is_not_finite_is_named():
    means = LoggedMeans()
    means.add("train", {"language_modeling_loss": 2.0, "alignment_loss": float("inf"), "matching_accuracy": 0.5})
    inputs, tokenizer = {"labels": torch.tensor([[-100, 7, 8]])}, tiny_processor().tokenizer
    with pytest.raises(FloatingPointError, match=r"`language_modeling_loss` is 2, `alignment_loss` is inf\. "):
        check_loss(torch.tensor(torch.inf), means, 3, inputs, tokenizer)
    check_loss(torch.tensor(2.0), means, 3, inputs, tokenizer)


def test_gradients_that_are_no_numbers_are_refused():
    check_gradient_norm(torch.tensor(3.0), 4)
    with pytest.raises(FloatingPointError, match="gradient norm of step 5 is inf"):
        check_gradient_norm(torch.tensor(torch.inf), 4)


def test_a_broken_image_in_the_middle_names_the_row_and_the_last_checkpoint(tmp_path, rows):
    broken = tmp_path / "images" / "5.png"
    broken.write_bytes(b"no image")
    trainer = trainer_for(tmp_path, rows, per_device_train_batch_size=1, max_steps=8)
    trainer.args.train_sampling_strategy = "sequential"
    with pytest.raises(ValueError, match=r"'5'.*5\.png") as error:
        trainer.train()
    assert "The last checkpoint is" in error.value.__notes__[0]


class KillWorker:
    """A data collator whose process dies with the fourth batch."""

    def __init__(self, collator):
        self.collator, self.num_batches = collator, 0

    def __call__(self, samples):
        self.num_batches += 1
        if self.num_batches == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.collator(samples)


def test_a_dead_data_worker_is_named_with_the_last_checkpoint(tmp_path, rows):
    trainer = trainer_for(tmp_path, rows, per_device_train_batch_size=1, max_steps=8, dataloader_num_workers=1)
    trainer.data_collator = KillWorker(trainer.data_collator)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly)") as error:
        trainer.train()
    assert "checkpoint" in error.value.__notes__[0]


def test_sigterm_saves_the_step_at_hand_and_leaves_with_its_own_code(tmp_path, data_file, capsys):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file)
    options = [str(recipe), "--save_steps", "1000", "--max_steps", "300", "--eval_strategy", "no"]

    def terminate_soon():
        while threading.main_thread().is_alive() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate_soon)
    thread.start()
    code = train.main(options)
    thread.join()
    assert code == 143
    assert "Stopped by SIGTERM after step" in capsys.readouterr().out
    [saved] = (tmp_path / "run" / "model").glob("**/checkpoint-*")
    assert (saved / "trainer_state.json").is_file()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train.main([*options, "--max_steps", "20", "--resume_from_checkpoint", "true"]) == 0


STRATEGIES = {
    "steps": {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
    "epoch": {"save_strategy": "epoch", "eval_strategy": "epoch"},
    "best": {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"},
}


class BeTold(TrainerCallback):
    """Has the run told to stop in the midst of a step, as SIGTERM would."""

    def __init__(self, trainer, step):
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.trainer.termination._handle_sigterm(signal.SIGTERM, None)


def stop_in(monkeypatch, stage, step):
    """Have the next runs told to stop in `step` of the first or second `stage`."""

    def show_progress(trainer):
        if (Path(trainer.args.output_dir).name == "first_stage") == (stage == 1):
            trainer.add_callback(BeTold(trainer, step))

    monkeypatch.setattr(train, "show_progress", show_progress)


# The first stage keeps one checkpoint and no best, whatever the second does.
COMBINATIONS = [(1, best, strategy, 2) for best, strategy in itertools.product((False, True), STRATEGIES)]
COMBINATIONS += [(2, True, "steps", 1), (2, True, "best", 2)]


@pytest.mark.parametrize(("limit", "best", "strategy", "stage"), COMBINATIONS)
def test_what_is_announced_at_sigterm_is_there_and_resumes(
    tmp_path, data_file, monkeypatch, capsys, limit, best, strategy, stage
):
    values = {**STRATEGIES[strategy], "load_best_model_at_end": best, "save_total_limit": limit}
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file, {**values, **SHORT})
    output = tmp_path / "run" / "model"
    with monkeypatch.context() as patched:
        stop_in(patched, stage, 5 if stage == 2 else 3)
        assert train.main([str(recipe)]) == 143
    [announced] = re.findall(r"which is saved in (\S+)\. The same", " ".join(capsys.readouterr().out.split()))
    assert Path(announced) == (output / "checkpoint-5" if stage == 2 else output / "first_stage" / "checkpoint-3")
    resumed = []
    with monkeypatch.context() as patched:
        patched.setattr(train, "show_progress", resumed.append)
        assert train.main([str(recipe), "--resume_from_checkpoint", "true"]) == 0
    assert resumed[0]._resumed_from == announced
    state = resumed[-1].state
    assert state.global_step == SHORT["max_steps"]
    if best:
        [value] = {entry["eval_loss"] for entry in state.log_history if entry.get("eval_loss") == state.best_metric}
        assert resumed[-1].evaluate()["eval_loss"] == pytest.approx(value)
    kept = checkpoints_in(output)
    assert limit is None or len(kept) <= max(limit, 1 + (state.best_model_checkpoint is not None))


SHORT = {"max_steps": 6, "first_stage_epochs": 2, "max_validation_questions": 0, "shuffle_turns": False}


def test_a_named_checkpoint_of_the_first_stage_resumes_that_stage(tmp_path, data_file, monkeypatch):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file, {**SHORT, "eval_strategy": "no"})
    with monkeypatch.context() as patched:
        stop_in(patched, 1, 3)
        assert train.main([str(recipe)]) == 143
    resumed = []
    monkeypatch.setattr(train, "show_progress", resumed.append)
    named = tmp_path / "run" / "model" / "first_stage" / "checkpoint-3"
    assert train.main([str(recipe), "--resume_from_checkpoint", str(named)]) == 0
    first, second = resumed
    assert (first._resumed_from, second._resumed_from) == (str(named), None)


def test_a_start_that_is_refused_moves_no_checkpoints(tmp_path, data_file):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file, {**SHORT, "eval_strategy": "no", "save_steps": 2})
    assert train.main([str(recipe), "--first_stage_epochs", "1"]) == 0
    before = checkpoints_in(tmp_path / "run" / "model")
    with pytest.raises(FileNotFoundError):
        train.main([str(recipe), "--train_data", str(tmp_path / "nowhere.json")])
    assert checkpoints_in(tmp_path / "run" / "model") == before != []


def test_the_best_checkpoint_is_found_again_in_a_folder_that_was_moved(tmp_path, rows):
    options = {**STRATEGIES["steps"], "save_steps": 1, "eval_steps": 1, "load_best_model_at_end": True}
    options |= {"learning_rate": 0.0, "save_total_limit": 1}
    trainer_for(tmp_path, rows, eval_dataset=rows, max_steps=2, **options).train()
    moved = tmp_path / "run" / "moved"
    moved.mkdir()
    for name in checkpoints_in(tmp_path / "run"):
        (tmp_path / "run" / name).rename(moved / name)
    resumed = trainer_for(tmp_path, rows, eval_dataset=rows, max_steps=3, **options)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert resumed.state.best_model_checkpoint == str(moved / "checkpoint-1")
    shutil.rmtree(moved / "checkpoint-1")
    resumed = trainer_for(tmp_path, rows, eval_dataset=rows, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert resumed.state.best_model_checkpoint == str(Path(resumed.args.output_dir) / "checkpoint-3")


def test_sigterm_that_comes_after_the_last_step_is_left_to_the_former_handler(tmp_path, rows):
    told = []
    previous = signal.signal(signal.SIGTERM, lambda *arguments: told.append(arguments))
    try:
        trainer = trainer_for(tmp_path, rows, max_steps=1)
        trainer.add_callback(TellAtTheEnd())
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert len(told) == 1


class TellAtTheEnd(TrainerCallback):
    def on_train_end(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)


class Terminate(TrainerCallback):
    """Sends SIGTERM before a step that is evaluated, or in its evaluation, once."""

    def __init__(self, trainer, moment, step):
        self.trainer, self.moment, self.step, self.sent = trainer, moment, step, False

    def on_step_begin(self, args, state, control, **kwargs):
        self._send("before", state.global_step + 1)

    def on_prediction_step(self, args, state, control, **kwargs):
        self._send("in", state.global_step)

    def _send(self, moment, step):
        if (moment, step) == (self.moment, self.step) and self.trainer.eval_dataset is not None and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("moment", "strategy", "saved"), [("before", "steps", 4), ("in", "steps", 5), ("before", "best", 5)]
)
def test_sigterm_at_an_evaluation_lets_it_end_and_the_resumed_run_is_the_undisturbed_one(
    tmp_path, data_file, monkeypatch, moment, strategy, saved
):
    values = STRATEGIES[strategy] | {"eval_steps": 4, "save_steps": 2}
    whole = kill_resume.write_recipe(tmp_path / "whole", data_file, values)
    assert train.main([str(whole)]) == 0
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file, values)
    with monkeypatch.context() as patched:
        show = train.show_progress
        patched.setattr(
            train,
            "show_progress",
            lambda trainer: (show(trainer), trainer.add_callback(Terminate(trainer, moment, 4))),
        )
        assert train.main([str(recipe)]) == 143
    last = Path(get_last_checkpoint(tmp_path / "run" / "model"))
    assert last.name == f"checkpoint-{saved}"
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert any("eval_loss" in entry and entry["step"] == 4 for entry in history)
    assert train.main([str(recipe), "--resume_from_checkpoint", "true"]) == 0
    figures, weights = kill_resume.read_results(tmp_path / "run")
    expected_figures, expected_weights = kill_resume.read_results(tmp_path / "whole")
    assert figures == expected_figures
    assert kill_resume.same_weights(weights, expected_weights)


def test_a_run_resumed_in_its_first_stage_keeps_the_record_of_its_start(tmp_path, data_file, monkeypatch):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file)
    taken = WholeCheckpoints.train
    with monkeypatch.context() as patched:
        patched.setattr(WholeCheckpoints, "train", lambda self, **kwargs: [taken(self, **kwargs), 1 / 0])
        with pytest.raises(ZeroDivisionError):
            train.main([str(recipe)])
    assert train.main([str(recipe), "--resume_from_checkpoint", "true"]) == 0
    first, second = json.loads((tmp_path / "run" / "model" / "run.json").read_text())["starts"]
    assert first["resumed_from"] is None
    assert "first_stage/checkpoint-" in second["resumed_from"]


def test_a_resumed_run_trains_the_graph_network_that_the_first_stage_left_alone(tmp_path, data_file):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file)
    kept = []
    original = train.load_model

    def keep(*args):
        kept.append(original(*args))
        return kept[-1]

    train.load_model = keep
    try:
        train.main([str(recipe), "--max_steps", "2", "--eval_strategy", "no"])
    finally:
        train.load_model = original
    model = kept[0][0]
    assert all(weight.requires_grad for name, weight in model.named_parameters() if "graph_network" in name)


def test_a_first_stage_is_not_resumed_where_that_was_refused(tmp_path, data_file, monkeypatch):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file)
    seen = []
    write_checkpoint(tmp_path / "run" / "model" / "first_stage", 2)
    monkeypatch.setattr(checkpoints.WholeCheckpoints, "train", lambda self, **kwargs: seen.append(kwargs) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([str(recipe), "--resume_from_checkpoint", "false"])
    assert seen[0]["resume_from_checkpoint"] is None
    assert checkpoints_in(tmp_path / "run" / "model" / "first_stage") == []


def test_run_record_says_what_made_the_run_and_refuses_other_data(tmp_path, data_file, caplog):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file)
    options = [str(recipe), "--max_steps", "2", "--eval_strategy", "no"]
    train.main(options)
    record = json.loads((tmp_path / "run" / "model" / "run.json").read_text())
    [start] = record["starts"]
    assert start["arguments"]["seed"] == 5
    assert start["packages"]["torch"] == torch.__version__
    assert len(start["data"][str(data_file)]) == 64
    assert {"git_revision", "git_changes"} == start["code"].keys()
    assert start["hardware"]["num_processes"] == 1
    train.main([*options, "--max_steps", "4", "--resume_from_checkpoint", "true"])
    assert "`max_steps` 2 -> 4" in caplog.text
    record = json.loads((tmp_path / "run" / "model" / "run.json").read_text())
    assert record["starts"][1]["resumed_from"].endswith("checkpoint-2")
    data_file.write_text(data_file.read_text().replace("what organ is shown", "which organ is shown"))
    with pytest.raises(ValueError, match=r"data\.json has changed since this run began"):
        train.main([*options, "--resume_from_checkpoint", "true"])


def test_left_overs_of_a_killed_save_are_removed_at_the_next_start(tmp_path, rows):
    left = tmp_path / "run" / checkpoints.STAGING_FOLDER / "checkpoint-7"
    left.mkdir(parents=True)
    trainer_for(tmp_path, rows, max_steps=1).train()
    assert not left.exists()


def test_orders_of_turns_need_no_global_randomness():
    state = random.getstate()
    shuffler = train.TurnShuffler(3)
    rows = {"id": ["a"], "images": [[]], "messages": [[]], "extended_answers": [None]}
    assert shuffler({**rows, "messages": [TURNS]}) == shuffler({**rows, "messages": [TURNS]})
    assert random.getstate() == state


TURNS = [
    {"role": role, "content": [{"type": "text", "text": f"{role} {number}"}]}
    for number in range(6)
    for role in ("user", "assistant")
]
