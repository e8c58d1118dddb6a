"""Tests of `eval/run.py` for multiple choice, chat and reports, and with answers of another system."""

import json
from pathlib import Path

import pytest

from logramed.eval import run
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.compare import main as compare
from tests.eval.benchmarks.conftest import write_image, write_json
from tests.eval.benchmarks.test_chat import FILE, official_row, write_rows
from tests.eval.benchmarks.test_omnimedvqa import official_files, write_release
from tests.eval.foreign_files import release_rows, write_lines
from tests.eval.judge_server import JudgeServer


pytestmark = [
    pytest.mark.filterwarnings("ignore:This .* split has"),
    pytest.mark.filterwarnings("ignore:This omnimedvqa"),
]


def evaluate(output, *options, **named):
    named = {"output": output, "max_new_tokens": 6, "batch_size": 4} | named
    flags = [text for name, value in named.items() for text in (f"--{name}", str(value))]
    assert run.main([*flags, *options]) == 0
    path = Path(output) / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else None


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def omnimedvqa(tmp_path_factory):
    files = official_files()
    for row in files["Chest CT Scan"]:  # options in words that the tiny model knows, so that none are alike
        row |= {"option_A": "left lung", "option_B": "liver", "gt_answer": "left lung", "option_C": "yes"}
    return write_release(tmp_path_factory.mktemp("omnimedvqa"), files)


