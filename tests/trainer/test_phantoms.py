"""Tests of the embedded data: drawn from a seed, true to what is asked about it, and silent to who does not look."""

import dataclasses
import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from logramed.trainer import phantoms as phantoms_module
from logramed.trainer.data.phantom_images import Phantom, draw_phantom, sample_phantom
from logramed.trainer.data.phantom_questions import ATTRIBUTES, ask_questions
from logramed.trainer.phantoms import generate_phantoms, main


SIZES = {"num_train": 40, "num_validation": 12, "num_test": 60}
IMAGE_SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_phantoms(tmp_path_factory.mktemp("data") / "phantoms", **SIZES)


@pytest.fixture(scope="module")
def phantoms() -> list[Phantom]:
    generator = np.random.default_rng(0)
    return [sample_phantom(generator) for _ in range(150)]


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers_by_question(rows):
    answers = defaultdict(Counter)
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        answers[question][answer] += 1
    return answers


def what_lesions_change(phantom):
    """Grey levels (of 1) that lesions add, without noise to blur them: the same phantom with them less without."""
    without = dataclasses.replace(phantom, lesions=())
    return draw_phantom(phantom, IMAGE_SIZE) / 255.0 - draw_phantom(without, IMAGE_SIZE) / 255.0


def seen_in(phantom):
    """Count, side, half, size and brightness of the lesions, measured on the pixels."""
    change = what_lesions_change(phantom)
    spots, num_lesions = ndimage.label(np.abs(change) > 0.02, structure=np.ones((3, 3)))
    if num_lesions != 1:
        return {"lesions": ("none", "one", "two", "three")[num_lesions]}
    y, x = ndimage.center_of_mass(spots)
    return {
        "lesions": "one",
        "side": "left" if x < (IMAGE_SIZE - 1) / 2 else "right",
        "half": "upper" if y < (IMAGE_SIZE - 1) / 2 else "lower",
        "size": "small" if np.sqrt((spots > 0).sum() / np.pi) / (IMAGE_SIZE / 2) < 0.16 else "large",
        "brightness": "bright" if change.sum() > 0 else "dark",
    }


def test_the_same_seed_writes_the_same_bytes(folder, tmp_path):
    assert contents(generate_phantoms(tmp_path / "again", **SIZES)) == contents(folder)


def test_another_seed_writes_other_images_and_questions(folder, tmp_path):
    other = contents(generate_phantoms(tmp_path / "other", **SIZES, seed=1))
    same = contents(folder)
    assert other.keys() == same.keys()
    assert all(other[name] != same[name] for name in other)


def test_open_answers_agree_with_the_pixels(phantoms):
    for phantom in phantoms:
        for name, value in seen_in(phantom).items():
            assert ATTRIBUTES[name].open_answer(phantom) == value, (name, phantom)


def test_closed_answers_agree_with_the_pixels(phantoms):
    wanted = {  # question: (what is measured, the values that make it true)
        "Is there a lesion?": ("lesions", {"one", "two", "three"}),
        "Is there more than one lesion?": ("lesions", {"two", "three"}),
        "Is the lesion on the left side of the image?": ("side", {"left"}),
        "Is the lesion on the right side of the image?": ("side", {"right"}),
        "Is the lesion in the upper half of the image?": ("half", {"upper"}),
        "Is the lesion in the lower half of the image?": ("half", {"lower"}),
        "Is the lesion large?": ("size", {"large"}),
        "Is the lesion small?": ("size", {"small"}),
        "Is the lesion bright?": ("brightness", {"bright"}),
        "Is the lesion dark?": ("brightness", {"dark"}),
    }
    checked = Counter()
    for phantom, turns in zip(phantoms, ask_questions(phantoms, np.random.default_rng(1)), strict=True):
        for turn in turns:
            if turn.question in wanted:
                name, values = wanted[turn.question]
                assert turn.answer == ("yes" if seen_in(phantom)[name] in values else "no"), (turn, phantom)
                checked[turn.question] += 1
    assert set(checked) == set(wanted)


def test_a_tube_is_drawn_exactly_where_one_is_answered(phantoms):
    for phantom in phantoms[:50]:
        with_tube, without = (draw_phantom(dataclasses.replace(phantom, has_tube=tube), 64) for tube in (True, False))
        rows_with_tube = (np.abs(with_tube.astype(int) - without) > 10).any(axis=1)
        assert rows_with_tube.sum() > 15, "the tube would be too short to see"
        drawn = draw_phantom(phantom, 64)
        assert np.array_equal(drawn, with_tube if ATTRIBUTES["tube"].open_answer(phantom) == "a tube" else without)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_closed_question_has_both_answers_equally_often(folder, split):
    if split == "train":
        rows = [
            {"conversations": [human, gpt]}
            for row in read(folder, "train.json")
            for human, gpt in zip(row["conversations"][::2], row["conversations"][1::2], strict=True)
            if not is_open(human["value"])
        ]
        for row in rows:
            row["conversations"][0]["value"] = row["conversations"][0]["value"].replace("<image>\n", "")
    else:
        rows = [row for row in read(folder, f"{split}_questions.json") if row["answer_type"] == "CLOSED"]
    assert rows
    for question, answers in answers_by_question(rows).items():
        assert len(answers) == 2, question
        assert len(set(answers.values())) == 1, (question, answers)


