"""Tests of what the loaders share."""

import json

import pytest

from logramed.eval.benchmarks.hub import image_folder
from logramed.eval.benchmarks.rows import (
    check_ids,
    collect_image_names,
    describe_count_differences,
    find_image,
    infer_answer_type,
    number_repeated_ids,
    read_answer_type,
    read_question,
    read_records,
    read_text,
    warn_of_differences,
)
from tests.eval.benchmarks.conftest import write_image


def test_json_lists_and_json_lines_give_rows_with_their_places(tmp_path):
    rows = [{"a": 1}, {"a": "\u2028"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    (tmp_path / "rows.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    assert [record for _, record in read_records(tmp_path / "rows.json")] == rows
    assert read_records(tmp_path / "rows.jsonl") == [
        (f"{tmp_path}/rows.jsonl, line 1", rows[0]),
        (f"{tmp_path}/rows.jsonl, line 3", rows[1]),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "[", r"a\.json is not JSON"),
        ("a.json", '{"a": 1}', r"a\.json: expected a list of rows, got dict"),
        ("a.json", "[{}, 3]", r"a\.json, row 1: expected an object with fields, got int"),
        ("a.jsonl", "{}\n{", r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", "{}\n[]", r"a\.jsonl, line 2: expected an object with fields, got list"),
    ],
)
def test_files_of_another_form_are_refused_by_name_and_row(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_records(tmp_path / name)


def test_files_in_another_encoding_are_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_bytes('[{"a": "é"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json is not UTF-8 text"):
        read_records(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "here has no `answer`"),
        ({"answer": None}, "here has no `answer`"),
        ({"answer": "  "}, "here, `answer` is empty"),
        ({"answer": float("nan")}, r"here, `answer`: expected a text, got nan"),
        (
            {"answer": "half \ud83d"},
            r"here, `answer`: expected a text, got half of a surrogate pair in 'half \\ud83d'",
        ),
        ({"answer": True}, "here, `answer`: expected a text, got True"),
        ({"answer": ["no"]}, r"here, `answer`: expected a text, got \['no'\]"),
    ],
)
def test_fields_without_text_are_refused(record, words):
    with pytest.raises(ValueError, match=words):
        read_text(record, "answer", "here")


def test_numbers_are_text_and_blanks_are_taken_off():
    assert read_text({"answer": 0}, "answer", "here") == "0"
    assert read_text({"answer": " left lung\u00a0\n"}, "answer", "here") == "left lung"


@pytest.mark.parametrize("written", ["CLOSED", "CLOSED ", "closed", " Closed\n"])
def test_spellings_of_the_answer_type_are_accepted(written):
    assert read_answer_type({"answer_type": written}, "here") == "CLOSED"


def test_other_answer_types_are_refused():
    with pytest.raises(ValueError, match="here, `answer_type`: expected OPEN or CLOSED, got 'yes/no'"):
        read_answer_type({"answer_type": "yes/no"}, "here")


@pytest.mark.parametrize(
    ("answer", "answer_type"),
    [
        ("Yes", "CLOSED"),
        ("no.", "CLOSED"),
        (" no ", "CLOSED"),
        ("none", "OPEN"),
        ("yes, left", "OPEN"),
        ("left", "OPEN"),
    ],
)
def test_only_yes_and_no_are_closed_where_a_file_has_no_types(answer, answer_type):
    assert infer_answer_type(answer) == answer_type


def test_images_are_found_below_their_folder(tmp_path, monkeypatch):
    image = write_image(tmp_path / "images" / "case1" / "a.png")
    assert find_image(tmp_path / "images", " case1\\a.png ", "here", "image") == str(image)
    monkeypatch.chdir(tmp_path)
    relative = find_image(tmp_path.relative_to(tmp_path) / "images", "case1/a.png", "here", "image")
    assert relative == str(image)


@pytest.mark.parametrize("name", ["../secret.png", "case1/../../secret.png", "/etc/hostname", "..\\secret.png"])
def test_images_outside_their_folder_are_refused(tmp_path, name):
    write_image(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"here, `image`: expected a path that stays in .*images, got"):
        find_image(tmp_path / "images", name, "here", "image")


@pytest.mark.parametrize("name", [None, "", 7])
def test_missing_image_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="here, `image`: expected the path of an image below"):
        find_image(tmp_path, name, "here", "image")


def test_names_that_are_too_long_for_a_file_are_refused_like_missing_ones(tmp_path):
    """A quote that a csv file never closes makes one cell of the rest of it."""
    with pytest.raises(ValueError, match=r"row 3, `image`: .*aaa is missing"):
        find_image(tmp_path, "a" * 5000, "test.csv, row 3", "image")
    assert image_folder(tmp_path, ("images", "."), ["a" * 5000]) == tmp_path / "."


def test_questions_lose_the_image_placeholder_and_must_say_something():
    assert read_question({"text": "<image>\nmass? "}, "text", "here") == "mass?"
    with pytest.raises(ValueError, match="here, `text` holds no question, only the image placeholder"):
        read_question({"text": "\n<image>"}, "text", "here")


def test_image_names_are_collected_once_and_in_order():
    records = [{"image": "b.png"}, {"image": " a.png"}, {"image": "./b.png"}, {"image": None}, {}]
    assert collect_image_names(records, "image") == ["b.png", "a.png"]


def test_repeated_ids_are_refused_or_numbered():
    questions = [{"question_id": name} for name in ("a", "b", "a", "a")]
    with pytest.raises(ValueError, match=r"test\.json holds the same `id` more than once: a"):
        check_ids(questions, "test.json", "id")
    numbered = number_repeated_ids(questions)
    assert [row["question_id"] for row in numbered] == ["a-1", "b", "a-2", "a-3"]
    check_ids(numbered, "test.json")


def test_numbered_ids_do_not_meet_ids_that_are_there_already():
    numbered = number_repeated_ids([{"question_id": name} for name in ("a", "a", "a-1")])
    assert len({row["question_id"] for row in numbered}) == 3


def test_count_differences_are_told_in_words():
    questions = [{"image": "/a.png", "answer_type": "OPEN"}, {"image": "/a.png", "answer_type": "CLOSED"}]
    expected = {"questions": 2, "OPEN questions": 1000, "images": 3}
    assert describe_count_differences(questions, expected) == [
        "1 OPEN questions instead of 1,000",
        "1 images instead of 3",
    ]
    assert describe_count_differences(questions, {}) == []


def test_differences_are_warned_of():
    with pytest.warns(UserWarning, match=r"This SLAKE test split has x and y: its figures"):
        warn_of_differences("SLAKE", "test", ["x", "y"])
