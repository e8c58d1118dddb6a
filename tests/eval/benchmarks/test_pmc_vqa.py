"""Tests of the PMC-VQA loader on generated copies of its files."""

import csv
from pathlib import Path

import pytest

from logramed.eval.benchmarks.pmc_vqa import count_differences, load_questions, why_no_training_rows
from tests.eval.benchmarks.conftest import write_image, write_zip


pytestmark = pytest.mark.filterwarnings("ignore:This PMC-VQA")


def first_version_row(**fields) -> dict:
    """A row as the files write it: letters before the choices, blanks around them."""
    return {
        "Figure_path": "PMC1_F1.jpg",
        "Question": "What is the uptake pattern?",
        "Answer": "Focal uptake pattern",
        "Choice A": " A:Diffuse uptake pattern ",
        "Choice B": " B:Focal uptake pattern ",
        "Choice C": " C:No uptake ",
        "Choice D": ' D:C: elegans, a "worm" ',
        "Answer_label": "B",
    } | fields


def second_version_row(number: int, **fields) -> dict:
    """A row of version 2: an index, a caption, choices without letters, and a letter for the answer."""
    row = first_version_row(
        Answer="B", **{"Choice A": "CT", "Choice B": "MRI", "Choice C": "X-ray", "Choice D": "PET"}
    )
    row.pop("Answer_label")
    return {"": number, "Caption": "A figure,\nof two lines.", "split": "test"} | row | fields


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pmc"
    write_csv(folder / "test_clean.csv", [first_version_row(), first_version_row(Answer_label=" d ")])
    write_image(folder / "images" / "PMC1_F1.jpg")
    return folder


def load_one(folder: Path, subset: str = "clean", name: str = "test_clean.csv", **fields) -> dict:
    row = second_version_row(0, **fields) if subset == "v2" else first_version_row(**fields)
    write_csv(folder / name, [row])
    (question,) = load_questions(folder, subset=subset)
    return question


def test_letters_before_the_choices_are_taken_off(folder):
    questions = load_questions(folder)
    assert questions[0] == {
        "question_id": "0",
        "image": str(folder / "images" / "PMC1_F1.jpg"),
        "question": "What is the uptake pattern?",
        "options": ["Diffuse uptake pattern", "Focal uptake pattern", "No uptake", 'C: elegans, a "worm"'],
        "answer": "Focal uptake pattern",
        "groups": {},
    }
    assert questions[1]["answer"] == 'C: elegans, a "worm"'  # only the choice's own letter goes
    assert questions[1]["question_id"] == "1"


@pytest.mark.parametrize(
    "answer",
    ["Focal uptake pattern", " focal  uptake PATTERN ", "B:Focal uptake pattern", " B: Focal uptake pattern."],
)
@pytest.mark.parametrize("label", ["", " ", "E", "Focal"])
def test_without_a_label_the_text_of_the_answer_finds_its_choice(folder, answer, label):
    assert load_one(folder, Answer=answer, Answer_label=label)["answer"] == "Focal uptake pattern"


@pytest.mark.parametrize("answer", ["C", " c ", "C:", "C."])
def test_version_2_answers_with_a_letter(folder, answer):
    write_image(folder / "images_2" / "figures" / "PMC1_F1.jpg", seed=2)
    question = load_one(folder, "v2", "test_2.csv", Answer=answer)
    assert question["options"] == ["CT", "MRI", "X-ray", "PET"]
    assert question["answer"] == "X-ray"
    assert question["image"].endswith("images_2/figures/PMC1_F1.jpg")


def test_choices_that_pandas_takes_for_missing_are_texts(folder):
    question = load_one(folder, **{"Choice A": " A:None ", "Choice C": "C:NA", "Answer_label": "A"})
    assert question["options"][0] == question["answer"] == "None"
    assert question["options"][2] == "NA"


def test_blanks_of_all_kinds_are_taken_off(folder):
    question = load_one(folder, **{"Choice A": "\u00a0A:\u200aCT\u00a0", "Answer_label": "A"})
    assert question["answer"] == "CT"


