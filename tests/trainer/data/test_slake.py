"""SLAKE's own folder as training data."""

import json
from pathlib import Path

import pytest
from PIL import Image

from logramed.trainer.data import subsets
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.run_data import load_rows
from logramed.trainer.data.sources import load_training_rows
from logramed.trainer.data.subsets import Subset, draw_subsets, select_listed
from logramed.trainer.train import main, parse_arguments
from tests.trainer.test_train import write_recipe


SLAKE = Path(__file__).resolve().parents[4] / "shared" / "data" / "slake"
needs_slake = pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE files are not beside the repository")


SKIPPED = {"skipped_rows.jsonl": 1, "skipped_rows_validation.jsonl": 10}


def question(qid, image=1, q_lang="en", **changes):
    row = {"qid": qid, "img_name": f"xmlab{image}/source.jpg", "q_lang": q_lang, "answer_type": "OPEN"}
    return {**row, "question": f"Q{qid}?", "answer": f"A{qid}", **changes}


def write_folder(folder, train, validation=(), extended=()):
    for number in (1, 2):
        (folder / "imgs" / f"xmlab{number}").mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "imgs" / f"xmlab{number}" / "source.jpg")
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "validate.json").write_text(json.dumps(validation))
    (folder / "extended.jsonl").write_text(
        "".join(json.dumps({"qid": qid, "extended": f"Long {qid}."}) + "\n" for qid in extended)
    )
    return folder


def test_the_english_questions_of_an_image_become_turns(tmp_path):
    train = [question(1), question(2, 2), question(3, q_lang="zh"), question(4, answer=4)]
    folder = write_folder(tmp_path, train, [question(5, 2)], [5, 4, 2, 1])
    rows = load_training_rows(folder).dataset
    assert rows["id"][:] == ["xmlab1", "xmlab2"]
    contents = [[part["text"] for part in message["content"]] for message in rows[0]["messages"]]
    assert contents == [[None, "Q1?"], ["A1"], ["Q4?"], ["4"]]
    assert rows["extended_answers"][:] == [["Long 1.", "Long 4."], ["Long 2."]]
    assert rows[0]["images"] == [str((folder / "imgs" / "xmlab1" / "source.jpg").resolve())]
    assert load_training_rows(folder, split="validation").dataset["extended_answers"][:] == [["Long 5."]]


def test_folds_are_of_both_files_and_share_no_image(tmp_path):
    train, validation = [question(1), question(2, 2)], [question(5, 2)]
    folder = write_folder(tmp_path, train, validation, [1, 2, 5])
    # xmlab1 is in fold 0 and xmlab2 in fold 3 (`logramed.eval.benchmarks.folds`).
    assert load_training_rows(folder, split="fold_0").dataset["id"][:] == ["xmlab1"]
    rest = load_training_rows(folder, split="without_fold_0").dataset
    assert rest["id"][:] == ["xmlab2"]
    assert rest["extended_answers"][:] == [["Long 2.", "Long 5."]]


@needs_slake
def test_every_image_of_slake_is_held_out_once():
    options = {"on_bad_row": "skip", "check_images": False}
    held_out = [load_training_rows(SLAKE, split=f"fold_{fold}", **options).dataset["id"][:] for fold in range(5)]
    assert sum(map(len, held_out)) == len({image for images in held_out for image in images}) == 450 + 95
    rest = load_training_rows(SLAKE, split="without_fold_2", **options).dataset["id"][:]
    assert len(rest) == 545 - len(held_out[2])
    assert not set(rest) & set(held_out[2])


def test_training_rows_alone_are_enough(tmp_path):
    folder = write_folder(tmp_path, [question(1)], extended=[1, 5])
    with pytest.raises(RowError, match=r"no such question of en in train\.json or validate\.json"):
        load_training_rows(folder)
    (folder / "validate.json").unlink()  # 5 may have been in it
    assert load_training_rows(folder).dataset["id"][:] == ["xmlab1"]


def test_the_test_split_is_not_trained_on(tmp_path):
    folder = write_folder(tmp_path, [question(1)], extended=[1])
    with pytest.raises(ValueError, match=r"their splits are train, validation, fold_0, .*, got 'test'"):
        load_training_rows(folder, split="test")
    with pytest.raises(ValueError, match=r"take no `extended`: it is extended\.jsonl"):
        load_training_rows(folder, extended=folder / "extended.jsonl")


