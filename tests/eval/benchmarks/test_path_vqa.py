"""Tests of the PathVQA loader on generated copies of its layouts."""

import os
import pickle
from pathlib import Path

import pytest

from logramed.eval.benchmarks.path_vqa import count_differences, load_questions, read_plain_pickle
from tests.eval.benchmarks.conftest import converted_row, write_image, write_json, write_parquet


pytestmark = pytest.mark.filterwarnings("ignore:This PathVQA")


def official_row(number: int, image: str, question: str, label: dict, kind: str = "other") -> dict:
    return {
        "answer_type": kind,
        "img_id": image,
        "label": label,
        "question_id": 300000000 + number,
        "question_type": question.split()[0],
        "sent": question,
    }


def official_rows() -> list[dict]:
    return [
        official_row(0, "test_0001", "Where are liver stem cells located?", {"in the canals of hering": 1}),
        official_row(1, "test_0001", "Is the liver shown?", {"Yes": 1}, "yes/no"),
        official_row(2, "test_0002", "how many nuclei are there?", {2: 1}, "number"),
        official_row(3, "test_0002", "is it a kidney?", {"no": 1, "yes": 0.3}, "yes/no"),
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "pvqa"
    write_rows(folder, official_rows())
    for number in (1, 2):
        write_image(folder / "images" / "test" / f"test_000{number}.jpg", seed=number)
    return folder


def write_rows(folder: Path, rows, name: str = "test_vqa.pkl") -> None:
    (folder / "qas").mkdir(parents=True, exist_ok=True)
    (folder / "qas" / name).write_bytes(pickle.dumps(rows, protocol=2))


def test_the_official_pickles_are_read(folder):
    questions = load_questions(folder)
    assert questions[0] == {
        "question_id": "300000000",
        "image": str(folder / "images" / "test" / "test_0001.jpg"),
        "question": "Where are liver stem cells located?",
        "answer": "in the canals of hering",
        "answer_type": "OPEN",
        "groups": {"question_type": "where"},
    }
    assert [row["answer"] for row in questions[1:]] == ["Yes", "2", "no"]
    assert [row["answer_type"] for row in questions[1:]] == ["CLOSED", "OPEN", "CLOSED"]
    assert load_questions(folder.parent) == questions  # the folder that the archive is unpacked into


def test_the_types_of_the_official_files_are_kept(folder):
    rows = [
        official_row(0, "test_0001", "is it benign or malignant?", {"benign": 1}, "yes/no"),
        official_row(1, "test_0001", "what says the caption?", {"no": 1}, "other"),
    ]
    write_rows(folder, rows)
    assert [row["answer_type"] for row in load_questions(folder)] == ["CLOSED", "OPEN"]


def test_validation_is_called_val_in_the_files(folder):
    write_rows(folder, [official_row(0, "val_0001", "is it?", {"no": 1})], "val_vqa.pkl")
    write_image(folder / "images" / "val" / "val_0001.jpg")
    assert [row["question_id"] for row in load_questions(folder, "validation")] == ["300000000"]


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_code_in_a_pickle_is_refused_and_not_run(folder, tmp_path):
    write_rows(folder, [Payload(tmp_path / "evil")])
    with pytest.raises(ValueError, match=r"test_vqa\.pkl is not a pickle of plain values: it names posix\.mkdir"):
        load_questions(folder)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04]", pickle.dumps([1])[:-3]])
