"""Tests of the OmniMedVQA loader on generated copies of its layout."""

import json
from collections import Counter
from pathlib import Path

import pytest

from logramed.eval.benchmarks.omnimedvqa import EXPECTED_COUNTS, count_differences, load_questions
from logramed.eval.benchmarks.options import match_option
from tests.eval.benchmarks.conftest import write_image, write_json, write_zip


pytestmark = pytest.mark.filterwarnings("ignore:This OmniMedVQA")


def official_row(dataset: str, number: int, **fields) -> dict:
    row = {
        "dataset": dataset,
        "question_id": f"{dataset}_{number:04}",
        "question_type": "Modality Recognition",
        "question": "What imaging technique was used?",
        "gt_answer": "CT",
        "image_path": f"Images/{dataset}/{number}.png",
        "option_A": "CT",
        "option_B": "MRI",
        "option_C": "X-ray",
        "option_D": "Ultrasound",
        "modality_type": "CT(Computed Tomography)",
    } | fields
    return {name: value for name, value in row.items() if value is not None}


def official_files() -> dict[str, list[dict]]:
    chest = official_row("Chest CT Scan", 0, modality_type=None, modality="CT(Computed Tomography)")
    other = official_row(
        "ACRIMA",
        0,
        question_type="Disease Diagnosis",
        question="Is glaucoma present?",
        gt_answer=" yes.",
        option_A="Yes",
        option_B="No ",
        option_C=None,
        option_D=None,
        modality_type="Fundus Photography",
    )
    return {"Chest CT Scan": [chest, official_row("Chest CT Scan", 1)], "ACRIMA": [other]}


def write_release(root: Path, files: dict[str, list[dict]]) -> Path:
    for name, rows in files.items():
        write_json(root / "QA_information" / "Open-access" / f"{name}.json", rows)
        for number, row in enumerate(rows):
            if row["image_path"].startswith("Images/"):
                write_image(root / row["image_path"], seed=number)
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_release(tmp_path / "OmniMedVQA", official_files())


def test_all_files_are_read_in_the_order_of_their_names(folder):
    questions = load_questions(folder)
    assert [row["question_id"] for row in questions] == ["ACRIMA_0000", "Chest CT Scan_0000", "Chest CT Scan_0001"]
    assert questions[1] == {
        "question_id": "Chest CT Scan_0000",
        "image": str(folder / "Images" / "Chest CT Scan" / "0.png"),
        "question": "What imaging technique was used?",
        "options": ["CT", "MRI", "X-ray", "Ultrasound"],
        "answer": "CT",
        "groups": {
            "dataset": "Chest CT Scan",
            "modality": "CT(Computed Tomography)",  # `modality` in the file
            "question_type": "Modality Recognition",
        },
    }
    assert load_questions(folder.parent) == questions  # the folder that the archive is unpacked into


def test_options_may_lack_and_the_answer_may_be_spelled_otherwise(folder):
    question = load_questions(folder)[0]
    assert question["options"] == ["Yes", "No"]
    assert question["answer"] == "Yes"  # " yes." in the file
    assert Counter(row["groups"]["modality"] for row in load_questions(folder))["Fundus Photography"] == 1


@pytest.mark.parametrize("subset", ["Chest CT Scan", "Chest CT Scan.json"])
def test_one_data_set_is_a_subset(folder, subset):
    questions = load_questions(folder, subset=subset)
    assert [row["groups"]["dataset"] for row in questions] == ["Chest CT Scan"] * 2


def test_images_of_other_data_sets_are_not_asked_for(folder):
    (folder / "Images" / "Chest CT Scan" / "0.png").unlink()
    assert len(load_questions(folder, subset="ACRIMA")) == 1
    with pytest.raises(ValueError, match=r"Chest CT Scan\.json, row 0, `image_path`: .*0\.png is missing"):
        load_questions(folder)


