import json
from pathlib import Path

import pytest
from PIL import Image

from logramed.eval.benchmarks import vqa_rad
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.sources import load_training_rows


VQA_RAD = Path(__file__).resolve().parents[4] / "shared" / "data" / "vqa_rad"


def question(qid, image="x.jpg", phrase_type="freeform", **changes):
    row = {"qid": qid, "image_name": image, "phrase_type": phrase_type, "question": f"Q{qid}? ", "answer": f"A{qid}"}
    return {**row, "answer_type": "CLOSED ", "image_organ": "HEAD", "question_type": "PRES", **changes}


def write_folder(folder, questions, extended):
    (folder / "images").mkdir()
    for name in ("x.jpg", "y.jpg"):
        Image.new("L", (8, 8)).save(folder / "images" / name)
    (folder / "trainset.json").write_text(json.dumps(questions))
    (folder / "extended_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in extended))
    return folder


def extension(qid, text=None):
    return {"qid": qid, "extended": text if text is not None else f"Long {qid}."}


def test_the_questions_of_an_image_become_turns_in_file_order(tmp_path):
    questions = [question(1), question(2, "y.jpg"), question(3, phrase_type="frame"), question(4, answer=4)]
    questions.append(question(5, phrase_type="para"))
    folder = write_folder(tmp_path, questions, [extension(qid) for qid in (5, 4, 2, 1)])
    rows = load_training_rows(folder)
    assert rows.dataset["id"][:] == ["x", "y"]
    contents = [[part["text"] for part in message["content"]] for message in rows.dataset[0]["messages"]]
    assert contents == [[None, "Q1?"], ["A1"], ["Q4?"], ["4"], ["Q5?"], ["A5"]]
    assert rows.dataset[0]["extended_answers"] == ["Long 1.", "Long 4.", "Long 5."]
    assert rows.dataset[0]["images"] == [str((folder / "images" / "x.jpg").resolve())]


BAD_FILES = {
    "missing extension": ([question(1), question(2)], [extension(1)], "2", "extended", "missing extended answer"),
    "empty extension": ([question(1)], [extension(1, " ")], "1", "extended", "empty answer"),
    "duplicated question": ([question(1), question(1)], [extension(1)], "1", "qid", "duplicated id, first at row 0"),
    "duplicated extension": ([question(1)], [extension(1)] * 2, "1", "qid", "duplicated id, first at line 1"),
    "empty answer": (
        [question(1), question(2, answer="")],
        [extension(1), extension(2)],
        "2",
        "answer",
        "empty answer",
    ),
    "placeholder in a question": (
        [question(1), question(2, question="<image> what?")],
        [extension(1), extension(2)],
        "2",
        "question",
        "holds <image>",
    ),
    "extension of a frame question": (
        [question(1), question(2, phrase_type="frame")],
        [extension(1), extension(2)],
        "2",
        "qid",
        "no such question of freeform or para",
    ),
    "missing image": (
        [question(1), question(2, "gone.jpg")],
        [extension(1), extension(2)],
        "2",
        "image_name",
        r"missing image: there is no file .*gone\.jpg",
    ),
}


@pytest.mark.parametrize(("questions", "extended", "row_id", "field", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_question_is_refused_with_its_place(tmp_path, questions, extended, row_id, field, reason):
    folder = write_folder(tmp_path, questions, extended)
    with pytest.raises(RowError, match=reason) as refusal:
        load_training_rows(folder)
    assert (refusal.value.row_id, refusal.value.field) == (row_id, field)
    assert refusal.value.file.startswith(str(folder))


def test_skipping_a_bad_question_keeps_the_others_of_its_image(tmp_path):
    folder = write_folder(
        tmp_path, [question(1), question(2, answer=None), question(3)], [extension(1), extension(2), extension(3)]
    )
    rows = load_training_rows(folder, on_bad_row="skip")
    assert [len(messages) for messages in rows.dataset["messages"]] == [4]
    assert rows.dataset[0]["extended_answers"] == ["Long 1.", "Long 3."]
    assert [(error.position, error.row_id, error.field) for error in rows.skipped] == [("row 1", "2", "answer")]


def test_without_alignment_the_file_of_extended_answers_is_not_needed(tmp_path):
    folder = write_folder(tmp_path, [question(1)], [])
    (folder / "extended_train.jsonl").unlink()
    assert load_training_rows(folder, require_extended=False).dataset[0]["extended_answers"] is None
    with pytest.raises(FileNotFoundError, match="extended_train"):
        load_training_rows(folder)


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason="the VQA-RAD files are not beside the repository")
def test_the_real_vqa_rad_gives_1797_turns_on_313_images():
    rows = load_training_rows(VQA_RAD)
    assert len(rows) == 313
    assert rows.skipped == []
    assert sum(len(messages) for messages in rows.dataset["messages"]) == 2 * 1797
    assert sum(len(answers) for answers in rows.dataset["extended_answers"]) == 1797
    texts = [
        part["text"] for messages in rows.dataset["messages"] for message in messages for part in message["content"]
    ]
    assert sum(text is None for text in texts) == 313
    assert "12" in texts


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason="the VQA-RAD files are not beside the repository")
def test_training_by_image_shares_no_image_with_validation_and_test():
    rows = {split: load_training_rows(VQA_RAD, split=split) for split in ("by_image_train", "by_image_validation")}
    assert {split: len(loaded) for split, loaded in rows.items()} == {"by_image_train": 219, "by_image_validation": 31}
    turns = {split: sum(map(len, loaded.dataset["messages"])) // 2 for split, loaded in rows.items()}
    assert turns == {"by_image_train": 1227, "by_image_validation": 196}
    ids = [set(loaded.dataset["id"]) for loaded in rows.values()]
    ids.append({Path(row["image"]).stem for row in vqa_rad.load_questions(VQA_RAD, "by_image_test")})
    assert sum(map(len, ids)) == len(set.union(*ids))
    with pytest.raises(ValueError, match="by_image_validation, got 'by_image_test'"):
        load_training_rows(VQA_RAD, split="by_image_test")
