"""Tests of the VQA-RAD loader and of the register of benchmarks."""

import json
from collections import Counter
from pathlib import Path

import pytest

from logramed.eval.benchmarks import BENCHMARKS, get_benchmark
from logramed.eval.benchmarks.rows import infer_answer_type
from logramed.eval.benchmarks.vqa_rad import (
    RELEASE_FILE,
    count_differences,
    load_questions,
    normalize_question_type,
)
from tests.eval.benchmarks.conftest import converted_row, write_image, write_json, write_parquet
from tests.hub_client import clients_at
from tests.isolation import PROXIES


VQA_RAD = Path(__file__).parents[4] / "shared" / "data" / "vqa_rad"
needs_vqa_rad = pytest.mark.skipif(not VQA_RAD.is_dir(), reason=f"needs the VQA-RAD files in {VQA_RAD}")
wrong_counts = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")


def change_row(folder, tmp_path, **fields):
    """A copy of `folder` whose row 1 has other fields; `None` removes one."""
    records = json.loads((folder / "testset.json").read_text())
    records[1] = {key: value for key, value in (records[1] | fields).items() if value is not None}
    (tmp_path / "testset.json").write_text(json.dumps(records))
    (tmp_path / "images").symlink_to(folder / "images")
    return tmp_path


@needs_vqa_rad
@pytest.mark.filterwarnings("error")
def test_the_real_test_split_has_the_451_questions_of_the_literature():
    questions = load_questions(VQA_RAD)
    assert len(questions) == 451
    assert Counter(row["answer_type"] for row in questions) == {"CLOSED": 272, "OPEN": 179}
    assert Counter(row["groups"]["organ"] for row in questions) == {"CHEST": 174, "ABD": 158, "HEAD": 119}
    question_types = Counter(row["groups"]["question_type"] for row in questions)
    assert question_types["PRES"] == 163 + len(["PRES, ATTRIB"] * 2 + ["PRES, POS", "PRES, COLOR"])
    assert len(question_types) == 11
    assert len({row["image"] for row in questions}) == 203
    assert len({row["question_id"] for row in questions}) == 451


@needs_vqa_rad
@pytest.mark.filterwarnings("error")
def test_the_real_training_split_loads_with_its_traps():
    questions = load_questions(VQA_RAD, split="train")
    assert count_differences(questions, "train") == []
    assert len(questions) == 3064
    assert all(isinstance(row["answer"], str) and row["answer"] for row in questions)
    assert not {"PRSE", "ATRIB", "Other"} & {row["groups"]["question_type"] for row in questions}


@needs_vqa_rad
@pytest.mark.filterwarnings("error")
def test_the_real_release_holds_the_same_test_questions_under_other_ids(tmp_path):
    (tmp_path / RELEASE_FILE).symlink_to(VQA_RAD / "vqa_rad_public.json")
    (tmp_path / "VQA_RAD Image Folder").symlink_to(VQA_RAD / "images")
    field, release = load_questions(VQA_RAD), load_questions(tmp_path)
    for one, other in zip(field, release, strict=True):
        assert other["question_id"] != one["question_id"]
        assert Path(other["image"]).name == Path(one["image"]).name
        same = ("question", "answer", "answer_type", "groups")
        assert [other[key] for key in same] == [one[key] for key in same]
    assert [row["question_id"] for row in release[:3]] == ["10", "12", "13"]  # as in LLaVA-Med's answers
    with pytest.warns(UserWarning, match="train split has .* instead of"):
        assert len(load_questions(tmp_path, "train")) == 1797


@needs_vqa_rad
def test_the_constant_answer_no_scores_the_known_floor():
    from logramed.eval.report import best_constant_answer

    constant = best_constant_answer(load_questions(VQA_RAD))
    assert constant == {"answer": "no", "closed_accuracy": pytest.approx(100 * 133 / 272)}


@needs_vqa_rad
def test_the_copy_on_the_hub_is_known_by_its_counts():
    """It has the same test rows without their types; here made of the official ones."""
    test = [row | {"answer_type": infer_answer_type(row["answer"]), "groups": {}} for row in load_questions(VQA_RAD)]
    assert count_differences(test, "test") == [
        "251 CLOSED questions instead of 272",
        "200 OPEN questions instead of 179",
    ]