def test_damaged_pickles_are_refused_by_name(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pkl is not a pickle of plain values"):
        read_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol_are_read(tmp_path, protocol):
    value = [{"a": 1, "b": [1.5, None, True, "é"]}, ("x",)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_plain_pickle(tmp_path / "a.pkl") == value


@pytest.mark.parametrize("name", ["test_w_options_new.json", "test.json"])
@pytest.mark.parametrize("images", ["images", "images/test", "."])
def test_repeated_image_ids_of_the_converted_form_become_unique(tmp_path, images, name):
    for number in (1, 2):
        write_image(tmp_path / images / f"test_000{number}.jpg", seed=number)
    write_json(
        tmp_path / name,
        [
            converted_row("test_0001", "test_0001.jpg", "where is it?", "liver", "OPEN"),
            converted_row("test_0001", "test_0001.jpg", "is it a liver?", "yes", "CLOSED"),
            converted_row("test_0002", "test_0002.jpg", "how many?", 2, "number"),
            converted_row("test_0001", "test_0001.jpg", "is it a kidney?", "no", "yes/no"),
        ],
    )
    questions = load_questions(tmp_path)
    assert [row["question_id"] for row in questions] == ["test_0001-1", "test_0001-2", "test_0002", "test_0001-3"]
    assert [row["answer_type"] for row in questions] == ["OPEN", "CLOSED", "OPEN", "CLOSED"]
    assert questions[0]["image"] == str(tmp_path / images / "test_0001.jpg")
    assert load_questions(tmp_path) == questions


def test_the_hub_gives_types_by_answer_and_row_numbers_for_ids(tmp_path, local_hub):
    image = write_image(tmp_path / "a.jpg").read_bytes()
    repository = local_hub.repository("flaviagiammarino/path-vqa")
    texts = [("where is it?", "liver"), ("is it a liver?", "yes"), ("how many?", "2")]
    rows = [{"image": {"bytes": image, "path": None}, "question": q, "answer": a} for q, a in texts]
    write_parquet(repository / "data" / "test-00000-of-00002-6a1b.parquet", rows[:2])
    write_parquet(repository / "data" / "test-00001-of-00002-7c2d.parquet", rows[2:])
    write_parquet(repository / "data" / "train-00000-of-00001-8e3f.parquet", rows)
    questions = load_questions("flaviagiammarino/path-vqa")
    assert [(row["question_id"], row["answer"], row["answer_type"]) for row in questions] == [
        ("0", "liver", "OPEN"),
        ("1", "yes", "CLOSED"),
        ("2", "2", "OPEN"),
    ]
    assert len({row["image"] for row in questions}) == 1
    assert Path(questions[0]["image"]).read_bytes() == image
    assert local_hub.downloads == [("flaviagiammarino/path-vqa", ("data/test-*.parquet",))]
    assert load_questions(str(repository)) == questions  # a folder with the Hub's files


def rows_of_types(num_open: int, num_closed: int) -> list[dict]:
    kinds = ["OPEN"] * num_open + ["CLOSED"] * num_closed
    return [{"image": "a", "answer_type": kind} for kind in kinds]


def test_the_size_of_the_official_file_is_known():
    assert count_differences(rows_of_types(3370, 3391), "test") == []
    assert count_differences(rows_of_types(3370, 3391)[1:], "test") == ["3,369 OPEN questions instead of 3,370"]


@pytest.mark.filterwarnings("default:This PathVQA")
def test_other_sizes_are_named(folder):
    with pytest.warns(UserWarning, match="2 OPEN questions instead of 3,370 and 2 CLOSED questions instead of 3,391"):
        load_questions(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": {}}, r"test_vqa\.pkl, row 1, `label`: expected the answers and their scores, got \{\}"),
        ({"label": {" ": 1}}, r"row 1, `label` is empty"),
        ({"sent": None}, r"row 1 has no `sent`"),
        ({"answer_type": "maybe"}, r"row 1, `answer_type`: expected OPEN or CLOSED, got 'maybe'"),
        ({"img_id": "test_0003"}, r"row 1, `img_id`: .*test_0003\.jpg is missing"),
        ({"img_id": "../../secret"}, r"row 1, `img_id`: expected a path that stays in"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(folder, change, words):
    rows = official_rows()
    rows[1] |= change
    write_rows(folder, rows)
    with pytest.raises(ValueError, match=words):
        load_questions(folder)


def test_unknown_splits_subsets_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="`split` must be one of test, train, validation, got 'val'"):
        load_questions(folder, "val")
    with pytest.raises(ValueError, match="path_vqa has no subsets"):
        load_questions(folder, subset="en")
    with pytest.raises(ValueError, match=r"`data` holds no qas/train_vqa\.pkl \(nor .*data/train-\*\.parquet\)"):
        load_questions(folder, "train")
    write_rows(folder, {"rows": []})
    with pytest.raises(ValueError, match=r"test_vqa\.pkl: expected a list of rows, got dict"):
        load_questions(folder)
