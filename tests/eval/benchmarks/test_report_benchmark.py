"""Tests of the report loader on generated copies of its layouts."""

import json
import re
from pathlib import Path

import pytest

from logramed.eval.benchmarks import get_benchmark
from logramed.eval.benchmarks.indiana import draw_split, read_indiana
from logramed.eval.benchmarks.report import (
    EXPECTED_REPORTS,
    HUB_ID,
    count_differences,
    load_questions,
    write_question,
)
from tests.eval.benchmarks.conftest import write_image, write_json, write_zip


pytestmark = pytest.mark.filterwarnings("ignore:This report (test|validation|train) split has")
QUESTION = "Write the findings of a radiology report on this image."
IDS = ("CXR1_IM-0001", "CXR2_IM-0002-1001", "CXR3_IM-0003")


def r2gen_row(row_id: str, split: str, num_images: int = 2) -> dict:
    images = [f"{row_id}/{number}.png" for number in range(num_images)]
    return {"id": row_id, "report": f"No effusion in {row_id}. ", "image_path": images, "split": split}


@pytest.fixture
def iu_xray(tmp_path) -> Path:
    """R2Gen's `annotation.json`: several images per report, the validation split called "val"."""
    folder = tmp_path / "iu_xray"
    splits = {"train": [r2gen_row(IDS[0], "train")], "val": [r2gen_row(IDS[1], "val")]}
    write_json(
        folder / "annotation.json", splits | {"test": [r2gen_row(IDS[2], "test"), r2gen_row(IDS[0], "test", 1)]}
    )
    for seed, row_id in enumerate(IDS):
        for number in range(2):
            write_image(folder / "images" / row_id / f"{number}.png", seed)
    return folder


def test_rows_of_r2gens_file_become_question_rows_about_all_their_images(iu_xray):
    questions = load_questions(iu_xray)
    assert questions[0] == {
        "question_id": "CXR3_IM-0003",
        "images": [str(iu_xray / "images" / "CXR3_IM-0003" / f"{number}.png") for number in range(2)],
        "question": write_question(None, 2),
        "answer": "No effusion in CXR3_IM-0003.",
        "num_images": 2,
        "groups": {},
    }
    assert questions[1] == {
        "question_id": questions[1]["question_id"],
        "image": str(iu_xray / "images" / questions[1]["question_id"] / "0.png"),
        "question": QUESTION,
        "answer": f"No effusion in {questions[1]['question_id']}.",
        "num_images": 1,
        "groups": {},
    }
    assert "<image>" not in QUESTION + write_question(None, 2)
    assert load_questions(iu_xray / "annotation.json") == questions


def test_the_validation_split_is_called_val_in_the_file(iu_xray):
    assert [row["question_id"] for row in load_questions(iu_xray, "validation")] == [IDS[1]]


def test_another_number_of_reports_is_named(iu_xray):
    words = "has 2 questions instead of 590 (IU X-Ray): its figures are not comparable"
    with pytest.warns(UserWarning, match=re.escape(words)):
        load_questions(iu_xray)


def test_known_sizes_are_told_by_the_images_paths():
    def rows(image: str, number: int) -> list[dict]:
        return [{"image": image, "num_images": 1}] * number

    mimic = "/data/images/p10/p10000032/s50414267/02aa804e.jpg"
    assert count_differences(rows("/data/CXR1_IM-0001/0.png", 590), "test") == []
    assert count_differences(rows(mimic, 3858), "test") == []
    assert count_differences(rows(mimic, 3857), "test") == ["3,857 questions instead of 3,858 (MIMIC-CXR)"]
    assert count_differences(rows("/data/own.png", 7), "test") == []
    assert EXPECTED_REPORTS["IU X-Ray"]["validation"] == 296


