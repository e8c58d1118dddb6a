"""Tests of `eval/run.py` with transformers' own LLaVA on generated data in the layout of VQA-RAD."""

import json
import os
import re
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
from logramed.eval.comparison.run_folder import read_run_folder
from logramed.eval.files import hash_file, only_one_writer
from logramed.eval.models import fingerprint_model
from logramed.trainer.phantoms import generate_phantoms
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model as tiny_logramed


REPOSITORY = Path(__file__).parents[2]
NUM_QUESTIONS = 24

pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")


def build_command(model, data, output, *options, batch_size=5):
    command = ["--model", model, "--benchmark", "vqa_rad", "--data", data, "--output", output]
    return [str(part) for part in (*command, "--max_new_tokens", 6, "--batch_size", batch_size, *options)]


@pytest.fixture
def asked(monkeypatch):
    """The ids of the questions that the model is asked with sight, in that order."""
    ids = []
    answer_questions = run.answer_questions

    def spy(model, processor, questions, **options):
        for question, answer in answer_questions(model, processor, questions, **options):
            if not options["blank_images"]:
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
    settings = json.loads((finished / "run.json").read_text())
    assert settings.items() <= metrics["run"].items()


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
    names = sorted(path.name for path in uninterrupted.iterdir())
    assert names == sorted(path.name for path in output.iterdir())
    for name in names:
        assert (output / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_resuming_asks_only_what_is_missing_also_after_a_line_cut_in_half(
    output, finished, tiny_model, tiny_vqa_rad, asked
):
    cut(output, 10, rest='{"question_id": "90", "ima')
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert sorted(asked, key=int, reverse=True) == [str(100 - number) for number in range(10, NUM_QUESTIONS)]
    assert (output / "predictions.jsonl").read_bytes() == (finished / "predictions.jsonl").read_bytes()


def test_a_finished_run_asks_nothing_and_loads_no_model(output, tiny_model, tiny_vqa_rad, asked, monkeypatch):
    monkeypatch.setattr(run, "load_model", None)
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


def test_the_stop_string_is_the_processors_unless_another_is_given(tiny_vqa_rad, tmp_path, asked):
    def evaluate(name, *options):
        run.main(build_command(model, tiny_vqa_rad, tmp_path / name, "--no_blank_images", *options))
        rows = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        recorded = json.loads((tmp_path / name / "run.json").read_text())["stop_string"]
        return {row["question_id"]: row["prediction"] for row in rows}, recorded

    model = tmp_path / "model"
    tiny_logramed(text_sizes={"vocab_size": 84}).save_pretrained(model)
    tiny_processor().save_pretrained(model)
    whole, recorded = evaluate("whole")
    assert recorded is None
    stop_string = max(whole.values(), key=lambda answer: len(answer.split())).split()[1]
    processor = tiny_processor(stop_string=stop_string)
    processor.save_pretrained(model)
    cut = {number: processor.cut_answer(answer) for number, answer in whole.items()}
    assert evaluate("by_default") == (cut, stop_string)
    assert cut != whole
    asked.clear()
    assert evaluate("by_default", "--stop_string", stop_string) == (cut, stop_string)
    assert not asked
    with pytest.raises(ValueError, match=f"`stop_string` was '{stop_string}' and now is 'never said'"):
        evaluate("by_default", "--stop_string", "never said")
    assert evaluate("another", "--stop_string", "never said") == (whole, "never said")
    assert evaluate("none", "--stop_string", "") == (whole, "")


def test_answers_without_their_settings_are_refused_and_kept(output, tiny_model, tiny_vqa_rad):
    (output / "run.json").unlink()
    with pytest.raises(ValueError, match=r"predictions\.jsonl exists, but not run\.json, which has"):
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
    assert fingerprint_model(str(retrained)) == fingerprint_model(str(tiny_model))
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


def test_a_moved_model_is_the_same_model(output, tiny_model, tiny_vqa_rad, tmp_path, asked):
    moved = Path(shutil.copytree(tiny_model, tmp_path / "moved"))
    run.main(build_command(moved, tiny_vqa_rad, output))
    assert not asked


def test_a_model_that_could_not_be_loaded_is_in_no_ones_way(tiny_model, tiny_vqa_rad, tmp_path, asked):
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        run.main(build_command(tmp_path / "nowhere", tiny_vqa_rad, tmp_path / "output"))
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path / "output"))
    assert len(asked) == NUM_QUESTIONS


def test_nothing_of_a_former_run_is_left_beside_new_answers(output, tiny_model, tiny_vqa_rad, monkeypatch):
    for name in ("predictions.jsonl", "predictions.blank_images.jsonl"):
        (output / name).unlink()

    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "answer_questions", stop)
    with pytest.raises(KeyboardInterrupt):
        run.main(build_command(tiny_model, tiny_vqa_rad, output, "--max_new_tokens", "7"))
    assert sorted(path.name for path in output.iterdir()) == ["local_paths.json", "predictions.jsonl", "run.json"]


