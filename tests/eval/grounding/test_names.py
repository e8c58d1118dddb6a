"""Tests of the names of boxed things, against a list of questions of SLAKE that a person read."""

import json
from pathlib import Path

import pytest

from logramed.eval.grounding.names import find_mentions, read_things, resolve_labels


SLAKE = Path(__file__).resolve().parents[4] / "shared" / "data" / "slake"
TUMORS = ["Brain Enhancing Tumor", "Brain Non-enhancing Tumor"]
LUNGS, KIDNEYS = ["Left Lung", "Right Lung"], ["Left Kidney", "Right Kidney"]
# What each question names, read question by question. The first 41 stand in SLAKE as they are.
READ = {
    "Does the picture contain liver?": ["Liver"],
    "Which is the liver?": ["Liver"],
    "What is the shape of liver in this image?": ["Liver"],
    "How many kidneys in this image?": KIDNEYS,
    "Which is the kidney?": KIDNEYS,
    "What color does the left kidney show in the picture?": ["Left Kidney"],
    "Where is the left kidney in this image, right or lower right?": ["Left Kidney"],
    "What color does the right lung show in the picture?": ["Right Lung"],
    "Is the lung healthy?": LUNGS,
    "Is/Are there abnormalities in the patient's left lung?": ["Left Lung"],
    "Which side of lung is abnormal in this image,left or right?": LUNGS,
    "How many lungs are shown in this image?": LUNGS,
    "What disease is/are shown on the left of lung?": ["Left Lung"],
    "What is the main cause of the disease on the lower right of the lung in the picture?": ["Right Lung"],
    "How to prevent the occurrence of the disease on the left lobe of lung in this image?": ["Left Lung"],
    "What kind of symptoms will the disease on the upper right lung bring to the patient?": ["Right Lung"],
    "Which is bigger in this image,left lung or left kidney?": ["Left Lung", "Left Kidney"],
    "Which is bigger in this image, liver or spleen?": ["Liver", "Spleen"],
    "Which is the smallest in this image,small bowel,right kidney or liver?": ["Small Bowel", "Right Kidney", "Liver"],
    "Which is smaller in this image,spleen or duodenum?": ["Spleen", "Duodenum"],
    "Does the patient have liver cancer?": ["Liver Cancer"],
    "Where is the brain tumor?": TUMORS,
    "Is the tumor enhancing?": TUMORS,
    "What color does the brain enhancing tumor show in the picture?": TUMORS[:1],
    "Where is the brain non-enhancing tumor?": TUMORS[1:],
    "Can brain edema be observed in the picture?": ["Brain Edema"],
    "Does the picture contain brain stem?": ["Brain Stem"],
    "How many temporal lobes in this image?": ["Left Temporal Lobe", "Right Temporal Lobe"],
    "What color does the left temporal lobe show in the picture?": ["Left Temporal Lobe"],
    "Does the picture contain spine cord?": ["Spinal Cord"],
    "What color are the teeth in the picture?": ["Tooth"],
    "Does the ears exist in this picture?": ["Left Ear", "Right Ear"],
    "Can pneumonia be observed on the lower right lung in this picture?": ["Pneumonia"],
    "Where is/are the pulmonary nodule located?": ["Nodule"],
    "Can pulmonary infiltration be observed on the upper right lung in this picture?": ["Infiltrate"],
    "What part of the chest is the cardiomegaly located in?": ["Cardiomegaly"],
    "Where is the pleural effusion in this image?": ["Effusion"],
    "What is the organ on the left of the right kidney?": [],  # a landmark: the liver is asked for
    "Does the humerus head exist in this picture?": [],
    "What is the largest organ in the picture?": [],
    "Do the organs in the image exist in the chest?": [],
    "Does the spleen appear in the image and how near is it?": ["Spleen"],  # "appear" and "near" hold "ear"
    "Is the patient's left or right femoral head broken?": ["Left Femoral Head", "Right Femoral Head"],
    "Are there masses in the large intestine?": ["Mass"],
}


@pytest.mark.parametrize("question", READ)
def test_a_question_names_what_a_reader_finds_in_it(question):
    assert [label for mention in find_mentions(question) for label in mention.labels] == READ[question]


def test_each_name_and_label_belongs_to_one_thing():
    names = [name for thing in read_things() for name in thing.names]
    assert len(set(names)) == len(names)
    for thing in read_things():
        assert all(name == name.lower() for name in thing.names)
        assert (
            len(thing.labels) == 1
            or thing.name == "brain tumor"
            or {label.split()[0] for label in thing.labels} == {"Left", "Right"}
        )


def test_everything_named_must_have_a_box_of_one_side_at_least():
    assert resolve_labels("Where are the lungs?", "Left", {"Left Lung"}) == ("lung", ("Left Lung",))
    assert resolve_labels("Where is the left lung?", "Left", {"Right Lung"}) is None
    assert resolve_labels("Is liver or spleen bigger?", "Liver", {"Liver"}) is None
    assert resolve_labels("Is liver or spleen bigger?", "Liver", {"Liver", "Spleen"}) == (
        "several",
        ("Liver", "Spleen"),
    )


def test_a_finding_that_is_not_where_it_is_looked_for_is_left_out():
    question, boxed = "Can mass be observed on the left lung?", {"Mass"}
    assert resolve_labels(question, "Yes", boxed) == ("mass", ("Mass",))
    assert resolve_labels(question, "No", boxed) is None
    assert resolve_labels("Can mass be observed on the left chest?", "No", boxed) is None
    assert resolve_labels("Is the tumor enhancing?", "No", {TUMORS[1]}) == ("brain tumor", (TUMORS[1],))


def test_both_tumors_count_in_one_group():
    assert resolve_labels("Where is the brain enhancing tumor?", "Left", set(TUMORS))[0] == "brain tumor"
    assert resolve_labels("Where is the brain tumor?", "Left", set(TUMORS)) == ("brain tumor", tuple(TUMORS))


@pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE files are not beside the repository")
def test_the_table_has_every_label_of_slake_and_the_read_questions_stand_there():
    boxes = json.loads((SLAKE / "boxes.json").read_text())
    labels = {box[0] for of_image in boxes.values() for box in of_image}
    assert {label for thing in read_things() for label in thing.labels} == labels
    rows = [row for name in ("train", "validate", "test") for row in json.loads((SLAKE / f"{name}.json").read_text())]
    assert set(list(READ)[:41]) <= {" ".join(row["question"].split()) for row in rows}


@pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE files are not beside the repository")
def test_so_many_questions_of_slake_count():
    boxes = json.loads((SLAKE / "boxes.json").read_text())
    labels = {image: {box[0] for box in of_image} for image, of_image in boxes.items()}
    counts = {}
    for name in ("test", "train", "validate"):
        rows = [row for row in json.loads((SLAKE / f"{name}.json").read_text()) if row["q_lang"] == "en"]
        found = [
            resolve_labels(row["question"], str(row["answer"]), labels.get(row["img_name"].split("/")[0], set()))
            for row in rows
        ]
        counts[name] = sum(one is not None for one in found)
    assert counts == {"test": 140, "train": 648, "validate": 133}
