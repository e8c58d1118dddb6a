"""Tests of `eval/run.py` with transformers' own LLaVA on generated data in the layout of VQA-RAD."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from logramed.eval import run
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.trainer.phantoms import generate_phantoms


REPOSITORY = Path(__file__).parents[2]
NUM_QUESTIONS = 24

pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")


def build_command(model, data, output, *options, batch_size=5):
    command = ["--model", model, "--benchmark", "vqa_rad", "--data", data, "--output", output]
    return [str(part) for part in (*command, "--max_new_tokens", 6, "--batch_size", batch_size, *options)]


@pytest.fixture
def asked(monkeypatch):
    """The ids of the questions that the model is asked, in that order."""
    ids = []
    answer_questions = run.answer_questions

    def spy(model, processor, questions, **options):
        for question, answer in answer_questions(model, processor, questions, **options):
            ids.append(question["question_id"])
            yield question, answer

    monkeypatch.setattr(run, "answer_questions", spy)
    return ids


@pytest.fixture(scope="module")
def finished(tiny_model, tiny_vqa_rad, tmp_path_factory):
    """The output folder of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.warns(UserWarning, match="instead of 272"):
        run.main(build_command(tiny_model, tiny_vqa_rad, output))
    return output


@pytest.fixture
def output(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "output"))


def cut(output, num_lines, rest=""):
    lines = (output / "predictions.jsonl").read_text().splitlines(keepends=True)
    (output / "predictions.jsonl").write_text("".join(lines[:num_lines]) + rest)


def test_run_writes_predictions_in_question_order_and_metrics_of_them(finished, tiny_vqa_rad):
    rows = [json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()]
    questions = load_questions(tiny_vqa_rad)
    assert [row["question_id"] for row in rows] == [question["question_id"] for question in questions]
    assert all(row["prediction"] for row in rows)
    assert str(tiny_vqa_rad) not in (finished / "predictions.jsonl").read_text()  # the file can move
    metrics = json.loads((finished / "metrics.json").read_text())
    assert (metrics["overall"]["num_open"], metrics["overall"]["num_closed"]) == (12, 12)
    assert set(metrics["groups"]["organ"]) == {"CHEST", "ABD", "HEAD"}
    assert metrics["run"]["benchmark"] == "vqa_rad"
    assert metrics["run"]["num_questions"] == NUM_QUESTIONS
    assert metrics["run"] == json.loads((finished / "run.json").read_text())