@pytest.mark.parametrize("prefix", ["", "OmniMedVQA/"])
def test_the_hub_gives_the_same_questions_out_of_its_archive(folder, local_hub, cache, prefix):
    members = {
        f"{prefix}QA_information/Open-access/{name}.json": json.dumps(rows).encode()
        for name, rows in official_files().items()
    }
    members[f"{prefix}QA_information/Restricted-access/Secret.json"] = b"[]"
    members[f"__MACOSX/{prefix}QA_information/Open-access/._ACRIMA.json"] = b"junk"
    for path in sorted((folder / "Images").rglob("*.png")):
        members[f"{prefix}{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    write_zip(local_hub.repository("foreverbeliever/OmniMedVQA") / "OmniMedVQA.zip", members)
    (question,) = load_questions("foreverbeliever/OmniMedVQA", subset="ACRIMA")
    assert [path.name for path in cache.rglob("*.png")] == ["0.png"]
    questions = load_questions("foreverbeliever/OmniMedVQA")
    assert questions[0] == question
    for downloaded, local in zip(questions, load_questions(folder), strict=True):
        assert Path(downloaded["image"]).read_bytes() == Path(local["image"]).read_bytes()
        assert downloaded | {"image": ""} == local | {"image": ""}
    with pytest.raises(ValueError, match="`subset` of omnimedvqa must be one of ACRIMA, Chest CT Scan, got 'Secret'"):
        load_questions("foreverbeliever/OmniMedVQA", subset="Secret")


def test_repeated_ids_become_unique(tmp_path):
    rows = [official_row("X", 0), official_row("X", 0, question="Which?"), official_row("X", 1)]
    questions = load_questions(write_release(tmp_path, {"X": rows}))
    assert [row["question_id"] for row in questions] == ["X_0000-1", "X_0000-2", "X_0001"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gt_answer": "PET"}, r"X\.json, row 1, `gt_answer`: 'PET' is none of \['CT', 'MRI'"),
        (
            {"option_B": None, "option_C": None, "option_D": " CT"},
            r"row 1, `option_A to D`: expected two options or more",
        ),
        ({"modality_type": None}, r"row 1 has no `modality_type`"),
        ({"question_type": ""}, r"row 1, `question_type` is empty"),
        ({"image_path": "../secret.png"}, r"row 1, `image_path`: expected a path that stays in"),
        ({"option_C": ["X-ray"]}, r"row 1, `option_C`: expected a text"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(tmp_path, fields, words):
    write_release(tmp_path, {"X": [official_row("X", 0), official_row("X", 1, **fields)]})
    with pytest.raises(ValueError, match=words):
        load_questions(tmp_path)


def test_an_answer_that_could_be_two_options_is_refused():
    assert match_option("CT", ["CT", "ct"], "here", "gt_answer") == "CT"
    with pytest.raises(ValueError, match=r"here, `gt_answer`: 'Ct' is more than one of \['CT', 'ct\.'\]"):
        match_option("Ct", ["CT", "ct."], "here", "gt_answer")


def test_the_size_of_the_whole_is_known_and_that_of_a_file_is_not():
    num_questions, num_images = EXPECTED_COUNTS["questions"], EXPECTED_COUNTS["images"]
    questions = [
        {"image": str(number % num_images), "groups": {"dataset": str(number % 42)}} for number in range(num_questions)
    ]
    assert count_differences(questions, "test") == []
    assert count_differences(questions[:82000], "test") == [
        "82,000 questions instead of 88,996",
        "82,000 images instead of 82,059",
    ]
    assert count_differences(questions[:1], "test", "ACRIMA") == []


@pytest.mark.filterwarnings("default:This OmniMedVQA")
def test_other_sizes_are_named(folder):
    with pytest.warns(UserWarning, match="3 questions instead of 88,996 and 3 images instead of 82,059"):
        load_questions(folder)


def test_unknown_splits_subsets_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of test, got 'train'"):
        load_questions(folder, "train")
    with pytest.raises(
        ValueError, match="`subset` of omnimedvqa must be one of ACRIMA, Chest CT Scan, got 'RadImageNet'"
    ):
        load_questions(folder, subset="RadImageNet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"`data` holds no QA_information/Open-access/\*\.json \(nor OmniMedVQA\.zip\)"
    ):
        load_questions(tmp_path / "empty")
    write_zip(tmp_path / "empty" / "OmniMedVQA.zip", {"Images/a.png": b""})
    with pytest.raises(ValueError, match=r"OmniMedVQA\.zip holds no QA_information/Open-access/\*\.json"):
        load_questions(tmp_path / "empty")