def is_open(question):
    return any(question.replace("<image>\n", "") in attribute.open_questions for attribute in ATTRIBUTES.values())


def test_the_best_answer_without_sight_is_right_half_the_time(folder):
    """For every question text the most frequent answer of the test set itself: more than any blind model can know."""
    rows = [row for row in read(folder, "test_questions.json") if row["answer_type"] == "CLOSED"]
    right = sum(answers.most_common(1)[0][1] for answers in answers_by_question(rows).values())
    assert right / len(rows) <= 0.55


def test_no_image_is_in_two_splits(folder):
    images = {split: {row["image"] for row in read(folder, f"{split}.json")} for split in ("train", "validation")}
    images["test"] = {row["image"] for row in read(folder, "test_questions.json")}
    assert {split: len(names) for split, names in images.items()} == {"train": 40, "validation": 12, "test": 60}
    pixels = [(folder / "images" / name).read_bytes() for names in images.values() for name in names]
    assert len(set(pixels)) == sum(SIZES.values())


def test_images_are_grey_squares_of_the_size_asked_for(tmp_path):
    folder = generate_phantoms(tmp_path / "small", num_train=2, num_validation=2, num_test=2, image_size=48)
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (48, 48))


def test_conversations_have_four_to_seven_turns_and_extended_answers_of_the_same_questions(folder):
    for row in read(folder, "train.json"):
        short, extended = row["conversations"], row["conversations_long"]
        assert 4 <= len(short) // 2 <= 7
        assert [turn["from"] for turn in short] == ["human", "gpt"] * (len(short) // 2)
        assert [turn["value"].count("<image>") for turn in short] == [1] + [0] * (len(short) - 1)
        assert short[0]["value"].startswith("<image>\n")
        assert short[::2] == extended[::2]
        for answer, longer in zip(short[1::2], extended[1::2], strict=True):
            assert len(longer["value"].split()) > len(answer["value"].split())
            if answer["value"] in ("yes", "no"):
                assert longer["value"].lower().startswith(answer["value"])


def test_descriptions_are_one_turn_about_each_training_image(folder):
    conversations = {row["image"]: row["conversations"] for row in read(folder, "train.json")}
    descriptions = {row["image"]: row["conversations"] for row in read(folder, "train_descriptions.json")}
    assert descriptions.keys() == conversations.keys()
    asked = {f"<image>\n{question}" for question in ATTRIBUTES["description"].open_questions}
    assert all(len(turns) == 2 and turns[0]["value"] in asked for turns in descriptions.values())
    described_in_both = [name for name, turns in conversations.items() if turns[0]["value"] in asked]
    assert described_in_both
    assert all(conversations[name][1] == descriptions[name][1] for name in described_in_both)


def test_no_question_about_the_lesion_comes_before_the_count_of_lesions(phantoms):
    counts = {*ATTRIBUTES["lesions"].closed, *ATTRIBUTES["lesions"].open_questions}
    for turns in ask_questions(phantoms, np.random.default_rng(0)):
        questions = [turn.question for turn in turns]
        place = next((place for place, question in enumerate(questions) if question in counts), 0)
        assert not any("the lesion" in question for question in questions[:place])


def test_question_rows_are_those_of_the_validation_conversations(folder):
    rows = read(folder, "validation_questions.json")
    turns = [
        (row["image"], human["value"].replace("<image>\n", ""), gpt["value"])
        for row in read(folder, "validation.json")
        for human, gpt in zip(row["conversations"][::2], row["conversations"][1::2], strict=True)
    ]
    questions = [(row["image"], *(turn["value"] for turn in row["conversations"])) for row in rows]
    assert [(image, question.removesuffix("\n<image>"), answer) for image, question, answer in questions] == turns
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert {row["organ"] for row in rows} == {"CHEST", "HEAD", "ABD"}


def test_the_same_arguments_leave_the_folder_alone_and_others_are_refused(tmp_path):
    arguments = {"num_train": 3, "num_validation": 2, "num_test": 2}
    folder = generate_phantoms(tmp_path / "phantoms", **arguments)
    marked = folder / "images" / "train_00000.png"
    marked.write_bytes(b"touched")
    generate_phantoms(folder, **arguments)
    assert marked.read_bytes() == b"touched"
    with pytest.raises(ValueError, match=r"not empty and holds no phantoms\.json with the same arguments"):
        generate_phantoms(folder, **{**arguments, "num_train": 2})
    assert marked.read_bytes() == b"touched"


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms_module, "describe_phantoms", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate_phantoms(tmp_path / "phantoms", num_train=2, num_validation=2, num_test=2)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"not empty and holds no phantoms\.json"):
        generate_phantoms(tmp_path, num_train=2, num_validation=2, num_test=2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_train", 1), ("num_validation", 0), ("num_test", -3), ("image_size", 16), ("seed", -1), ("num_train", 2.5)],
)
def test_bad_arguments_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer of at least .*got {value}"):
        generate_phantoms(tmp_path / "phantoms", **{name: value})


def test_the_command_writes_what_the_function_writes(folder, tmp_path):
    options = [f"--{name}={value}" for name, value in SIZES.items()]
    main(["--output", str(tmp_path / "phantoms"), *options])
    assert contents(tmp_path / "phantoms") == contents(folder)