@pytest.mark.parametrize("argument", ["validation_data", "dataset_name"])
def test_the_same_folder_is_evaluated_on_its_other_split(tmp_path, argument):
    folder = write_folder(tmp_path, [question(1), question(2, 2)], [question(5, 2)], [1, 2, 5])
    source = {"validation_data": str(folder)} if argument == "validation_data" else {"train_data": None}
    source |= {"dataset_name": str(folder)} if argument == "dataset_name" else {}
    recipe = write_recipe(tmp_path, folder, **source, dataset_test_split="validation", eval_strategy="epoch")
    _, data, training = parse_arguments([recipe])
    train, validation = load_rows(data, training, {})
    assert (train["id"][:], validation["id"][:]) == (["xmlab1", "xmlab2"], ["xmlab2"])
    assert validation["extended_answers"][:] == [["Long 5."]]


def test_a_bad_row_is_named_once_and_others_of_its_image_stay(tmp_path):
    train = [question(1), question(2, answer=""), question(3, 7)]
    folder = write_folder(tmp_path, train, extended=[1, 3])
    with pytest.raises(RowError, match=r"row 1 \(id '2'\), field `answer`: empty answer"):
        load_training_rows(folder)
    rows = load_training_rows(folder, on_bad_row="skip")
    assert [(error.row_id, error.field) for error in rows.skipped] == [("2", "answer"), ("3", "img_name")]
    assert rows.dataset["extended_answers"][:] == [["Long 1."]]


@needs_slake
@pytest.mark.parametrize(
    ("split", "num_images", "num_questions", "skipped"),
    [("train", 450, 4918, ["1622"]), ("validation", 95, 1043, [str(qid) for qid in range(9835, 9845)])],
)
@pytest.mark.parametrize("require_extended", [True, False])
def test_the_real_slake_gives_all_english_questions_but_the_bad_ones(
    split, num_images, num_questions, skipped, require_extended
):
    rows = load_training_rows(SLAKE, split=split, require_extended=require_extended, on_bad_row="skip")
    assert len(rows) == num_images
    assert sum(len(messages) for messages in rows.dataset["messages"]) == 2 * num_questions
    assert [error.row_id for error in rows.skipped] == skipped
    if require_extended:
        assert sum(len(answers) for answers in rows.dataset["extended_answers"]) == num_questions


@needs_slake
def test_shares_of_the_images_of_the_real_slake_lie_in_each_other(tmp_path, capsys):
    options = ["--on_bad_row", "skip", "--seed", "3", "--output", str(tmp_path)]
    for share in ("0.4", "0.1", "1"):  # each drawn for itself
        assert subsets.main([str(SLAKE), "--share", share, *options]) == 0
    lists = [list(Subset.read(tmp_path / f"slake_{share}percent.json").ids) for share in (10, 40, 100)]
    assert [len(ids) for ids in lists] == [45, 180, 450]
    assert set(lists[0]) < set(lists[1]) < set(lists[2])
    assert lists[1] == lists[2][:180]
    other = draw_subsets(SLAKE, [0.1], seed=4, on_bad_row="skip")[0]
    assert set(other.ids) != set(lists[0])
    rows = load_training_rows(SLAKE, on_bad_row="skip")
    assert set(select_listed(rows, tmp_path / "slake_10percent.json")["id"]) == set(lists[0])
    with pytest.raises(RowError, match="1622"):
        draw_subsets(SLAKE, [0.1], seed=3)


@needs_slake
def test_a_tenth_of_the_real_slake_trains_aligned_and_is_evaluated_on_its_validation_split(tmp_path, capsys):
    (share,) = draw_subsets(SLAKE, [0.1], seed=3, on_bad_row="skip")
    share.write(tmp_path / "tenth.json")
    recipe = write_recipe(
        tmp_path,
        SLAKE,
        validation_data=str(SLAKE),
        dataset_test_split="validation",
        train_ids=str(tmp_path / "tenth.json"),
        on_bad_row="skip",
        max_steps=1,
        max_validation_questions=8,
    )
    assert main([recipe, "--dry_run", "true"]) == 0
    assert "Data: 45 rows. Trained" in capsys.readouterr().out
    assert main([recipe]) == 0
    run = tmp_path / "run"
    results = json.loads((run / "train_metrics.json").read_text())
    assert results["num_train_samples"] == 45
    assert results["log_history"][0]["alignment_loss"] > 0
    assert 0 <= results["metrics"]["eval_recall_at_1_image_to_answer"] <= 1
    skipped = {name: (run / name).read_text().splitlines() for name in SKIPPED}
    assert {name: len(lines) for name, lines in skipped.items()} == SKIPPED
    assert json.loads(skipped["skipped_rows.jsonl"][0])["row_id"] == "1622"
