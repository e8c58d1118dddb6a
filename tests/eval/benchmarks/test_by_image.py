"""Tests of VQA-RAD's splits by image."""

import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest

from logramed.eval.benchmarks import vqa_rad
from logramed.eval.benchmarks.by_image import IMAGE_SPLITS, read_image_splits
from logramed.eval.leakage import find_leakage, training_rows, training_split


VQA_RAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "vqa_rad"
needs_vqa_rad = pytest.mark.skipif(not VQA_RAD.is_dir(), reason="the VQA-RAD files are not beside the repository")


def test_the_committed_splits_share_no_image():
    splits = read_image_splits()
    assert {split: len(images) for split, images in splits.items()} == {
        "by_image_test": 63,
        "by_image_validation": 31,
        "by_image_train": 220,
    }
    assert len(frozenset().union(*splits.values())) == 314


@needs_vqa_rad
def test_the_committed_splits_share_no_case_and_hold_all_images_of_the_release():
    cases = defaultdict(set)
    for record in json.loads((VQA_RAD / "vqa_rad_public.json").read_text(encoding="utf-8")):
        cases[Path(record["image_name"]).stem].add(record["image_case_url"])
    splits = read_image_splits()
    assert frozenset().union(*splits.values()) == frozenset(cases)
    of_cases = [set().union(*(cases[image] for image in images)) for images in splits.values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(of_cases, 2))


@needs_vqa_rad
def test_the_splits_divide_all_questions_and_their_test_images_are_in_no_training_split(recwarn):
    questions = {split: vqa_rad.load_questions(VQA_RAD, split) for split in IMAGE_SPLITS}
    assert {split: len(rows) for split, rows in questions.items()} == {
        "by_image_test": 726,
        "by_image_validation": 370,
        "by_image_train": 2419,
    }
    assert not recwarn
    official = [row for split in ("train", "test") for row in vqa_rad.load_questions(VQA_RAD, split)]
    by_id = {row["question_id"]: row for row in itertools.chain(*questions.values())}
    assert by_id == {row["question_id"]: row for row in official}
    training = training_rows(vqa_rad, VQA_RAD, split=training_split(vqa_rad, "by_image_test"))
    report = find_leakage(questions["by_image_test"], training, split="by_image_train")
    assert report["num_test_images_in_training"] == 0
    assert report["compared_with"] == "by_image_train split, 2,419 rows"


def test_the_splits_need_both_files(tiny_vqa_rad):
    with pytest.raises(ValueError, match=r"`data` holds no trainset\.json"):
        vqa_rad.load_questions(tiny_vqa_rad, "by_image_test")