def test_a_second_run_into_the_same_folder_at_the_same_time_is_refused(output, tiny_model, tiny_vqa_rad):
    former = {path.name: path.read_bytes() for path in output.iterdir()}
    with only_one_writer(output), pytest.raises(ValueError, match=r"Another run is writing to .*Wait until"):
        run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == former
    (output / "run.lock").touch()  # as a killed run leaves it
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert {path.name for path in output.iterdir()} == set(former)


def test_each_run_also_asks_without_sight_and_says_so(finished, tiny_model, tiny_vqa_rad, output, capsys):
    sighted, blind = (
        (finished / name).read_text() for name in ("predictions.jsonl", "predictions.blank_images.jsonl")
    )
    assert blind.count("\n") == sighted.count("\n") == NUM_QUESTIONS
    assert blind != sighted
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["blank_images"]["overall"]["num_closed"] == metrics["overall"]["num_closed"]
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    assert "### With and without sight" in capsys.readouterr().out


def test_without_blank_images_the_table_says_what_is_missing(tiny_model, tiny_vqa_rad, tmp_path, capsys):
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, "--no_blank_images"))
    assert re.search(r"No figures without sight of \w+: they were turned off", capsys.readouterr().out)
    assert not (tmp_path / "predictions.blank_images.jsonl").exists()
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path))  # and may be asked for later
    assert "### With and without sight" in capsys.readouterr().out
    assert read_run_folder(tmp_path).blank_scores is not None
    answers = (tmp_path / "predictions.blank_images.jsonl").read_bytes()
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, "--no_blank_images"))
    assert read_run_folder(tmp_path).blank_scores is None  # no figures beside a report that says there are none
    assert (tmp_path / "predictions.blank_images.jsonl").read_bytes() == answers


def test_scores_of_each_question_add_up_to_the_figures(finished):
    items = [json.loads(line) for line in (finished / "scores.jsonl").read_text().splitlines()]
    overall = json.loads((finished / "metrics.json").read_text())["overall"]
    for figure in ("open_recall", "open_bleu_1", "closed_accuracy"):
        scores = [item["scores"][figure] for item in items if figure in item["scores"]]
        assert sum(scores) / len(scores) == pytest.approx(overall[figure])
        assert len(scores) == overall["counts"][figure]


def test_intervals_are_by_image_with_and_without_sight(finished, tiny_vqa_rad):
    lines = [json.loads(line) for line in (finished / "scores.jsonl").read_text().splitlines()]
    images = [hash_file(question["image"]).hex() for question in load_questions(tiny_vqa_rad)]
    assert [line["image_id"] for line in lines] == [image[:16] for image in images]
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["interval_unit"] == "image"
    for figures in (metrics["overall"], metrics["release_protocol"], metrics["blank_images"]["overall"]):
        assert figures["num_clusters"] == len(set(images))
    assert read_run_folder(finished).image_ids.keys() == {line["question_id"] for line in lines}
    page = (finished / "report.html").read_text()
    assert f"95% interval, bootstrap over {len(set(images))} images" in page
    assert "are by question, as if" not in page


def test_leakage_is_part_of_a_run_with_or_without_training_files(
    finished, output, tiny_model, tiny_vqa_rad, tmp_path, capsys
):
    missing = json.loads((finished / "metrics.json").read_text())["leakage"]["missing"]
    assert "trainset.json" in missing
    data = Path(shutil.copytree(tiny_vqa_rad, tmp_path / "data"))
    records = json.loads((data / "testset.json").read_text())
    (data / "trainset.json").write_text(json.dumps([*records[:2], records[5] | {"answer": "never"}]))
    run.main(build_command(tiny_model, data, output))
    leakage = json.loads((output / "metrics.json").read_text())["leakage"]
    assert leakage["num_triplets_in_training"] == len(leakage["triplet_question_ids"])
    assert {"100", "99"} <= set(leakage["triplet_question_ids"])
    assert leakage["num_test_images_in_training"] == 2
    assert "2 of 5 test images" in capsys.readouterr().out
    clean = leakage["overall_without_triplets"]
    assert clean["num_open"] + clean["num_closed"] == NUM_QUESTIONS - leakage["num_triplets_in_training"]


def test_the_report_is_one_file_that_shows_the_figures(finished):
    page = (finished / "report.html").read_text()
    metrics = json.loads((finished / "metrics.json").read_text())
    assert f"{metrics['overall']['closed_accuracy']:.1f}" in page
    assert "data:image/jpeg;base64," in page


