"""Tests of the evaluation rows of the phantoms."""

import json
from pathlib import Path

import pytest

from logramed.eval.benchmarks.phantoms import GROUPS, count_differences, load_questions
from logramed.trainer.phantoms import generate_phantoms


@pytest.fixture
def folder(tmp_path):
    return generate_phantoms(tmp_path / "phantoms", num_train=2, num_validation=3, num_test=4)


@pytest.mark.parametrize(("split", "num_images"), [("validation", 3), ("test", 4)])
def test_rows_hold_every_question_of_the_split(folder, split, num_images):
    raw = json.loads((folder / f"{split}_questions.json").read_text(encoding="utf-8"))
    rows = load_questions(folder, split=split)
    assert [row["answer"] for row in rows] == [row["conversations"][1]["value"] for row in raw]
    assert [row["question"] + "\n<image>" for row in rows] == [row["conversations"][0]["value"] for row in raw]
    assert len({row["question_id"] for row in rows}) == len(rows)
    assert len({row["image"] for row in rows}) == num_images


def test_rows_have_absolute_images_and_both_groups(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for row in load_questions(Path("phantoms")):
        assert set(row) == {"question_id", "image", "question", "answer", "answer_type", "groups"}
        assert Path(row["image"]).is_absolute()
        assert Path(row["image"]).is_file()
        assert tuple(row["groups"]) == GROUPS
        assert row["answer_type"] in ("OPEN", "CLOSED")


def test_a_missing_image_is_named_with_its_row(folder):
    row = load_questions(folder)[-1]
    Path(row["image"]).unlink()
    with pytest.raises(ValueError, match=r"test_questions\.json, row with `id` \d+, `image`: .*is missing"):
        load_questions(folder)


def test_an_unknown_split_and_an_empty_folder_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of test, validation, got 'train'"):
        load_questions(folder, split="train")
    with pytest.raises(ValueError, match=r"holds no test_questions\.json"):
        load_questions(tmp_path)
    with pytest.raises(ValueError, match="phantoms has no subsets"):
        load_questions(folder, subset="brain")


def test_any_number_of_phantoms_is_right(folder):
    assert count_differences(load_questions(folder), "test") == []
