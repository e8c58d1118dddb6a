"""The runs of the study with commands that only leave files behind, some of which are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from logramed.trainer.study import run as study_run
from logramed.trainer.study.arms import ARMS, PLAIN, PRIMARY, Run
from logramed.trainer.study.commands import Paths
from logramed.trainer.study.data import make_row, write_rows
from logramed.trainer.study.run import CommandError, Commands, Study, main, parse_arguments, select_runs, tune
from logramed.trainer.study.settings import FIXED_WEIGHT, Settings, read_settings
from logramed.trainer.study.table import Table
from tests.trainer.study.evaluations import write_evaluation, write_training


SIDE = ("scratch", "slake", PRIMARY)
RUNS = [Run("scratch", "slake", 10, arm, 0) for arm in (PLAIN, PRIMARY)]


class Written:
    """In place of `Commands`: writes what the command would; `fail_at` names a command to kill half-way, once."""

    def __init__(self, fail_at=()):
        self.commands, self.fail_at = [], list(fail_at)

    def __call__(self, command, log, lock):
        module, given = command[2].rpartition(".")[2], dict(zip(command[3::2], command[4::2], strict=False))
        if module == "build_model":
            Path(given["--output"]).mkdir()
            return
        folder = Path(given["--output_dir" if module == "train" else "--output"])
        self.commands.append((module, folder.parent.name))
        (folder / "checkpoint-2").mkdir(parents=True, exist_ok=True)
        if module in self.fail_at:
            self.fail_at.remove(module)
            raise CommandError("killed")
        if module == "train":
            assert Path(given["--train_data"]).is_file()
            write_training(folder)
        else:
            assert (Path(given["--model"]) / "model.safetensors").is_file()
            assert not list(Path(given["--model"]).glob("checkpoint-*"))
            write_evaluation(folder)


@pytest.fixture
def make_study(tmp_path, monkeypatch):
    def prepare(folder, slake, vqa_rad):
        rows = [make_row(f"r{n}", f"{n}.png", [("Ill?", "yes", "It is."), ("What?", f"{n}", "A.")]) for n in range(20)]
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "slake.json", rows)
        write_rows(folder / "pretraining.json", rows)

    monkeypatch.setattr(study_run, "prepare_data", prepare)

    def make(split="test", fail_at=(), settings=None, **options):
        paths = Paths(tmp_path / "study", tmp_path / "parts", tmp_path / "slake", tmp_path / "vqa_rad")
        table = Table(paths.output / "table.jsonl")
        return Study(paths, split, settings or read_settings(), table, execute=Written(fail_at), **options)

    return make


def test_each_run_is_trained_and_evaluated_once_and_has_one_row(make_study):
    study = make_study()
    assert study.run_all(RUNS, num_parallel=2) == []
    assert sorted(study.execute.commands) == sorted((name, run.name) for run in RUNS for name in ("run", "train"))
    rows = Table(study.table.path).rows
    assert set(rows) == {(run.name, "test") for run in RUNS}
    row = rows[RUNS[1].name, "test"]
    assert row["training_data"]["model"]
    assert row["commands"]["model"].startswith("python -m logramed.trainer.train --model OUTPUT/untrained/")
    assert str(study.paths.output) not in json.dumps(row)
    assert {"git_revision", "git_changes", "ended"} <= row.keys()
    assert not list(study.paths.output.rglob("*.safetensors"))
    again = make_study()
    assert again.run_all(RUNS, num_parallel=2) == []
    assert again.execute.commands == []


@pytest.mark.parametrize("killed", ["train", "run"])
def test_a_run_that_was_killed_goes_on_and_the_others_are_done(make_study, killed):
    study = make_study(fail_at=[killed])
    [failure] = study.run_all(RUNS, num_parallel=1)
    assert failure == f"{RUNS[0].name}: killed"
    assert list(study.table.rows) == [(RUNS[1].name, "test")]
    again = make_study()
    assert again.run_all(RUNS, num_parallel=1) == []
    expected = [("train", RUNS[0].name), ("run", RUNS[0].name)]
    assert again.execute.commands == (expected if killed == "train" else expected[1:])
    assert len(Table(study.table.path).rows) == 2


def test_a_begun_run_with_other_settings_is_refused(make_study):
    make_study(fail_at=["train"]).run_all(RUNS[:1], num_parallel=1)
    settings = read_settings()
    settings["scratch"][PLAIN] = Settings(5e-4, 200, 0.0)
    [failure] = make_study(settings=settings).run_all(RUNS[:1], num_parallel=1)
    assert "holds this run with other commands. Delete that folder" in failure


def test_pretraining_trains_twice_on_two_files(make_study):
    run = Run("scratch", "pretraining", 10, PRIMARY, 0)
    study = make_study()
    assert study.run_all([run], num_parallel=1) == []
    assert study.execute.commands == [("train", run.name), ("train", run.name), ("run", run.name)]
    folder = study.paths.run(run)
    sizes = {name: len(json.loads((folder / f"{name}.json").read_text())) for name in ("pretrained", "model")}
    assert sizes == {"pretrained": 2, "model": 20}


def test_tuning_scores_every_trial_on_validation_and_writes_settings(make_study, tmp_path):
    study = make_study(split="validation")
    assert tune(study, 2, tmp_path / "settings.yaml") == []
    assert len(study.table.rows) == 9 + 9 + 3
    assert {row["split"] for row in study.table.rows.values()} == {"validation"}
    chosen = read_settings(tmp_path / "settings.yaml")
    assert chosen["scratch"][PLAIN] == Settings(5e-4, 100, 0.01)  # all are equal: the first levels
    weight = next(row for (run, _), row in study.table.rows.items() if FIXED_WEIGHT in run)
    assert (weight["learning_rate"], weight["num_steps"]) == (5e-4, 100)  # those chosen for the primary arm
    assert chosen["mini"] == read_settings()["mini"]


def test_runs_are_selected_by_share_and_seed_and_further_seeds_are_added():
    planned = study_run.planned_runs()
    assert select_runs(planned, None, None) == planned
    assert {run.share for run in select_runs(planned, [40], None)} == {40}
    found = [run for run in select_runs(planned, [10], [1, 20]) if (run.model, run.data, run.arm) == SIDE]
    assert sorted((run.seed, run.settings) for run in found) == [(1, "own"), (1, "plain"), (20, "own"), (20, "plain")]


def test_smoke_goes_through_every_arm_and_both_models():
    runs = study_run.smoke_runs()
    assert {run.arm for run in runs} == set(ARMS)
    assert {run.model for run in runs} == {"scratch", "mini"}
    assert {run.data for run in runs} == {"slake", "vqa_rad", "phantoms", "pretraining"}


def test_smoke_has_a_few_steps_and_questions(tmp_path, monkeypatch, capsys):
    def run_all(study, runs, num_parallel):
        found = {own.num_steps for of_model in study.settings.values() for own in of_model.values()}
        assert (found, study.num_questions, study.paths.output.name) == ({5}, 6, "smoke")
        return []

    monkeypatch.setattr(Study, "run_all", run_all)
    words = ["--output", str(tmp_path), "--slake", "s", "--vqa_rad", "v", "--smoke"]
    assert main(words) == 0
    with pytest.raises(SystemExit):
        main([*words, "--tune"])
    assert "argument --tune: not allowed with argument --smoke" in capsys.readouterr().err


def test_commands_are_logged_have_one_thread_and_an_error_shows_their_last_lines(tmp_path):
    commands, log = Commands(), tmp_path / "log"
    commands([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], log, None)
    assert log.read_text().endswith("\n1\n")
    with pytest.raises(CommandError, match=r"(?s)ended with 3.*\nlast words"):
        commands([sys.executable, "-c", "print('last words'); exit(3)"], log, None)
    commands.end()
    with pytest.raises(CommandError, match="the study was terminated"):
        commands([sys.executable, "-c", ""], log, None)


KILLED = """
import sys
from pathlib import Path
from logramed.trainer.study.run import Commands, held
sleep = [sys.executable, "-c", "print('started', flush=True); import time; time.sleep(3)"]
with held(Path(sys.argv[1])) as lock:
    Commands()(sleep, Path(sys.argv[2]), lock)
