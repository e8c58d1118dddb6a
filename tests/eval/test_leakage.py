"""Tests of the leakage report."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from logramed.eval import leakage
from logramed.eval.benchmarks import omnimedvqa, phantoms, pmc_vqa, slake, vqa_rad
from logramed.eval.leakage import find_leakage, training_rows


VQA_RAD = Path(__file__).parents[3] / "shared" / "data" / "vqa_rad"
SLAKE = VQA_RAD.parent / "slake"


def write_image(path: Path, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def row(image: str, question: str, answer: str, question_id: str = "", **fields) -> dict:
    return {"question_id": question_id, "image": image, "question": question, "answer": answer, **fields}


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason=f"needs the VQA-RAD files in {VQA_RAD}")
def test_vqa_rad_leaks_every_test_image_and_14_triplets():
    questions = vqa_rad.load_questions(VQA_RAD)
    training = training_rows(vqa_rad, VQA_RAD)
    report = find_leakage(questions, training)
    assert len(report.pop("triplet_question_ids")) == 14
    assert report == {
        "num_test_images": 203,
        "num_test_images_in_training": 203,
        "num_questions_on_them": 451,
        "num_triplets_in_training": 14,
        "compared_with": "train split, 3,064 rows",
    }


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason=f"needs the VQA-RAD files in {VQA_RAD}")
def test_the_triplets_of_vqa_rad_are_those_of_its_file_names():
    """An independent answer: there, equal names are equal images."""
    by_name = {
        split: [
            (record["image_name"], *(" ".join(str(record[name]).lower().split()) for name in ("question", "answer")))
            for record in json.loads((VQA_RAD / f"{split}set.json").read_text(encoding="utf-8"))
        ]
        for split in ("test", "train")
    }
    questions = vqa_rad.load_questions(VQA_RAD)
    expected = [
        question["question_id"]
        for question, triplet in zip(questions, by_name["test"], strict=True)
        if triplet in set(by_name["train"])
    ]
    assert find_leakage(questions, training_rows(vqa_rad, VQA_RAD))["triplet_question_ids"] == expected


@pytest.fixture
def images(tmp_path) -> dict[str, str]:
    """Test images a, b and c; `a again` holds the bytes of a under another name, the others are not in the test."""
    seeds = {"a": 0, "b": 1, "c": 2, "a again": 0, "d": 3}
    return {name: write_image(tmp_path / name / "image.bmp", seed) for name, seed in seeds.items()}


def test_images_are_compared_by_content_and_texts_without_capitals_and_blanks(images):
    questions = [
        row(images["a"], "Is there a mass?", "Yes", "1"),
        row(images["a"], "Where is it?", "left", "2"),
        row(images["b"], "Is there a mass?", "Yes", "3"),
        row(images["c"], "Is there a mass?", "Yes", "4"),
    ]
    training = [
        row(images["a again"], " is there  a MASS? ", "yes"),
        row(images["a again"], "Where is it?", "right"),
        row(images["d"], "Is there a mass?", "Yes"),
        row(images["b"], "Where is it?", "left"),
    ]
    assert find_leakage(questions, training) == {
        "num_test_images": 3,
        "num_test_images_in_training": 2,
        "num_questions_on_them": 3,
        "num_triplets_in_training": 1,
        "triplet_question_ids": ["1"],
        "compared_with": "train split, 4 rows",
    }


@pytest.mark.parametrize(
    "hint", [' (Answer with either "Yes" or "No").', " Please choose from the following two options: [yes, no]"]
)
def test_options_that_a_conversion_wrote_behind_a_question_do_not_hide_a_triplet(images, hint):
    one, other = (
        row(images["a"], "Is there a mass?", "Yes", "1"),
        row(images["a"], f"Is there a mass?{hint}", "Yes", "1"),
    )
    assert find_leakage([one], [other])["triplet_question_ids"] == ["1"]
    assert find_leakage([other], [one])["triplet_question_ids"] == ["1"]


def test_rows_of_any_task_are_compared(images):
    questions = [row(images["a"], "Which?", "CT", "1", options=["CT", "MRI"])]
    assert find_leakage(questions, [row(images["a"], "Which?", "CT")])["triplet_question_ids"] == ["1"]


def test_without_anything_in_common_nothing_leaks(images):
    report = find_leakage([row(images["a"], "Which?", "CT", "1")], [row(images["b"], "Which?", "CT")])
    assert (report["num_test_images_in_training"], report["triplet_question_ids"]) == (0, [])


def test_only_images_of_a_size_that_both_have_are_read(images, tmp_path, monkeypatch):
    (tmp_path / "large.bmp").write_bytes(b"x" * 100_000)
    read, hash_image = [], leakage.hash_image
    monkeypatch.setattr(leakage, "hash_image", lambda path: read.append(path) or hash_image(path))
    questions = [row(images["a"], "Which?", "CT", "1"), row(images["a"], "Where?", "left", "2")]
    training = [row(images["a again"], "Which?", "CT"), row(str(tmp_path / "large.bmp"), "Which?", "CT")]
    find_leakage(questions, training)
    assert sorted(read) == sorted([images["a"], images["a again"]])


def test_without_rows_nothing_can_be_said(images):
    questions = [row(images["a"], "Which?", "CT", "1")]
    with pytest.raises(ValueError, match="got 1 test and 0 training rows"):
        find_leakage(questions, [])
    with pytest.raises(ValueError, match="got 0 test and 1 training rows"):
        find_leakage([], questions)


def test_training_rows_come_without_a_warning_about_their_number(tiny_vqa_rad, recwarn):
    (tiny_vqa_rad / "trainset.json").write_bytes((tiny_vqa_rad / "testset.json").read_bytes())
    try:
        rows = training_rows(vqa_rad, str(tiny_vqa_rad))
    finally:
        (tiny_vqa_rad / "trainset.json").unlink()
    assert len(rows) == 24
    assert not recwarn


def test_a_folder_with_the_test_files_alone_stops_nothing(tiny_vqa_rad):
    reason = training_rows(vqa_rad, tiny_vqa_rad)
    assert reason.startswith("the training split could not be read: `data` holds no trainset.json (nor")
    assert not reason.endswith(".")


def test_a_missing_training_image_stops_nothing(tiny_vqa_rad, tmp_path):
    records = json.loads((tiny_vqa_rad / "testset.json").read_text())
    (tmp_path / "trainset.json").write_text(json.dumps(records))
    assert "trainset.json, row 0, `image_name`" in training_rows(vqa_rad, tmp_path)


@pytest.mark.parametrize(
    ("benchmark", "reason"),
    [
        (phantoms, "phantoms has no training split"),
        (omnimedvqa, "omnimedvqa has no training split"),
        (pmc_vqa, "the training images are still packed"),
        (slake, "the training split could not be read: `data` holds no train.json"),
    ],
)
def test_the_reason_says_why_there_are_no_training_rows(benchmark: ModuleType, reason, tmp_path):
    assert training_rows(benchmark, tmp_path).startswith(reason)


def test_training_rows_are_those_of_the_subset(tmp_path):
    write_image(tmp_path / "imgs" / "xmlab1" / "source.jpg", 0)
    common = {"img_name": "xmlab1/source.jpg", "answer_type": "OPEN", "content_type": "Organ", "modality": "CT"}
    rows = [
        common | {"qid": 0, "question": "Which?", "answer": "Lung", "q_lang": "en", "location": "Lung"},
        common | {"qid": 1, "question": "什么?", "answer": "肺", "q_lang": "zh", "location": "Lung"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    assert [question["answer"] for question in training_rows(slake, tmp_path)] == ["Lung"]
    assert [question["answer"] for question in training_rows(slake, tmp_path, "zh")] == ["肺"]


def test_a_bad_training_row_is_counted_and_named_and_costs_nothing_else(images, tiny_vqa_rad, tmp_path):
    records = json.loads((tiny_vqa_rad / "testset.json").read_text())
    records[1]["answer"] = ""
    (tmp_path / "images").symlink_to(tiny_vqa_rad / "images")
    (tmp_path / "trainset.json").write_text(json.dumps(records))
    skipped = []
    training = training_rows(vqa_rad, tmp_path, skipped=skipped)
    assert len(training) == 23
    assert skipped == [f"qid 99: {tmp_path.name}/trainset.json, row 1, `answer` is empty."]
    report = find_leakage([row(images["a"], "Which?", "CT", "1")], training, skipped)
    assert report["bad_training_rows"] == skipped
    assert report["compared_with"] == f"train split, 23 rows, 1 bad row left out ({skipped[0][:-1]})"


@pytest.mark.skipif(not SLAKE.is_dir(), reason=f"needs the SLAKE files in {SLAKE}")
def test_the_empty_answer_of_slake_costs_no_leakage_report_and_its_english_splits_share_no_image():
    skipped = []
    training = training_rows(slake, SLAKE, skipped=skipped)
    report = find_leakage(slake.load_questions(SLAKE), training, skipped)
    assert report["compared_with"].startswith("train split, 4,918 rows, 1 bad row left out (qid 1622: ")
    assert (report["num_test_images"], report["num_test_images_in_training"]) == (96, 0)
