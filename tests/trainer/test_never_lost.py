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

import logramed.trainer.trainer
from logramed.trainer import checkpoints, train
from logramed.trainer.checkpoints import (
    CheckpointError,
    Run,
    WholeCheckpoints,
    choose_run,
    delete_older,
    find_damage,
    find_last_checkpoint,
    list_checkpoints,
    note_run,
    put_in_place,
    read_run_id,
)
from logramed.trainer.interruption import check_gradient_norm, refuse_loss
from logramed.trainer.validation import score_answers
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


def write_checkpoint(folder, step, run_id="mine", text="weights"):
    staged = folder / "unfinished" / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "model.bin").write_text(text)
    put_in_place(staged, folder / staged.name, run_id)
    return folder / staged.name


def write_checkpoint_without_id(folder, step):
    checkpoint = write_checkpoint(folder, step)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({"files": manifest["files"]}))
    return checkpoint


MINE = Run("mine", "")


def names(paths):
    return sorted(path.name for path in paths)


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


def test_checkpoint_is_as_it_was_written_and_names_what_is_not(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 2)
    assert find_damage(checkpoint) is None
    (checkpoint / "model.bin").write_text("Weights")
    assert "model.bin has another content" in find_damage(checkpoint)
    (checkpoint / "model.bin").write_text("w")
    assert "model.bin has 1 bytes where 7 were written" in find_damage(checkpoint)
    (checkpoint / "model.bin").unlink()
    assert "model.bin is missing" in find_damage(checkpoint)
    (checkpoint / "manifest.json").unlink()
    assert "no manifest.json" in find_damage(checkpoint)


def test_the_last_good_checkpoint_is_found_past_damaged_ones(tmp_path, caplog):
    good = write_checkpoint(tmp_path, 9)
    damaged = write_checkpoint(tmp_path, 10)
    (damaged / "model.bin").write_text("?")
    assert find_last_checkpoint(tmp_path) == good
    assert "checkpoint-10 is passed over: its file model.bin" in caplog.text
    with pytest.raises(CheckpointError, match=r"checkpoint-10 is damaged: its file model\.bin"):
        choose_run(tmp_path, str(damaged))
    with pytest.raises(CheckpointError, match="no such folder"):
        choose_run(tmp_path, str(tmp_path / "other"))


def test_resuming_without_any_checkpoint_starts_from_the_beginning_and_says_so(tmp_path):
    for wanted in ("true", True):
        run, found = choose_run(tmp_path, wanted)
        assert run.checkpoint is None
        assert "training starts from the beginning" in found
    for wanted in ("false", None, False):
        run, found = choose_run(tmp_path, wanted)
        assert (run.checkpoint, run.folder, found) == (None, str(tmp_path), "")


def test_resuming_takes_the_run_that_was_last_started_and_no_strangers(tmp_path):
    mine, theirs = write_checkpoint(tmp_path, 4), write_checkpoint(tmp_path, 9, "theirs")
    note_run(tmp_path, MINE)
    run, found = choose_run(tmp_path, "true")
    assert (run.id, run.checkpoint) == ("mine", str(mine))
    assert "holds 1 checkpoint(s) of other runs (id theirs), which are left alone" in found
    note_run(tmp_path, Run("new", ""))  # a run that was started after both, and killed before it had saved
    run, found = choose_run(tmp_path, "true")
    assert (run.id, run.checkpoint) == ("new", None)
    assert "no good checkpoint of run new" in found
    run, _ = choose_run(tmp_path, str(theirs))
    assert (run.id, run.checkpoint) == ("theirs", str(theirs))


def test_checkpoints_without_an_id_belong_to_nobody_and_can_be_resumed_by_their_path(tmp_path):
    old = write_checkpoint_without_id(tmp_path, 4)
    run, found = choose_run(tmp_path, "true")
    assert run.checkpoint is None
    assert "other runs (without an id)" in found
    run, _ = choose_run(tmp_path, str(old))
    assert run.checkpoint == str(old)
    assert run.folder == str(tmp_path / f"run-{run.id}")


def test_a_new_run_in_a_used_folder_has_a_folder_of_its_own_for_its_checkpoints(tmp_path):
    write_checkpoint(tmp_path, 4)
    note_run(tmp_path, MINE)
    run, found = choose_run(tmp_path, None)
    assert run.id != "mine"
    assert run.folder == str(tmp_path / f"run-{run.id}")
    assert "(id mine), which are left alone" in found
    with pytest.raises(FileExistsError, match="checkpoint-4 is another run's"):
        write_checkpoint(tmp_path, 4, run.id)