def test_empty_and_repeated_choices_are_left_out(folder):
    question = load_one(folder, **{"Choice A": "", "Choice C": "C:Focal uptake pattern", "Answer_label": "C"})
    assert question["options"] == ["Focal uptake pattern", 'C: elegans, a "worm"']
    assert question["answer"] == "Focal uptake pattern"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Answer_label": "E", "Answer": "Bone"}, r"test_clean\.csv, line 2, `Answer`: 'Bone' is none of \["),
        ({"Answer_label": "A", "Choice A": " "}, r"line 2, `Answer_label`: '' is none of \["),
        ({"Answer_label": "", "Answer": "Bone"}, r"line 2, `Answer`: 'Bone' is none of \["),
        ({"Answer_label": "", "Answer": ""}, r"line 2, `Answer` is empty"),
        (
            {"Choice B": "", "Choice C": "", "Choice D": ""},
            r"line 2, `Choice A to D`: expected two options or more, got",
        ),
        ({"Question": ""}, r"line 2, `Question` is empty"),
        ({"Figure_path": "PMC2_F1.jpg"}, r"line 2, `Figure_path`: .*images/PMC2_F1\.jpg is missing"),
        ({"Figure_path": "../secret.jpg"}, r"line 2, `Figure_path`: expected a path that stays in"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_column(folder, fields, words):
    with pytest.raises(ValueError, match=words):
        load_one(folder, **fields)


def test_files_without_a_column_are_refused(folder):
    row = first_version_row()
    row.pop("Choice D")
    write_csv(folder / "test_clean.csv", [row])
    with pytest.raises(ValueError, match=r"test_clean\.csv has no column Choice D; it has Figure_path, Question"):
        load_questions(folder)


def test_a_file_that_is_no_table_is_refused_by_name(folder):
    (folder / "test_clean.csv").write_bytes(b"Figure_path\n" + b'"' + b"x" * 200_000)
    with pytest.raises(ValueError, match=r"test_clean\.csv cannot be read as a table after line 1"):
        load_questions(folder)


@pytest.mark.parametrize("hub_id", ["RadGenome/PMC-VQA", "xmcmic/PMC-VQA"])
def test_the_hub_gives_the_same_questions_and_unpacks_their_images_only(folder, local_hub, cache, hub_id):
    repository = local_hub.repository(hub_id)
    write_csv(repository / "test_clean.csv", [first_version_row(), first_version_row(Answer_label="D")])
    write_csv(repository / "test_2.csv", [second_version_row(0, Figure_path="PMC2_F1_2.jpg")])
    image = (folder / "images" / "PMC1_F1.jpg").read_bytes()
    write_zip(repository / "images.zip", {"images/PMC1_F1.jpg": image, "images/PMC9_F9.jpg": b"not asked for"})
    write_zip(repository / "images_2.zip", {"figures/PMC2_F1_2.jpg": image})
    questions = load_questions(hub_id)
    assert [row | {"image": ""} for row in questions] == [row | {"image": ""} for row in load_questions(folder)]
    assert Path(questions[0]["image"]).read_bytes() == image
    assert [path.name for path in cache.rglob("*.jpg")] == ["PMC1_F1.jpg"]
    ((_, patterns),) = local_hub.downloads
    assert patterns == ("test_clean.csv", "images.zip")
    assert Path(load_questions(hub_id, subset="v2")[0]["image"]).read_bytes() == image


def test_the_files_of_every_split_and_version_are_read(folder):
    write_csv(folder / "test.csv", [first_version_row()] * 3)
    write_csv(folder / "train.csv", [first_version_row()] * 4)
    write_csv(folder / "train2.csv", [second_version_row(n) for n in range(5)])  # the name that the card writes
    write_image(folder / "figures" / "PMC1_F1.jpg")
    sizes = [(("test", None), 2), (("test", "clean"), 2), (("test", "v1"), 3)]
    sizes += [(("train", None), 4), (("train", "v1"), 4), (("train", "v2"), 5)]
    for (split, subset), size in sizes:
        assert len(load_questions(folder, split, subset)) == size


def test_known_sizes_are_compared():
    rows = [{"image": "a"}] * 2000
    assert count_differences(rows, "test") == count_differences(rows, "test", "clean") == []
    assert count_differences(rows[1:], "test") == ["1,999 questions instead of 2,000"]
    assert count_differences(rows, "train", "v2") == ["2,000 questions instead of 152,603"]
    assert count_differences(rows, "test", "v2") == []  # its size could not be checked


def test_packed_training_images_are_not_unpacked_to_look_for_leakage(folder, tmp_path):
    assert why_no_training_rows(folder) is None
    assert "unpack images_2.zip" in why_no_training_rows(folder, "v2")
    assert "unpack images.zip" in why_no_training_rows("RadGenome/PMC-VQA")


def test_an_archive_unpacked_into_a_folder_of_its_name_is_found(folder):
    write_image(folder / "images" / "images" / "PMC2_F1.jpg")
    assert load_one(folder, Figure_path="PMC2_F1.jpg")["image"].endswith("images/images/PMC2_F1.jpg")


def test_unknown_splits_subsets_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of test, train, got 'test_clean'"):
        load_questions(folder, "test_clean")
    with pytest.raises(ValueError, match="`subset` of pmc_vqa must be one of clean, v1, v2, got 'v3'"):
        load_questions(folder, subset="v3")
    with pytest.raises(ValueError, match=r"`data` holds no test_2\.csv \(nor test2\.csv\)"):
        load_questions(folder, subset="v2")