def test_a_hint_is_added_to_yes_no_questions_only(tiny_model, tiny_vqa_rad, tmp_path, monkeypatch):
    shown = {}
    answer_questions = run.answer_questions

    def spy(model, processor, questions, **options):
        shown.update({question["question_id"]: question["question"] for question in questions})
        return answer_questions(model, processor, questions, **options)

    monkeypatch.setattr(run, "answer_questions", spy)
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, "--yes_no_hint", " yes or no", "--no_blank_images"))
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        hint = " yes or no" if row["answer"].lower() in ("yes", "no") else ""
        assert shown[row["question_id"]] == row["question"] + hint
    assert sum(text.endswith(" yes or no") for text in shown.values()) == NUM_QUESTIONS / 2


def test_what_is_published_names_no_folder_of_this_machine(finished, tiny_vqa_rad):
    for name in ("metrics.json", "predictions.jsonl", "scores.jsonl", "report.html"):
        assert str(tiny_vqa_rad) not in (finished / name).read_text(), name


def test_images_can_be_left_out_of_the_report(output, tiny_model, tiny_vqa_rad):
    run.main(build_command(tiny_model, tiny_vqa_rad, output, "--no_images"))
    page = (output / "report.html").read_text()
    assert "data:image/jpeg;base64," not in page


def test_table_is_printed_with_the_number_of_questions_behind_each_figure(output, tiny_model, tiny_vqa_rad, capsys):
    run.main(build_command(tiny_model, tiny_vqa_rad, output))
    table = capsys.readouterr().out
    for label in ("### Main figures", "| CHEST |", "| ATTRIB |", "### Release protocol"):
        assert label in table
    assert "of 12" in table


def test_data_without_questions_are_refused(tiny_model, tiny_vqa_rad, tmp_path):
    data = Path(shutil.copytree(tiny_vqa_rad, tmp_path / "data"))
    (data / "testset.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no questions of the test split"):
        run.main(build_command(tiny_model, data, tmp_path / "output"))
    assert not (tmp_path / "output").exists()


def test_an_image_that_cannot_be_read_is_listed_and_does_not_stop_the_run(tiny_model, tiny_vqa_rad, tmp_path, asked):
    data = Path(shutil.copytree(tiny_vqa_rad, tmp_path / "data"))
    image = data / "images" / "synpic3.jpg"
    image.write_bytes(image.read_bytes()[:200])
    about = [row["question_id"] for row in load_questions(data) if row["image"].endswith("synpic3.jpg")]
    with pytest.warns(
        UserWarning, match=rf"{len(about)} bad rows left out \(question {about[0]}: the image .*synpic3"
    ):
        run.main(build_command(tiny_model, data, tmp_path / "output"))
    assert not set(about) & set(asked)
    assert len(asked) == NUM_QUESTIONS - len(about)
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    [said] = [words for words in metrics["differences"] if "left out" in words]
    assert "synpic3.jpg cannot be read" in said
    assert str(tmp_path) not in said


def test_no_image_that_can_be_read_is_refused(tiny_model, tiny_vqa_rad, tmp_path):
    data = Path(shutil.copytree(tiny_vqa_rad, tmp_path / "data"))
    for image in (data / "images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(ValueError, match="None of the images can be read"), pytest.warns(match="left out"):
        run.main(build_command(tiny_model, data, tmp_path / "output"))


def test_limit_asks_the_first_questions_only(tiny_model, tiny_vqa_rad, tmp_path, asked, capsys):
    run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, "--limit", "3"))
    assert sorted(asked) == ["100", "98", "99"]
    assert "first 3 questions" in capsys.readouterr().out


def test_a_limit_that_leaves_nothing_out_is_none(output, tiny_model, tiny_vqa_rad, asked, capsys):
    run.main(build_command(tiny_model, tiny_vqa_rad, output, "--limit", "99"))
    assert not asked
    assert "not the benchmark's figures" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--benchmark", "vqa"), "must be one of vqa_rad, .*, got 'vqa'"),
        (("--batch_size", "0"), "`batch_size` must be at least 1, got 0"),
        (("--limit", "0"), "`limit` must be at least 1, got 0"),
        (("--split", "validation"), "must be one of test, train, by_image_test, .*, got 'validation'"),
        (("--subset", "en"), "vqa_rad has no subsets: leave `subset` out, got 'en'"),
        (("--multiple_choice", "guess"), "must be one of likelihood, text, got 'guess'"),
        (("--predictions", "a.csv"), "Pass either a `model` to ask or a file of `predictions` to score"),
        (("--blank_predictions", "a.csv"), "`blank_predictions` needs `predictions`"),
        (("--judge_url", "http://localhost"), "`judge_url` needs `judge_model`"),
        (("--missing_as_empty",), "`missing_as_empty` needs `predictions`"),
    ],
)
def test_what_a_user_can_get_wrong_is_refused(tiny_model, tiny_vqa_rad, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run.main(build_command(tiny_model, tiny_vqa_rad, tmp_path, *options))
