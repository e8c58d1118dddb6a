"""Folders of radiology reports as training data."""

import json

import pytest
from PIL import Image

from logramed.eval.benchmarks.indiana import draw_split
from logramed.eval.benchmarks.report import load_questions
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.run_data import load_rows
from logramed.trainer.data.sources import load_training_rows
from logramed.trainer.train import parse_arguments
from tests.trainer.test_train import write_recipe


PLAIN = {"require_extended": False}


def write_images(folder, names):
    for name in names:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)


def row(number, num_images=2, report="FINDINGS: Clear. IMPRESSION: Normal.", **changes):
    names = [f"CXR{number}_IM-1/{place}.png" for place in range(num_images)]
    return {"id": f"CXR{number}_IM-1", "report": report, "image_path": names, **changes}


@pytest.fixture
def r2gen(tmp_path):
    folder = tmp_path / "iu_xray"
    rows = {"train": [row(1), row(2, 1, "No effusion.")], "val": [row(3)], "test": [row(4)]}
    write_images(folder, [name for of_split in rows.values() for found in of_split for name in found["image_path"]])
    (folder / "annotation.json").write_text(json.dumps(rows))
    return folder


def texts_of(found):
    return [[part["text"] for part in message["content"] if part["type"] == "text"] for message in found["messages"]]


def test_r2gens_reports_become_rows_with_all_images(r2gen):
    rows = load_training_rows(r2gen, **PLAIN).dataset
    assert rows["id"][:] == ["CXR1_IM-1", "CXR2_IM-1"]
    assert rows[0]["images"] == [str(r2gen / "images" / "CXR1_IM-1" / f"{place}.png") for place in range(2)]
    assert [part["type"] for part in rows[0]["messages"][0]["content"]] == ["image", "image", "text"]
    assert texts_of(rows[0]) == [
        ["Write the findings of a radiology report on these images."],
        ["FINDINGS: Clear. IMPRESSION: Normal."],
    ]
    assert texts_of(rows[1])[0] == ["Write the findings of a radiology report on this image."]
    assert load_training_rows(r2gen, split="validation", **PLAIN).dataset["id"][:] == ["CXR3_IM-1"]


@pytest.mark.filterwarnings("ignore:.*reports of the train split are left out")
@pytest.mark.parametrize(
    ("section", "answers"),
    [
        ("findings", ["Clear.", "No effusion."]),
        ("impression", ["Normal."]),
        ("both", ["Findings: Clear.\nImpression: Normal."]),
    ],
)
def test_a_section_is_asked_for_and_answered_alone(r2gen, section, answers):
    rows = load_training_rows(r2gen, report_section=section, **PLAIN).dataset
    assert [texts_of(found)[1][0] for found in rows] == answers


@pytest.mark.filterwarnings("ignore:This report")
def test_training_and_the_benchmark_read_the_same_text(r2gen):
    (question,) = load_questions(r2gen, "validation", "both")
    rows = load_training_rows(r2gen, split="validation", report_section="both", **PLAIN).dataset
    assert texts_of(rows[0])[1] == [question["answer"]]
    assert texts_of(rows[0])[0] == [question["question"]]
    assert rows[0]["images"] == question["images"]


def test_kaggles_tables_are_read_by_their_split(tmp_path):
    reports, projections = "uid,findings,impression\n", "uid,filename,projection\n"
    for uid in range(1, 9):
        reports += f"{uid},Clear {uid}.,Normal {uid}.\n"
        projections += f"{uid},{uid}_b.png,Lateral\n{uid},{uid}_a.png,Frontal\n"
        write_images(tmp_path, [f"images_normalized/{uid}_{side}.png" for side in "ab"])
    (tmp_path / "indiana_reports.csv").write_text(reports)
    (tmp_path / "indiana_projections.csv").write_text(projections)
    rows = load_training_rows(tmp_path, report_section="impression", **PLAIN).dataset
    assert rows["id"][:] == [str(uid) for uid in range(1, 9) if draw_split(str(uid)) == "train"]
    assert texts_of(rows[0])[1] == ["Normal 1."]
    folder = tmp_path / "images" / "images_normalized"
    assert rows[0]["images"] == [str(folder / f"1_{side}.png") for side in "ab"]


def test_bad_reports_are_refused_or_listed(r2gen):
    content = json.loads((r2gen / "annotation.json").read_text())
    content["train"] += [row(5, report=" "), row(6)]  # the images of the last one are missing
    (r2gen / "annotation.json").write_text(json.dumps(content))
    with pytest.raises(RowError, match=r"annotation\.json, train, row 2, `report` is empty"):
        load_training_rows(r2gen, **PLAIN)
    rows = load_training_rows(r2gen, on_bad_row="skip", **PLAIN)
    assert len(rows.dataset) == 2
    assert [error.position for error in rows.skipped] == ["split train", "train, row 3"]
    assert "missing image" in str(rows.skipped[1])


def test_sections_of_anything_else_and_unknown_sections_are_refused(r2gen, tmp_path):
    with pytest.raises(ValueError, match="`report_section` must be one of findings, impression, both, got 'all'"):
        load_training_rows(r2gen, report_section="all", **PLAIN)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is for folders with annotation\.json or .*, got .*rows\.json"):
        load_training_rows(tmp_path / "rows.json", report_section="both", **PLAIN)
    with pytest.raises(RowError, match="missing extended answers"):
        load_training_rows(r2gen)


def test_the_command_takes_a_section(r2gen, tmp_path):
    options = ["--alignment_weight", "0", "--report_section", "both", "--validation_data", str(r2gen)]
    options += ["--dataset_test_split", "validation", "--on_bad_row", "skip"]
    recipe = write_recipe(tmp_path, r2gen)
    _, data, training = parse_arguments([str(recipe), *options])
    with pytest.warns(UserWarning, match="1 of 2 reports of the train split"):
        train, validation = load_rows(data, training, {})
    assert [texts_of(found)[1] for found in train] == [["Findings: Clear.\nImpression: Normal."]]
    assert validation["id"][:] == ["CXR3_IM-1"]