def test_multiple_choice_by_likelihood_chooses_the_likeliest_option(tiny_model, omnimedvqa, tmp_path, capsys):
    metrics = evaluate(tmp_path, model=tiny_model, benchmark="omnimedvqa", data=omnimedvqa)
    rows = read_lines(tmp_path / "predictions.jsonl")
    for row in rows:
        assert len(row["option_scores"]) == len(row["options"])
        assert row["options"].index(row["prediction"]) == row["option_scores"].index(max(row["option_scores"]))
    # Options that the tokenizer does not know are equally likely: undecided, and so wrong.
    right = [row["prediction"] == row["answer"] and len(set(row["option_scores"])) > 1 for row in rows]
    assert any(len(set(row["option_scores"])) > 2 for row in rows)
    assert metrics["overall"]["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert metrics["overall"]["num_items"] == len(rows) == 3
    assert set(metrics["groups"]["modality"]) == {"CT(Computed Tomography)", "Fundus Photography"}
    assert "release_protocol" not in metrics
    assert metrics["blank_images"]["overall"]["num_items"] == 3
    assert metrics["leakage"]["missing"] == "omnimedvqa has no training split"
    table = capsys.readouterr().out
    assert "### With and without sight" in table
    assert "Choosing at random" in table
    assert "instead of 88,996" in table


def test_multiple_choice_by_text_shows_the_options_and_has_the_release_protocol(
    tiny_model, omnimedvqa, tmp_path, monkeypatch
):
    shown = []
    answer_questions = run.answer_questions

    def spy(model, processor, questions, **options):
        shown.extend(question["question"] for question in questions)
        return answer_questions(model, processor, questions, **options)

    monkeypatch.setattr(run, "answer_questions", spy)
    options = {"model": tiny_model, "benchmark": "omnimedvqa", "data": omnimedvqa, "subset": "ACRIMA"}
    metrics = evaluate(tmp_path, multiple_choice="text", **options)
    assert shown[0] == "Is glaucoma present?\nA. Yes\nB. No\nAnswer with one of these."
    [row] = read_lines(tmp_path / "predictions.jsonl")
    assert row["question"] == "Is glaucoma present?"
    assert metrics["release_protocol"]["num_items"] == 1
    with pytest.raises(ValueError, match="`multiple_choice` was 'text' and now is 'likelihood'"):
        evaluate(tmp_path, **options)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    rows = [
        official_row(number, f"{number}.jpg", f"What does item q{number} show?\n<image>", [domain], kind=kind)
        for number, (domain, kind) in enumerate(
            [("mri", "conversation"), ("gross", "detailed_description"), ("mri", "conversation")]
        )
    ]
    for number, row in enumerate(rows):
        row["gpt4_answer"] = f"REFERENCE answer {number}."
        write_image(folder / "images" / row["image"], seed=number)
    write_rows(folder / FILE, rows)
    return folder


def test_chat_answers_are_written_and_wait_for_a_judge(tiny_model, chat, tmp_path, capsys):
    assert evaluate(tmp_path, model=tiny_model, benchmark="chat", data=chat) is None
    assert "run again with `--judge_url` and `--judge_model`" in capsys.readouterr().out
    assert len(read_lines(tmp_path / "predictions.jsonl")) == 3
    assert not (tmp_path / "metrics.json").exists()


def test_chat_answers_of_another_system_are_judged(chat, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOGRAMED_JUDGE_KEY", "secret-key")
    questions = [{"question_id": str(number), "question": f"What does item q{number} show?"} for number in range(3)]
    answers = write_lines(tmp_path / "a.jsonl", release_rows(questions, [f"MODEL answer {n}." for n in range(3)]))
    output = tmp_path / "output"
    options = {"benchmark": "chat", "data": chat, "predictions": answers, "judge_model": "judge"}
    with JudgeServer(faults={("q1", "model_first"): ["503", "429 after 0.1"]}) as server:
        metrics = evaluate(output, judge_url=server.url, **options)
        assert len(server.requests) == 3 * 2 + 2
        evaluate(output, judge_url=server.url, **options)
        assert len(server.requests) == 3 * 2 + 2  # nothing is asked twice
    # Points of the server for model and reference: 3 and 5, 4 and 6, 5 and 7; standing first adds 1 for question 1.
    expected = [100 * 3 / 5, 100 * 9 / 13, 100 * 5 / 7]
    assert metrics["overall"]["relative_score"] == pytest.approx(sum(expected) / 3)
    scores = [line["scores"]["relative_score"] for line in read_lines(output / "scores.jsonl")]
    assert scores == pytest.approx(expected)
    assert metrics["groups"]["question_type"]["detailed_description"]["relative_score"] == pytest.approx(expected[1])
    assert metrics["blank_images"]["missing"].startswith("another system answered")
    assert (metrics["interval_unit"], metrics["overall"]["num_clusters"]) == ("image", 3)
    assert "relative score" in capsys.readouterr().out
    assert not any(b"secret-key" in path.read_bytes() for path in output.iterdir())


def test_reports_are_written_and_scored(tiny_model, tmp_path, capsys):
    rows = [{"id": f"s{n}", "image": f"{n}.png", "report": report, "split": "test"} for n, report in enumerate(
        ["No pleural effusion.", "Enlarged heart with effusion."]
    )]  # fmt: skip
    write_json(tmp_path / "data" / "reports.json", rows)
    for number in range(2):
        write_image(tmp_path / "data" / "images" / f"{number}.png", seed=number)
    metrics = evaluate(tmp_path / "output", model=tiny_model, benchmark="report", data=tmp_path / "data")
    assert metrics["overall"]["num_items"] == 2
    assert "rouge_l" in metrics["overall"]
    assert metrics["interval_unit"] == "report"
    assert "ROUGE-L" in capsys.readouterr().out


def test_findings_and_impression_are_asked_for_together_and_scored_by_section(tmp_path):
    reports = ["FINDINGS: No effusion. IMPRESSION: Normal chest.", "FINDINGS: Large heart. IMPRESSION: Cardiomegaly."]
    rows = [{"id": f"s{n}", "image": f"{n}.png", "report": report} for n, report in enumerate(reports)]
    write_json(tmp_path / "data" / "test.json", rows)
    for number in range(2):
        write_image(tmp_path / "data" / "images" / f"{number}.png", seed=number)
    answers = ["Findings: no effusion\nImpression: large heart", "Large heart"]
    predictions = [{"question_id": f"s{n}", "prediction": answer} for n, answer in enumerate(answers)]
    write_json(tmp_path / "answers.json", predictions)
    options = {"benchmark": "report", "data": tmp_path / "data", "subset": "both"}
    metrics = evaluate(tmp_path / "output", predictions=tmp_path / "answers.json", **options)
    sections = metrics["groups"]["section"]
    assert sections["findings"]["rouge_l"] == pytest.approx(100)
    assert sections["impression"]["rouge_l"] == 0
    assert "impression" in (tmp_path / "output" / "report.html").read_text()


def test_answers_of_another_system_are_scored_like_a_models_and_compared(tiny_model, tiny_vqa_rad, tmp_path, capsys):
    questions = load_questions(tiny_vqa_rad)
    right = [question["answer"] for question in questions]
    right[0], right[1] = "Assistant: nothing", "Assistant: yes"
    answers = write_lines(tmp_path / "answers.jsonl", release_rows(questions, right))
    blind = write_lines(tmp_path / "blind.jsonl", release_rows(questions, ["no"] * len(questions)))
    options = {"benchmark": "vqa_rad", "data": tiny_vqa_rad}
    foreign = evaluate(
        tmp_path / "foreign", predictions=answers, blank_predictions=blind, system="LLaVA-Med", **options
    )
    assert foreign["overall"]["closed_accuracy"] == 100.0
    assert foreign["overall"]["open_recall"] == pytest.approx(100 * 11 / 12)
    assert foreign["blank_images"]["overall"]["closed_accuracy"] == 50.0
    assert foreign["run"]["read"]["predictions"]["joined_by"] == "question_id"
    assert (foreign["run"]["model"], foreign["run"]["predictions"]) == (None, "answers.jsonl")
    evaluate(tmp_path / "ours", model=tiny_model, **options)
    evaluate(tmp_path / "ours_again", model=tiny_model, system="Ours", **options)
    capsys.readouterr()
    runs = [str(tmp_path / name) for name in ("ours", "ours_again", "foreign")]
    assert compare([*runs, "--output", str(tmp_path / "comparison")]) == 0
    page = (tmp_path / "comparison" / "comparison.html").read_text()
    assert "LLaVA-Med" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_limit_leaves_the_other_answers_of_a_file_out(tiny_vqa_rad, tmp_path):
    questions = load_questions(tiny_vqa_rad)
    answers = write_lines(tmp_path / "answers.jsonl", release_rows(questions, [q["answer"] for q in questions]))
    metrics = evaluate(tmp_path / "o", predictions=answers, benchmark="vqa_rad", data=tiny_vqa_rad, limit=5)
    assert metrics["run"]["num_questions"] == 5


def test_a_file_that_lacks_answers_is_refused_or_counted_as_wrong(tiny_vqa_rad, tmp_path):
    questions = load_questions(tiny_vqa_rad)
    rows = release_rows(questions, [question["answer"] for question in questions])
    answers = write_lines(tmp_path / "answers.jsonl", rows[:-2])
    options = {"predictions": answers, "benchmark": "vqa_rad", "data": tiny_vqa_rad}
    with pytest.raises(ValueError, match=r"answers 22 of 24 questions.*`missing_as_empty`"):
        evaluate(tmp_path / "o", **options)
    metrics = evaluate(tmp_path / "o2", "--missing_as_empty", **options)
    assert metrics["overall"]["num_open"] + metrics["overall"]["num_closed"] == 24
    assert metrics["overall"]["closed_accuracy"] == pytest.approx(100 * 11 / 12)


def test_a_changed_file_of_answers_is_refused(tiny_vqa_rad, tmp_path):
    questions = load_questions(tiny_vqa_rad)
    options = {"benchmark": "vqa_rad", "data": tiny_vqa_rad}
    path = write_lines(tmp_path / "a.jsonl", release_rows(questions, ["yes"] * 24))
    evaluate(tmp_path / "o", predictions=path, **options)
    write_lines(path, release_rows(questions, ["no"] * 24))
    with pytest.raises(ValueError, match="`predictions_fingerprint` was"):
        evaluate(tmp_path / "o", predictions=path, **options)


def test_a_changed_file_of_blank_answers_is_read_anew(tiny_vqa_rad, tmp_path):
    questions = load_questions(tiny_vqa_rad)
    options = {"benchmark": "vqa_rad", "data": tiny_vqa_rad}
    options["predictions"] = write_lines(tmp_path / "a.jsonl", release_rows(questions, ["yes"] * 24))
    for answer, accuracy in (("yes", 50.0), ("maybe", 0.0)):
        blind = write_lines(tmp_path / "b.jsonl", release_rows(questions, [answer] * 24))
        metrics = evaluate(tmp_path / "o", blank_predictions=blind, **options)
        assert metrics["blank_images"]["overall"]["closed_accuracy"] == accuracy