@wrong_counts
def test_the_copy_on_the_hub_gives_types_by_answer_and_row_numbers_for_ids(tmp_path, local_hub):
    image = write_image(tmp_path / "a.jpg").read_bytes()
    rows = [
        {"image": {"bytes": image, "path": None}, "question": question, "answer": answer}
        for question, answer in (
            ("is there a mass? ", "Yes"),
            ("where is it?", "left lung"),
            ("left or right?", "left"),
        )
    ]
    write_parquet(local_hub.repository("flaviagiammarino/vqa-rad") / "data" / "test-00000-of-00001-e5bc.parquet", rows)
    questions = load_questions("flaviagiammarino/vqa-rad")
    assert Path(questions[0]["image"]).read_bytes() == image
    assert [row | {"image": ""} for row in questions[:2]] == [
        {"question_id": "0", "image": "", "question": "is there a mass?", "answer": "Yes", "answer_type": "CLOSED"}
        | {"groups": {}},
        {"question_id": "1", "image": "", "question": "where is it?", "answer": "left lung", "answer_type": "OPEN"}
        | {"groups": {}},
    ]
    assert questions[2]["answer_type"] == "OPEN"  # closed in the official file, which the copy cannot tell
    assert local_hub.downloads == [("flaviagiammarino/vqa-rad", ("data/test-*.parquet",))]


@wrong_counts
@pytest.mark.filterwarnings("ignore:This VQA-RAD train split has")
def test_the_release_holds_both_splits_in_one_file(tmp_path):
    write_image(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg")
    fields = {"image_name": "synpic1.jpg", "image_organ": "CHEST", "question": "mass?", "answer": "no"}
    fields |= {"answer_type": "CLOSED", "question_type": "PRES"}
    kinds = ("freeform", "test_freeform", "para", "test_para")
    rows = [fields | {"qid": str(number), "phrase_type": kind} for number, kind in enumerate(kinds)]
    write_json(tmp_path / RELEASE_FILE, rows)
    assert [row["question_id"] for row in load_questions(tmp_path)] == ["1", "3"]
    assert [row["question_id"] for row in load_questions(tmp_path, "train")] == ["0", "2"]
    write_json(tmp_path / RELEASE_FILE, [*rows, fields | {"qid": "4"}])
    with pytest.raises(ValueError, match=r"Public\.json, row 4 has no `phrase_type`"):
        load_questions(tmp_path)


@wrong_counts
@pytest.mark.parametrize("name", ["test_w_options_new.json", "test.json"])
def test_the_form_that_llava_med_converts_to_is_read(tmp_path, name):
    write_image(tmp_path / "images" / "synpic42202.jpg")
    question = 'Is there a mass? (Answer with either "Yes" or "No").'
    rows = [
        converted_row(11, "synpic42202.jpg", question, "yes", "CLOSED "),
        converted_row(12, "synpic42202.jpg", "how many masses?", 2, "OPEN"),
    ]
    write_json(tmp_path / name, rows)
    questions = load_questions(tmp_path)
    assert questions[0] == {
        "question_id": "11",
        "image": str(tmp_path / "images" / "synpic42202.jpg"),
        "question": question,
        "answer": "yes",
        "answer_type": "CLOSED",
        "groups": {},
    }
    assert questions[1]["answer"] == "2"
    write_json(tmp_path / name, [rows[0], rows[0]])
    with pytest.raises(ValueError, match=r"test.*\.json holds the same `id` more than once: 11"):
        load_questions(tmp_path)


@wrong_counts
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conversations": []}, r"row with `id` 11, `conversations`: expected two turns"),
        (
            {"conversations": [{"value": "a"}, {"value": ""}]},
            r"row with `id` 11, `conversations`, turn 1, `value` is empty",
        ),
        (
            {"conversations": [{"value": "<image>"}, {"value": "a"}]},
            r"row with `id` 11, `conversations`, turn 0, `value` holds no question",
        ),
        ({"answer_type": "other"}, r"row with `id` 11, `answer_type`: expected OPEN or CLOSED, got 'other'"),
        ({"image": "gone.jpg"}, r"row with `id` 11, `image`: .*gone\.jpg is missing"),
        ({"id": None}, r"test_w_options_new\.json, row 0 has no `id`"),
    ],
)
def test_bad_converted_rows_are_refused_by_file_id_and_field(tmp_path, change, words):
    write_image(tmp_path / "images" / "a.jpg")
    row = converted_row(11, "a.jpg", "Is there a mass?", "yes", "CLOSED") | change
    write_json(tmp_path / "test_w_options_new.json", [row])
    with pytest.raises(ValueError, match=words):
        load_questions(tmp_path)


