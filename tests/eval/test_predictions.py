"""Tests of the file of predictions."""

import json

import pytest

from logramed.eval.resumable_file import ResumableFile
from logramed.eval.run import prediction_row


QUESTIONS = [
    {
        "question_id": str(number),
        "image": f"/data/images/{number}.jpg",
        "question": "Side?",
        "answer": "left",
        "answer_type": "OPEN",
        "groups": {"organ": "CHEST"},
    }
    for number in (3, 1, 2)
]
IDS = ["3", "1", "2"]
ODD_ANSWER = 'left\u2028lung\u0085\n"r\u00e9al" \u80ba'


@pytest.fixture
def predictions(tmp_path):
    return ResumableFile(tmp_path / "predictions.jsonl", IDS, lambda row: row["question_id"], kind="answer")


def write(predictions, *numbers):
    with predictions.open_for_append() as write_line:
        for number in numbers:
            write_line(prediction_row(QUESTIONS[number], f"answer {number}"))


def test_answers_in_any_order_finish_in_the_order_of_the_questions(predictions):
    write(predictions, 2, 0, 1)
    rows = list(predictions.finish().values())
    assert [row["prediction"] for row in rows] == ["answer 0", "answer 1", "answer 2"]
    lines = [json.loads(line) for line in predictions.path.read_text().splitlines()]
    assert lines == rows
    assert lines[0] == QUESTIONS[0] | {"image": "3.jpg", "prediction": "answer 0"}


def test_resume_asks_what_has_no_answer(predictions):
    assert predictions.missing() == IDS
    write(predictions, 1)
    assert predictions.missing() == ["3", "2"]


@pytest.mark.parametrize("num_bytes_lost", [1, 5, 60])
def test_a_line_cut_off_while_written_is_asked_again(predictions, num_bytes_lost):
    write(predictions, 2, 0)
    predictions.path.write_bytes(predictions.path.read_bytes()[:-num_bytes_lost])
    assert predictions.missing() == ["3", "1"]
    write(predictions, 0, 1)
    assert [row["prediction"] for row in predictions.finish().values()] == ["answer 0", "answer 1", "answer 2"]


def test_a_character_cut_in_the_middle_is_asked_again(predictions):
    with predictions.open_for_append() as write_line:
        write_line(prediction_row(QUESTIONS[0], "left"))
        write_line(prediction_row(QUESTIONS[1], "\u80ba"))
    whole = predictions.path.read_bytes()
    predictions.path.write_bytes(whole[: whole.rindex("\u80ba".encode()) + 1])
    assert predictions.missing() == ["1", "2"]


def test_line_separators_and_quotes_in_an_answer_survive(predictions):
    with predictions.open_for_append() as write_line:
        write_line(prediction_row(QUESTIONS[0], ODD_ANSWER))
    assert predictions.missing() == ["1", "2"]
    write(predictions, 1, 2)
    assert predictions.finish()["3"]["prediction"] == ODD_ANSWER


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question_id": "1", "predi\n', r"line 2 is not a valid answer: '\{\"question_id"),
        ('{"prediction": "x"}\n', "line 2 is not a valid answer"),
        ('{"question_id": "9", "prediction": "x"}\n', "line 2 is about question '9', which was not asked"),
        ('{"question_id": "3", "prediction": "x"}\n', "line 2 is about question '3' a second time"),
    ],
)
def test_lines_that_are_no_answer_are_refused_with_their_number(predictions, line, words):
    write(predictions, 0)
    with predictions.path.open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=words):
        predictions.missing()