def test_after_a_step_back_the_checkpoint_written_last_counts_as_the_last(tmp_path):
    for step in (4, 8, 10, 6):
        write_checkpoint(tmp_path, step)
    assert find_last_checkpoint(tmp_path, "mine").name == "checkpoint-6"
    delete_older(tmp_path, "mine", 2, None)
    assert names(tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-6"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, 1, {1, 2, 3, 4}), (1, None, {4}), (1, 2, {2, 4}), (2, 2, {2, 4}), (3, 1, {1, 3, 4})],
)
def test_of_older_checkpoints_the_best_is_kept_and_those_of_other_runs(tmp_path, limit, best, left):
    write_checkpoint(tmp_path, 7, "theirs")
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step)
    delete_older(tmp_path, "mine", limit, best and str(tmp_path / f"checkpoint-{best}"))
    assert names(list_checkpoints(tmp_path, "mine")) == [f"checkpoint-{step}" for step in sorted(left)]
    assert names(list_checkpoints(tmp_path, "theirs")) == ["checkpoint-7"]


def test_checkpoints_of_a_run_are_whole_and_as_many_as_were_asked_for(tmp_path, rows):
    trainer = trainer_for(tmp_path, rows, save_total_limit=2)
    trainer.train()
    found = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert found == ["checkpoint-2", "checkpoint-3"]
    assert all(find_damage(tmp_path / "run" / name) is None for name in found)
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
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoint-1'}" in error.value.__notes__[0]
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
    assert "checkpoint-1. Once the cause is mended" in error.value.__notes__[0]


def test_nodes_that_are_no_numbers_name_the_modality_the_step_and_the_last_checkpoint(tmp_path, rows):
    trainer = trainer_for(tmp_path, rows)
    trainer.add_callback(SpoilWeights())
    with pytest.raises(ValueError, match="The answer features hold NaN or infinity") as error:
        trainer.train()
    assert "checkpoint-1. Once the cause is mended" in error.value.__notes__[0]
    assert error.value.__notes__[1] == "1 steps of training had been taken."


def test_the_part_of_a_loss_that_is_not_finite_is_named():
    parts = {"language_modeling_loss": 2.0, "alignment_loss": float("inf")}
    inputs = {"labels": torch.tensor([[-100, 7, 8]])}
    with pytest.raises(FloatingPointError, match="`language_modeling_loss` is 2, `alignment_loss` is inf"):
        refuse_loss(parts, 3, inputs, tiny_processor().tokenizer)


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
    assert "The last good checkpoint is" in error.value.__notes__[0]


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
    assert find_damage(saved) is None
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
            self.trainer.termination._be_told(signal.SIGTERM, None)


def stop_in(monkeypatch, stage, step):
    """Have the next runs told to stop in `step` of the first or second `stage`."""

    def show_progress(trainer):
        if (Path(trainer.args.output_dir).name == "first_stage") == (stage == 1):
            trainer.add_callback(BeTold(trainer, step))

    monkeypatch.setattr(train, "show_progress", show_progress)


# The first stage keeps one checkpoint and no best, whatever the second does.
COMBINATIONS = [(*values, 2) for values in itertools.product((1, 2, None), (False, True), STRATEGIES)]
COMBINATIONS += [(2, True, strategy, 1) for strategy in STRATEGIES]


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
    assert find_damage(Path(announced)) is None
    resumed = []
    with monkeypatch.context() as patched:
        patched.setattr(train, "show_progress", resumed.append)
        assert train.main([str(recipe), "--resume_from_checkpoint", "true"]) == 0
    assert resumed[0].run.checkpoint == announced
    state = resumed[-1].state
    assert state.global_step == SHORT["max_steps"]
    if best:
        [value] = {entry["eval_loss"] for entry in state.log_history if entry.get("eval_loss") == state.best_metric}
        assert resumed[-1].evaluate()["eval_loss"] == pytest.approx(value)
    kept = list_checkpoints(output, resumed[-1].run.id)
    assert limit is None or len(kept) <= max(limit, 1 + (state.best_model_checkpoint is not None))


SHORT = {"max_steps": 6, "first_stage_epochs": 2, "max_validation_questions": 0, "shuffle_turns": False}


def test_two_runs_in_one_folder_keep_their_checkpoints_apart(tmp_path, data_file, caplog, monkeypatch):
    values = {**SHORT, "save_steps": 2, "save_total_limit": 1, "eval_strategy": "no"}
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file, values)
    output = tmp_path / "run" / "model"
    assert train.main([str(recipe)]) == 0
    [first] = list_checkpoints(output)
    first_id = read_run_id(first)
    with monkeypatch.context() as patched:
        stop_in(patched, 2, 3)
        assert train.main([str(recipe), "--max_steps", "4"]) == 143
    assert f"{output} holds 1 checkpoint(s) of other runs (id {first_id}), which are left alone" in caplog.text
    [stopped] = set(list_checkpoints(output)) - {first}
    second_id = read_run_id(stopped)
    assert (stopped.name, find_damage(first)) == ("checkpoint-3", None)
    assert train.main([str(recipe), "--max_steps", "4", "--resume_from_checkpoint", "true"]) == 0
    assert names(list_checkpoints(output, second_id)) == ["checkpoint-4"]
    assert list_checkpoints(output, first_id) == [first]
    record = json.loads((output / "run.json").read_text())
    assert record["run_id"] == second_id
    assert [start["resumed_from"] for start in record["starts"]] == [None, str(stopped)]
    assert train.main([str(recipe), "--max_steps", "8", "--resume_from_checkpoint", str(first)]) == 0
    assert names(list_checkpoints(output, first_id)) == ["checkpoint-8"]
    assert names(list_checkpoints(output, second_id)) == ["checkpoint-4"]
    record = json.loads((output / "run.json").read_text())
    assert record["run_id"] == (output / "run_id").read_text().strip() == first_id
    assert len(record["starts"]) == 1


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
    assert (first.run.checkpoint, second.run.checkpoint) == (str(named), None)
    assert first.run.id == second.run.id == (tmp_path / "run" / "model" / "run_id").read_text().strip()