@wrong_counts
def test_rows_of_the_official_layout_become_question_rows(tiny_vqa_rad):
    questions = load_questions(tiny_vqa_rad)
    assert [row["question_id"] for row in questions[:2]] == ["100", "99"]
    assert questions[0] == {
        "question_id": "100",
        "image": str(tiny_vqa_rad.resolve() / "images" / "synpic0.jpg"),
        "question": "where is the liver",
        "answer": "left lung",
        "answer_type": "OPEN",
        "phrase_type": "freeform",
        "groups": {"organ": "CHEST", "question_type": "PRES"},
    }
    assert questions[1]["answer_type"] == "CLOSED"  # "CLOSED " in the file
    assert questions[2]["answer"] == "2"  # a number in the file


@wrong_counts
def test_a_relative_data_folder_gives_absolute_images(tiny_vqa_rad, monkeypatch):
    monkeypatch.chdir(tiny_vqa_rad.parent)
    assert Path(load_questions(tiny_vqa_rad.name)[0]["image"]).is_absolute()


def test_other_row_counts_are_named(tiny_vqa_rad):
    with pytest.warns(UserWarning, match="12 CLOSED questions instead of 272 and 12 OPEN questions instead of 179"):
        load_questions(tiny_vqa_rad)


@pytest.mark.parametrize(
    ("written", "normalized"),
    [
        ("PRSE", "PRES"),
        ("ATRIB", "ATTRIB"),
        ("Other", "OTHER"),
        ("PRES, POS", "PRES"),
        ("POS, PRES", "POS"),
        ("SIZE ", "SIZE"),
    ],
)
def test_question_types_are_normalized(written, normalized):
    assert normalize_question_type(written) == normalized


@wrong_counts
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"answer": None}, r"testset\.json, row 1 has no `answer`"),
        ({"answer_type": "yes/no"}, r"row 1, `answer_type`: expected OPEN or CLOSED, got 'yes/no'"),
        ({"image_name": "gone.jpg"}, r"row 1, `image_name`: .*gone\.jpg is missing"),
        ({"image_name": "../images/synpic0.jpg"}, r"row 1, `image_name`: expected a file name without folders"),
        ({"qid": 100}, r"same `qid` more than once: 100"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(tiny_vqa_rad, tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        load_questions(change_row(tiny_vqa_rad, tmp_path, **fields))


def test_unknown_splits_and_folders_are_refused(tiny_vqa_rad, tmp_path):
    with pytest.raises(ValueError, match=r"must be one of test, train, by_image_test, .*, got 'validation'"):
        load_questions(tiny_vqa_rad, split="validation")
    with pytest.raises(ValueError, match=r"holds no testset\.json"):
        load_questions(tmp_path)
    with pytest.raises(ValueError, match="vqa_rad has no subsets: leave `subset` out, got 'en'"):
        load_questions(tiny_vqa_rad, subset="en")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_registered_benchmark_has_what_the_runner_uses(name):
    benchmark = get_benchmark(name)
    assert benchmark.TASK in ("vqa", "multiple_choice", "chat", "report")
    assert benchmark.SPLITS[0] == "test"
    assert benchmark.HUB_ID is None or "/" in benchmark.HUB_ID
    assert callable(benchmark.load_questions)
    assert callable(benchmark.count_differences)


def test_an_unknown_benchmark_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"must be one of vqa_rad, slake, .*phantoms.*, got 'vqa-rad'"):
        get_benchmark("vqa-rad")


@pytest.mark.network
@wrong_counts
def test_the_real_copy_on_the_hub_has_the_451_test_questions(monkeypatch):
    for proxy in (*PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(proxy)
    with clients_at("https://huggingface.co"):
        questions = load_questions("flaviagiammarino/vqa-rad")
    assert Counter(row["answer_type"] for row in questions) == {"CLOSED": 251, "OPEN": 200}
    assert len({row["image"] for row in questions}) == 203