def test_killed_in_the_middle_and_started_again_gives_the_same_files(
    finished, tiny_model, tiny_vqa_rad, tmp_path, asked
):
    output = tmp_path / "killed"
    # Long answers and no batches, to have time to kill it; then the settings must be those of the second start.
    options = ("--max_new_tokens", "200")
    command = build_command(tiny_model, tiny_vqa_rad, output, *options, batch_size=1)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "eval/run.py", *command], cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL
    )
    predictions = output / "predictions.jsonl"
    while process.poll() is None and not (predictions.is_file() and predictions.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    num_answered = predictions.read_bytes().count(b"\n")
    assert 3 <= num_answered < NUM_QUESTIONS
    assert not (output / "metrics.json").exists()

    assert run.main(command) == 0
    assert len(asked) == len(set(asked)) == NUM_QUESTIONS - num_answered
    asked.clear()
    uninterrupted = tmp_path / "uninterrupted"
    run.main(build_command(tiny_model, tiny_vqa_rad, uninterrupted, *options, batch_size=8))
    assert len(asked) == NUM_QUESTIONS
    for name in ("predictions.jsonl", "metrics.json", "run.json"):
        assert (output / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_resuming_asks_only_what_is_missing_also_after_a_line_cut_in_half(
    output, finished, tiny_model, tiny_vqa_rad, asked
):
    cut(output, 10, rest='{"question_id": "90", "ima')
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert sorted(asked, key=int, reverse=True) == [str(100 - number) for number in range(10, NUM_QUESTIONS)]
    assert (output / "predictions.jsonl").read_bytes() == (finished / "predictions.jsonl").read_bytes()


def test_a_finished_run_asks_nothing_and_loads_no_model(output, tiny_model, tiny_vqa_rad, asked, monkeypatch):
    monkeypatch.setattr(run, "AutoModelForImageTextToText", None)
    (output / "metrics.json").unlink()
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert not asked
    assert (output / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max_new_tokens", "7"), "`max_new_tokens` was 6 and now is 7"),
        (("--limit", "3"), "`limit` was None and now is 3"),
    ],
)
def test_other_settings_are_refused_by_name(output, tiny_model, tiny_vqa_rad, options, words):
    with pytest.raises(ValueError, match=rf"answers of another run: .*{words}.*Choose another `--output`"):
        run.main(build_command(tiny_model, tiny_vqa_rad, output, *options))


def test_answers_without_their_settings_are_refused_and_kept(output, tiny_model, tiny_vqa_rad):
    (output / "run.json").unlink()
    with pytest.raises(ValueError, match=r"predictions\.jsonl is there, but not run\.json"):
        run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert (output / "predictions.jsonl").is_file()


def test_phantoms_are_evaluated_like_any_benchmark(tiny_model, tmp_path):
    data = generate_phantoms(tmp_path / "phantoms", num_train=2, num_validation=2, num_test=2)
    run.main(build_command(tiny_model, data, tmp_path / "output", "--benchmark", "phantoms"))
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert metrics["run"]["benchmark"] == "phantoms"
    num_scored = metrics["overall"]["num_open"] + metrics["overall"]["num_closed"]
    assert num_scored == metrics["run"]["num_questions"] > 0


def test_other_weights_in_the_same_folder_are_refused(output, tiny_model, tiny_vqa_rad, tmp_path, monkeypatch):
    retrained = Path(shutil.copytree(tiny_model, tmp_path / "retrained"))
    assert run.fingerprint_model(str(retrained)) == run.fingerprint_model(str(tiny_model))
    weights = load_file(retrained / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name] = weights[name] + torch.ones_like(weights[name])
    save_file(weights, retrained / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="`model_fingerprint` was"):
        run.main(build_command(retrained, tiny_vqa_rad, output))


def test_other_data_in_the_same_folder_are_refused(output, tiny_model, tiny_vqa_rad, tmp_path):
    changed = Path(shutil.copytree(tiny_vqa_rad, tmp_path / "changed"))
    shutil.copy(changed / "images" / "synpic0.jpg", changed / "images" / "synpic1.jpg")
    with pytest.raises(ValueError, match="`data_fingerprint` was"):
        run.main(build_command(tiny_model, changed, output))


def test_moved_data_are_the_same_data(output, tiny_model, tiny_vqa_rad, tmp_path, asked):
    moved = Path(shutil.copytree(tiny_vqa_rad, tmp_path / "moved"))
    run.main(build_command(tiny_model, moved, output))
    assert not asked


def test_blind_run_stands_beside_the_sighted_one_and_does_not_touch_it(
    output, finished, tiny_model, tiny_vqa_rad, capsys
):
    run.main(build_command(tiny_model, tiny_vqa_rad, output, "--blank_images"))
    table = capsys.readouterr().out
    assert "WITHOUT SIGHT" in table
    assert "closed accuracy, sighted" in table
    for name in ("predictions.jsonl", "metrics.json", "run.json"):
        assert (output / name).read_bytes() == (finished / name).read_bytes()
    blind = (output / "predictions.blank_images.jsonl").read_text()
    assert blind != (finished / "predictions.jsonl").read_text()
    assert json.loads((output / "metrics.blank_images.json").read_text())["run"]["blank_images"] is True
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert "closed accuracy, blank" in capsys.readouterr().out


def test_figures_of_another_model_are_not_shown_beside(output, tiny_model, tiny_vqa_rad, capsys):
    metrics = json.loads((output / "metrics.json").read_text())
    metrics["run"]["model_fingerprint"] = "another"
    (output / "metrics.json").write_text(json.dumps(metrics))
    run.main(build_command(tiny_model, tiny_vqa_rad, output, "--blank_images"))
    assert "sighted" not in capsys.readouterr().out


def test_table_is_printed_with_the_number_of_questions_behind_each_figure(output, tiny_model, tiny_vqa_rad, capsys):
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    table = capsys.readouterr().out
    for label in ("all ", "organ: CHEST", "question type: ATTRIB", "all, release protocol"):
        assert label in table
    assert "of 12" in table


def test_limit_asks_the_first_questions_only(tiny_model, tiny_vqa_rad, tmp_path, asked, capsys):
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, "--limit", "3"))
    assert sorted(asked) == ["100", "98", "99"]
    assert "first 3 questions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--benchmark", "slake"), "must be one of vqa_rad, phantoms, got 'slake'"),
        (("--batch_size", "0"), "`batch_size` must be at least 1, got 0"),
        (("--limit", "0"), "`limit` must be at least 1, got 0"),
        (("--split", "validation"), "must be one of test, train, got 'validation'"),
    ],
)
def test_what_a_user_can_get_wrong_is_refused(tiny_model, tiny_vqa_rad, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, *options))