"""


def test_a_run_waits_for_a_command_that_outlived_a_killed_study(tmp_path):
    log = tmp_path / "log"
    study = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "lock"), str(log)])
    while not (log.is_file() and "started\n" in log.read_text().splitlines(keepends=True)):
        time.sleep(0.05)
        assert study.poll() is None
    started = time.monotonic()
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    with study_run.held(tmp_path / "lock"):
        assert time.monotonic() - started > 1


def test_command_needs_the_folders_of_the_data(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path)])
    assert "the following arguments are required: --slake, --vqa_rad" in capsys.readouterr().err


def test_runs_beside_the_plan_have_their_arguments_and_settings_and_a_table_of_their_own(make_study, monkeypatch):
    study = make_study()
    described = "answer_states+alignment_schedule=cosine@1e-3,400,0.2,3"
    runs = study_run.further_runs(["plain@5e-4,200,0.1", described], [7, 8])
    assert [(run.arm, run.seed) for run in runs[:2]] == [("plain", 7), ("answer_states+alignment_schedule=cosine", 7)]
    larger = study_run.further_runs(["plain@5e-4,200,0.1"], [7], [40, 100])
    assert [run.name for run in larger] == [f"scratch-slake-{share}-plain-5e-4,200,0.1-seed7" for share in (40, 100)]
    assert study.run_all(runs, 2) == []
    row = study.table.rows[runs[1].name, "test"]
    assert (row["learning_rate"], row["num_steps"], row["weight_decay"], row["strength"]) == (1e-3, 400, 0.2, 3.0)
    assert "--alignment_schedule cosine" in row["commands"]["model"]
    assert "--max_steps 200 " in study.table.rows[runs[0].name, "test"]["commands"]["model"]


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("planned@1e-3,400,0.2", "unknown arm 'planned'"),
        ("plain@1e-3,400", "settings '1e-3,400' of plain: expected learning rate, steps, weight decay, separated by"),
        ("answer_states@1e-3,400,0.2", "expected learning rate, steps, weight decay, strength"),
        ("answer_states+alignment_head@1e-3,400,0.2,3", r"write \+ARGUMENT=VALUE after the arm"),
    ],
)
def test_run_beside_the_plan_that_cannot_be_is_refused(described, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--slake", "a", "--vqa_rad", "b", "--seeds", "1", "--further", described])
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_run_beside_the_plan_needs_seeds(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--slake", "a", "--vqa_rad", "b", "--further", "plain@1e-3,400,0.2"])
    assert "--further needs --seeds" in capsys.readouterr().err