def test_a_study_with_two_rows_in_mimic_cxr_is_two_reports(tmp_path):
    study = "p10/p10000032/s50414267"
    rows = [
        {
            "id": name,
            "study_id": 50414267,
            "subject_id": 10000032,
            "image_path": [f"{study}/{name}.jpg"],
            "split": "test",
        }
        | {"report": "FINAL REPORT\n EXAMINATION: chest.\n No\n effusion."}
        for name in ("02aa804e", "174413ec")
    ]
    write_json(tmp_path / "annotation.json", {"train": [], "val": [], "test": rows})
    for name in ("02aa804e", "174413ec"):
        write_image(tmp_path / "images" / study / f"{name}.jpg")
    assert [row["question_id"] for row in load_questions(tmp_path)] == ["02aa804e", "174413ec"]


def test_the_copy_on_the_hub_is_read_with_its_archive(local_hub, cache, tmp_path):
    """Rows name images under another folder than the archive holds them."""
    repository = local_hub.repository(HUB_ID)
    image = write_image(tmp_path / "0.png").read_bytes()
    rows = [
        {
            "query": "<image><image>Describe.",
            "response": f"Report {row_id}.",
            "images": [f"/iu_xray/image/{row_id}/0.png"] * 2,
        }
        for row_id in IDS
    ]
    for name in ("train", "val", "test"):
        (repository / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_zip(repository / "image.zip", {f"home/x/iu_xray/images/{row_id}/0.png": image for row_id in IDS})
    questions = load_questions(HUB_ID, "validation")
    assert [row["answer"] for row in questions] == [f"Report {row_id}." for row_id in IDS]
    assert [row["question_id"] for row in questions] == ["0", "1", "2"]  # the rows have no ids
    assert len(questions[0]["images"]) == 2
    assert all(Path(path).read_bytes() == image for path in questions[0]["images"])
    assert all(Path(path).is_relative_to(cache) for path in questions[0]["images"])
    assert not (tmp_path / "hub" / "snapshots" / HUB_ID / "train.jsonl").exists()


@pytest.mark.filterwarnings("error")
def test_tables_of_ones_own_are_read_in_three_forms(tmp_path):
    rows = [{"image": "a.png", "report": "No effusion, no mass.\nClear."}, {"image": "a.png", "report": "Edema."}]
    text = 'image,report\na.png,"No effusion, no mass.\nClear."\na.png,Edema.\n'
    write_json(tmp_path / "json" / "test.json", rows)
    for name in ("json", "jsonl", "csv"):
        write_image(tmp_path / name / "images" / "a.png")
    (tmp_path / "jsonl" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "csv" / "test.csv").write_text("\ufeff" + text, encoding="utf-8")
    for name in ("json", "jsonl", "csv"):
        questions = load_questions(tmp_path / name)
        assert [row["answer"] for row in questions] == ["No effusion, no mass.\nClear.", "Edema."], name
        assert [row["question_id"] for row in questions] == ["0", "1"]


def test_a_table_with_a_split_column_gives_the_rows_of_the_split(tmp_path):
    (tmp_path / "reports.csv").write_text(
        "id,image,report,split\n1,a.png,Edema.,train\n2,a.png,Mass.,Test \n3,a.png,Clear.,val\n"
    )
    write_image(tmp_path / "a.png")
    assert [row["question_id"] for row in load_questions(tmp_path)] == ["2"]
    assert [row["question_id"] for row in load_questions(tmp_path, "validation")] == ["3"]
    (tmp_path / "reports.csv").write_text("image,report,split\na.png,Edema.,dev\n")
    with pytest.raises(ValueError, match=r"reports\.csv holds no row with `split` 'test'; it has dev"):
        load_questions(tmp_path)


def test_ids_that_occur_more_than_once_are_numbered(tmp_path):
    write_json(tmp_path / "test.json", [{"id": 1, "image": "a.png", "report": "Edema."}] * 2)
    write_image(tmp_path / "a.png")
    assert [row["question_id"] for row in load_questions(tmp_path)] == ["1-1", "1-2"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "a.png"}, r"test\.json, row 1 has no `report`"),
        ({"image": "a.png", "report": " \n"}, r"row 1, `report` is empty"),
        ({"report": "Edema."}, r"row 1 has no image: expected one of image_path, images, image"),
        ({"image_path": [], "report": "Edema."}, r"row 1 has no image"),
        (
            {"image_path": [1], "report": "Edema."},
            r"row 1, `image_path`: expected a path or a list of paths, got \[1\]",
        ),
        ({"image": "gone.png", "report": "Edema."}, r"row 1, `image`: .*gone\.png is missing"),
        ({"image": "../a.png", "report": "Edema."}, r"row 1, `image`: expected a path that stays in"),
        ({"id": [1], "image": "a.png", "report": "Edema."}, r"row 1, `id`: expected a text, got \[1\]"),
    ],
)
def test_bad_rows_are_refused_by_file_row_and_field(tmp_path, row, words):
    write_json(tmp_path / "test.json", [{"image": "a.png", "report": "Clear."}, row])
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=words):
        load_questions(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("annotation.json", "{", r"annotation\.json is not JSON"),
        ("annotation.json", '{"train": []}', r"annotation\.json has no test; it has train"),
        ("annotation.json", '{"test": [1]}', r"annotation\.json, test, row 0: expected an object"),
        ("annotation.json", '{"test": []}', r"annotation\.json holds no report of the test split"),
        ("test.csv", "image,report\n", r"test\.csv holds no report of the test split"),
        ("test.jsonl", "{", r"test\.jsonl, line 1 is not JSON"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        load_questions(tmp_path)


def test_unknown_splits_subsets_and_folders_are_refused(tmp_path, iu_xray):
    with pytest.raises(ValueError, match="must be one of test, train, validation, got 'val'"):
        load_questions(iu_xray, "val")
    with pytest.raises(
        ValueError, match="`subset` of report must be one of findings, impression, both, got 'iu_xray'"
    ):
        load_questions(iu_xray, subset="iu_xray")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`data` holds no annotation\.json \(nor"):
        load_questions(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"the folder with the files of report, or a Hub id such as dz-osamu/IU-Xray"):
        load_questions("nowhere")


def test_the_register_knows_the_benchmark():
    assert get_benchmark("report").TASK == "report"


def write_indiana(folder: Path, uids=range(1, 31), **changes) -> Path:
    """Kaggle's tables: two images a study, the lateral one first; study 2 has no impression, 3 no findings."""
    reports = ["uid,MeSH,Problems,image,indication,comparison,findings,impression"]
    projections = ["uid,filename,projection"]
    for uid in uids:
        findings = "" if uid == 3 else f"The heart of {uid} is large, with XXXX."
        impression = "" if uid == 2 else f"Cardiomegaly {uid}."
        reports.append(f'{uid},normal,normal,Xray,,,"{findings}",{impression}')
        for number, projection in ((2001, "Lateral"), (1001, "Frontal")):
            projections.append(f"{uid},{uid}_IM-{number}.dcm.png,{projection}")
            write_image(folder / "images" / "images_normalized" / f"{uid}_IM-{number}.dcm.png", uid)
    (folder / "indiana_reports.csv").write_text("\n".join(reports) + "\n")
    (folder / "indiana_projections.csv").write_text("\n".join(projections) + "\n")
    return folder


@pytest.mark.filterwarnings("ignore:1 of .* left out")
def test_kaggles_tables_give_studies_with_the_frontal_image_first(tmp_path):
    folder = write_indiana(tmp_path)
    records = [record for _, record in read_indiana(folder / "indiana_reports.csv")]
    assert records[0] == {
        "id": "1",
        "image_path": ["1_IM-1001.dcm.png", "1_IM-2001.dcm.png"],
        "findings": "The heart of 1 is large, with XXXX.",
        "impression": "Cardiomegaly 1.",
        "split": draw_split("1"),
    }
    read = {split: load_questions(folder, split, "impression") for split in ("train", "validation", "test")}
    ids = [row["question_id"] for rows in read.values() for row in rows]
    assert sorted(ids, key=int) == [str(uid) for uid in range(1, 31) if uid != 2]
    assert len(read["train"]) > len(read["test"]) > 0
    question = read["train"][0]
    names = [Path(image).relative_to(folder / "images" / "images_normalized").name for image in question["images"]]
    assert names == ["1_IM-1001.dcm.png", "1_IM-2001.dcm.png"]
    assert question["question"] == "Write the impression of a radiology report on these images."
    assert (question["answer"], question["num_images"]) == ("Cardiomegaly 1.", 2)
    assert question["section"] == "impression"


def test_the_split_of_a_study_is_drawn_by_its_uid_in_the_shares_of_r2gen(monkeypatch):
    drawn = [draw_split(str(uid)) for uid in range(4000)]
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert drawn.count(split) / 4000 == pytest.approx(share, abs=0.02)
    monkeypatch.setattr("logramed.eval.benchmarks.indiana.SEED", 7)
    assert [draw_split(str(uid)) for uid in range(4000)] != drawn


def test_studies_without_the_section_are_left_out_and_counted(tmp_path):
    folder = write_indiana(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of \d+ reports of the train split are left out: they have no findings\."):
        findings = load_questions(folder, draw_split("3"))
    assert "3" not in [row["question_id"] for row in findings]
    with pytest.warns(UserWarning, match="they have no findings and impression"):
        both = load_questions(folder, "train", "both")
    assert not {"2", "3"} & {row["question_id"] for row in both}
    assert both[0]["answer"] == "Findings: The heart of 1 is large, with XXXX.\nImpression: Cardiomegaly 1."
    assert both[0]["question"] == "Write the findings and impression of a radiology report on these images."


def test_sections_of_whole_reports_are_found_by_their_headings(tmp_path):
    report = "FINAL REPORT\n INDICATION: Cough.\n FINDINGS: Clear.\n IMPRESSION:\n No pneumonia."
    rows = [{"id": 1, "image": "a.png", "report": report}, {"id": 2, "image": "a.png", "report": "No effusion."}]
    write_json(tmp_path / "test.json", rows)
    write_image(tmp_path / "images" / "a.png")
    assert [row["answer"] for row in load_questions(tmp_path)] == [report, "No effusion."]
    assert [row["answer"] for row in load_questions(tmp_path, subset="findings")] == ["Clear.", "No effusion."]
    with pytest.warns(UserWarning, match="1 of 2 reports of the test split are left out: they have no impression"):
        assert [row["answer"] for row in load_questions(tmp_path, subset="impression")] == ["No pneumonia."]
    write_json(tmp_path / "test.json", rows[1:])
    with (
        pytest.warns(UserWarning, match="1 of 1"),
        pytest.raises(ValueError, match=r"holds no report of the test split with findings and impression\."),
    ):
        load_questions(tmp_path, subset="both")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("indiana_reports.csv", "uid,findings,impression\n1,a,b\n1,a,b\n", r"line 3, `uid`: 1 is already .*line 2"),
        ("indiana_reports.csv", "uid,findings\n1,Clear.\n", r"indiana_reports\.csv has no column impression; it has"),
        ("indiana_reports.csv", "uid,findings,impression\n,a,b\n", r"line 2, `uid` is empty"),
        ("indiana_projections.csv", "uid,filename,projection\n1,,Frontal\n", r"line 2, `filename` is empty"),
        ("indiana_projections.csv", None, r".*indiana_projections\.csv is missing"),
    ],
)
def test_bad_tables_of_kaggle_are_refused_by_file_and_line(tmp_path, name, text, words):
    folder = write_indiana(tmp_path, range(1, 3))
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        load_questions(folder)