def test_a_start_that_is_refused_leaves_true_to_the_run_before(tmp_path, data_file):
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file, {**SHORT, "eval_strategy": "no", "save_steps": 2})
    assert train.main([str(recipe), "--first_stage_epochs", "1"]) == 0
    [last, _] = list_checkpoints(tmp_path / "run" / "model")
    with pytest.raises(FileNotFoundError):
        train.main([str(recipe), "--train_data", str(tmp_path / "nowhere.json")])
    run, _ = choose_run(tmp_path / "run" / "model", "true")
    assert run.checkpoint == str(last)


def test_the_best_checkpoint_is_found_again_in_a_folder_that_was_moved(tmp_path, rows):
    options = {**STRATEGIES["steps"], "save_steps": 1, "eval_steps": 1, "load_best_model_at_end": True}
    options |= {"learning_rate": 0.0, "save_total_limit": 1}
    trainer_for(tmp_path, rows, eval_dataset=rows, max_steps=2, **options).train()
    moved = tmp_path / "run" / "moved"
    moved.mkdir()
    for path in list_checkpoints(tmp_path / "run"):
        path.rename(moved / path.name)
    resumed = trainer_for(tmp_path, rows, eval_dataset=rows, max_steps=3, **options)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert resumed.state.best_model_checkpoint == str(moved / "checkpoint-1")
    shutil.rmtree(moved / "checkpoint-1")
    resumed = trainer_for(tmp_path, rows, eval_dataset=rows, max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert resumed.state.best_model_checkpoint == str(Path(resumed.run.folder) / "checkpoint-3")


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
    """Sends SIGTERM at a moment of the training that has evaluations, once."""

    def __init__(self, trainer, moment, step):
        self.trainer, self.moment, self.step, self.sent = trainer, moment, step, False

    def on_step_begin(self, args, state, control, **kwargs):
        self._send("before", state.global_step + 1)

    def on_prediction_step(self, args, state, control, **kwargs):
        self._send("losses", state.global_step)

    def _send(self, moment, step):
        if (moment, step) == (self.moment, self.step) and self.trainer.eval_dataset is not None and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("moment", "step"), [("before", 4), ("losses", 4), ("answers", 4), ("losses", 20)])
def test_an_evaluation_that_sigterm_prevents_is_made_up_for_by_the_resumed_run(
    tmp_path, data_file, monkeypatch, moment, step
):
    whole = kill_resume.write_recipe(tmp_path / "whole", data_file)
    assert train.main([str(whole)]) == 0
    recipe = kill_resume.write_recipe(tmp_path / "run", data_file)
    with monkeypatch.context() as patched:
        show = train.show_progress
        patched.setattr(
            train,
            "show_progress",
            lambda trainer: (show(trainer), trainer.add_callback(Terminate(trainer, moment, step))),
        )
        if moment == "answers":
            patched.setattr(logramed.trainer.trainer, "score_answers", send_sigterm_then_score)
        assert train.main([str(recipe)]) == 143
    saved = find_last_checkpoint(tmp_path / "run" / "model")
    assert saved.name == f"checkpoint-{step}"
    history = json.loads((saved / "trainer_state.json").read_text())["log_history"]
    assert not any("eval_loss" in entry and entry["step"] == step for entry in history)
    assert train.main([str(recipe), "--resume_from_checkpoint", "true"]) == 0
    figures, weights = kill_resume.read_results(tmp_path / "run")
    expected_figures, expected_weights = kill_resume.read_results(tmp_path / "whole")
    assert figures == expected_figures
    assert kill_resume.same_weights(weights, expected_weights)


def send_sigterm_then_score(*args, on_answer, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    return score_answers(*args, on_answer=on_answer, **kwargs)


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
    note_run(tmp_path / "run" / "model", MINE)
    monkeypatch.setattr(checkpoints.WholeCheckpoints, "train", lambda self, **kwargs: seen.append(kwargs) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main([str(recipe), "--resume_from_checkpoint", "false"])
    assert seen[0]["run"].checkpoint is None


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
