"""Tests of the generated volumes: what their files hold, and that no slice alone tells where both lesions lie."""

import dataclasses
import json
import sys
from collections import Counter, defaultdict

import nibabel
import numpy as np
import pytest

from logramed.eval.benchmarks.phantoms import load_questions
from logramed.eval.run import main as evaluate
from logramed.eval.volumes import open_image_reference, open_volume
from logramed.trainer.data.phantom_images import draw_phantom
from logramed.trainer.data.phantom_volumes import NUM_SLICES, sample_volumes
from logramed.trainer.phantoms import generate_phantoms, main
from logramed.trainer.train import main as train


SIZES = {"num_train": 40, "num_validation": 8, "num_test": 80, "image_size": 32}
ANSWERS = {"FEET": {"left", "right"}, "HEAD": {"left", "right"}, "BOTH": {"same", "opposite"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_phantoms(tmp_path_factory.mktemp("data") / "volumes", **SIZES, volumes=True)


@pytest.fixture(scope="module")
def volumes():
    return sample_volumes(80, np.random.default_rng(0))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_words(options):
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def answers_to(folder, question_type):
    """The answer to a question about each test volume, by the path of the volume."""
    rows = load_questions(folder)
    return {row["image"]: row["answer"] for row in rows if row["groups"]["question_type"] == question_type}


def sides_seen_in(volume):
    """The side of the lesion in each half of the slices, measured on the pixels that it changes."""
    changes = [
        draw_phantom(slice_, 32) / 255.0 - draw_phantom(dataclasses.replace(slice_, lesions=()), 32) / 255.0
        for slice_ in volume.slices
    ]
    sides = []
    for half in (changes[: NUM_SLICES // 2], changes[NUM_SLICES // 2 :]):
        columns = np.abs(half).sum(axis=(0, 1))
        left, right = columns[:16].sum(), columns[16:].sum()
        assert max(left, right) > 20 * min(left, right)
        assert sum(np.abs(change).max() > 0.1 for change in half) == 3
        sides.append("left" if left > right else "right")
    return tuple(sides)


def test_answers_agree_with_the_pixels(volumes):
    for volume in volumes:
        lower, upper = sides_seen_in(volume)
        assert (lower, upper) == volume.sides
        assert volume.relation == ("same" if lower == upper else "opposite")


@pytest.mark.parametrize("number", range(1, NUM_SLICES + 1))
def test_each_slice_as_it_is_shown_stands_equally_often_with_both_answers(folder, number):
    """So no classifier of one slice, whatever it has learnt, is right about more than half of the volumes."""
    answers = defaultdict(Counter)
    for path, answer in answers_to(folder, "BOTH").items():
        shown = open_image_reference(f"{path}#slices={number}&window=soft_tissue")
        answers[shown.tobytes()][answer] += 1
    assert len(answers) >= SIZES["num_test"] / 4
    assert all(counts["same"] == counts["opposite"] > 0 for counts in answers.values())


def test_two_slices_tell_the_answer(folder):
    """The third and sixth slice always show a lesion: what they show together stands with one answer only."""
    answers = defaultdict(set)
    for path, answer in answers_to(folder, "BOTH").items():
        pair = [open_image_reference(f"{path}#slices={number}&window=soft_tissue").tobytes() for number in (3, 6)]
        answers[tuple(pair)].add(answer)
    assert len(answers) == SIZES["num_test"]
    assert all(len(possible) == 1 for possible in answers.values())


@pytest.mark.parametrize("question_type", ANSWERS)
def test_both_answers_are_equally_frequent(folder, question_type):
    counts = Counter(answers_to(folder, question_type).values())
    assert counts.keys() == ANSWERS[question_type]
    assert len(set(counts.values())) == 1


def test_no_slice_is_in_two_splits(folder):
    slices = defaultdict(set)
    for path in (folder / "images").iterdir():
        values = np.asarray(nibabel.load(path).dataobj)
        slices[path.name.split("_")[0]].update(values[..., number].tobytes() for number in range(NUM_SLICES))
    assert {split: len(found) for split, found in slices.items()} == {  # two versions of each slice that has a lesion
        split: SIZES[f"num_{split}"] / 4 * (2 * 6 + 2) for split in ("train", "validation", "test")
    }
    assert not slices["train"] & slices["test"]
    assert not slices["validation"] & (slices["train"] | slices["test"])


def test_simpleitk_reads_the_slices_that_were_drawn(folder):
    simpleitk = pytest.importorskip("SimpleITK")
    generated = sample_volumes(SIZES["num_test"], np.random.default_rng(np.random.SeedSequence(0).spawn(3)[2]))
    for number, volume in enumerate(generated[:8]):
        path = folder / "images" / f"test_{number:05d}.nii"
        image = simpleitk.ReadImage(str(path))
        drawn = np.stack([draw_phantom(slice_, 32) for slice_ in volume.slices])
        expected = np.round(drawn.astype(float) * 400 / 255 - 150)
        assert np.array_equal(simpleitk.GetArrayFromImage(image), expected)
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)  # columns to the left, rows back, slices up
        assert image.GetSpacing() == pytest.approx((11.25, 11.25, 28.8))
        ours = open_volume(str(path))
        assert ours.orientation == "axial"
        assert np.array_equal(ours.values, expected)


def test_the_same_seed_writes_the_same_bytes_and_another_other_volumes(folder, tmp_path):
    assert contents(generate_phantoms(tmp_path / "again", **SIZES, volumes=True)) == contents(folder)
    other = contents(generate_phantoms(tmp_path / "other", **SIZES, volumes=True, seed=1))
    assert other.keys() == contents(folder).keys()
    assert all(other[name] != content for name, content in contents(folder).items())


def test_volumes_do_not_replace_the_images_of_an_earlier_run(tmp_path):
    few = {"num_train": 4, "num_validation": 4, "num_test": 4}
    folder = generate_phantoms(tmp_path / "phantoms", **few)
    with pytest.raises(ValueError, match=r"not empty and holds no phantoms\.json with the same arguments"):
        generate_phantoms(folder, **few, volumes=True)
    assert {path.suffix for path in (folder / "images").iterdir()} == {".png"}


@pytest.mark.parametrize("name", ["num_train", "num_validation", "num_test"])
def test_a_number_that_cuts_a_family_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a multiple of 4 with `volumes`, got 10"):
        generate_phantoms(tmp_path / "volumes", **{**SIZES, name: 10}, volumes=True)
    assert not (tmp_path / "volumes").exists()


def test_a_missing_nibabel_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ImportError, match=r"need nibabel: pip install 'logramed\[volumes\]'"):
        generate_phantoms(tmp_path / "volumes", **SIZES, volumes=True)


def test_the_command_writes_what_the_function_writes(folder, tmp_path):
    main(["--output", str(tmp_path), "--volumes", *(f"--{name}={value}" for name, value in SIZES.items())])
    assert contents(tmp_path) == contents(folder)


def test_the_recipe_trains_and_of_one_slice_its_model_says_the_same_whatever_the_answer(folder, tmp_path):
    files = {"first_stage_data": "train_descriptions", "train_data": "train", "validation_data": "validation"}
    options = {name: folder / f"{file}.json" for name, file in files.items()}
    steps = {"max_steps": 2, "logging_steps": 1, "max_validation_questions": 4}
    train(["phantom_volumes.yaml", *as_words({**options, **steps, "output_dir": tmp_path / "model"})])
    log = json.loads((tmp_path / "model" / "train_metrics.json").read_text())["log_history"]
    assert any(entry.get("alignment_loss", 0) > 0 for entry in log)

    asked = {"model": tmp_path / "model", "benchmark": "phantoms", "data": folder, "output": tmp_path / "evaluation"}
    evaluate(as_words({**asked, "slices": "3", "window": "soft_tissue", "blank_images": False, "batch_size": 64}))
    said = defaultdict(Counter)
    for line in (tmp_path / "evaluation" / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["groups"]["question_type"] == "BOTH":
            said[row["answer"]][row["prediction"]] += 1
    assert said["same"].total() == SIZES["num_test"] / 2
    assert said["same"] == said["opposite"]
