"""Tests of VQA-RAD's splits by image."""

import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest

from logramed.eval.benchmarks import vqa_rad
from logramed.eval.benchmarks.by_image import SHARES, draw_image_splits, read_image_splits
from logramed.eval.leakage import find_leakage, training_rows, training_split


VQA_RAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "vqa_rad"
needs_vqa_rad = pytest.mark.skipif(not VQA_RAD.is_dir(), reason="the VQA-RAD files are not beside the repository")


def test_images_of_linked_cases_stay_together_and_the_shares_are_kept():
    cases = {f"image {number}": {f"case {number // 3}"} for number in range(300)}
    cases["image 0"].add("case 50")  # joins images 0 to 2 and 150 to 152
    splits = draw_image_splits(cases)
    assert sorted(itertools.chain(*splits.values())) == sorted(cases)
    of_cases = [set().union(*(cases[image] for image in images)) for images in splits.values()]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(of_cases, 2))
    for split, images in splits.items():
        assert abs(len(images) - 300 * SHARES[split]) <= 6
    assert draw_image_splits(dict(reversed(cases.items()))) == splits
    assert draw_image_splits(cases, seed=1) != splits


def test_the_committed_splits_share_no_image():
    splits = read_image_splits()
    assert {split: len(images) for split, images in splits.items()} == {
        "by_image_test": 63,
        "by_image_validation": 31,
        "by_image_train": 220,
    }
    assert len(frozenset().union(*splits.values())) == 314


@needs_vqa_rad
def test_the_committed_splits_are_those_drawn_from_the_release_and_hold_all_images():
    cases = defaultdict(set)
    for record in json.loads((VQA_RAD / "vqa_rad_public.json").read_text(encoding="utf-8")):
        cases[Path(record["image_name"]).stem].add(record["image_case_url"])
    drawn = draw_image_splits(cases)
    assert {split: frozenset(images) for split, images in drawn.items()} == read_image_splits()
    names = [
        record["image_name"]
        for name in ("trainset.json", "testset.json")
        for record in json.loads((VQA_RAD / name).read_text(encoding="utf-8"))
    ]
    assert {Path(name).stem for name in names} == set(cases)


@needs_vqa_rad
def test_the_splits_divide_all_questions_and_their_test_images_are_in_no_training_split(recwarn):
    questions = {split: vqa_rad.load_questions(VQA_RAD, split) for split in SHARES}
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
