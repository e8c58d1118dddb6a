"""Rows without an image, and questions without words, where alignment makes nodes of images and turns."""

import json
import math

import pytest
import torch

from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.data import load_training_rows
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.data.rows import RowError
from logramed.trainer.engines.devices import check_engine
from logramed.trainer.train import main
from tests.tiny import tiny_processor
from tests.trainer.test_train import write_recipe


@pytest.fixture
def mixed_file(data_file):
    """Row 2 has no image and no extended answers."""
    return leave_image_out(data_file, 2)


def leave_image_out(data_file, number):
    rows = json.loads(data_file.read_text())
    for key in ("image", "conversations_long"):
        del rows[number][key]
    rows[number]["conversations"][0]["value"] = rows[number]["conversations"][0]["value"].replace("<image>\n", "")
    data_file.write_text(json.dumps(rows))
    return data_file


@pytest.fixture
def wordless_file(data_file):
    """The second question of row 5 has no words: it is an image alone."""
    rows = json.loads(data_file.read_text())
    for key in ("conversations", "conversations_long"):
        turns = rows[5][key]
        turns[0]["value"] = turns[0]["value"].replace("<image>\n", "")
        turns[2]["value"] = "<image>"
    data_file.write_text(json.dumps(rows))
    return data_file


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_row_without_an_image_is_refused_where_it_is_read(tmp_path, mixed_file, dry_run):
    words = r"row 2 \(id '2'\), field `image`: no image, which alignment needs; `--rows_without_image language_only`"
    with pytest.raises(RowError, match=words):
        main([write_recipe(tmp_path, mixed_file), "--dry_run", str(dry_run)])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_it_is_listed_where_bad_rows_are_skipped(tmp_path, mixed_file):
    main([write_recipe(tmp_path, mixed_file, on_bad_row="skip")])
    [line] = (tmp_path / "run" / "skipped_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["row_id"] == "2"


@pytest.mark.parametrize("granularity", ["sample", "turn", "span"])
def test_it_is_trained_on_language_alone(tmp_path, mixed_file, granularity):
    options = {"rows_without_image": "language_only", "alignment_granularity": granularity, "num_train_epochs": 1}
    main([write_recipe(tmp_path, mixed_file, max_steps=-1, per_device_train_batch_size=2, **options)])
    log = json.loads((tmp_path / "run" / "train_metrics.json").read_text())["log_history"]
    assert sum("alignment_loss" in entry for entry in log) == 4
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)


def test_the_first_row_does_not_decide_about_the_others(tmp_path, data_file, capsys):
    options = {"rows_without_image": "language_only", "alignment_granularity": "span"}
    main([write_recipe(tmp_path, leave_image_out(data_file, 0), alignment_texts="answer_and_extended", **options)])
    assert json.loads((tmp_path / "run" / "run.json").read_text())
    other = tmp_path / "sample"
    main([write_recipe(tmp_path, data_file, rows_without_image="language_only", output_dir=str(other))])
    assert "The rows have no extended answers" not in capsys.readouterr().err


def test_batches_without_any_image_are_plain_training(tmp_path, mixed_file):
    options = {"rows_without_image": "language_only", "num_train_epochs": 1}
    main([write_recipe(tmp_path, mixed_file, max_steps=-1, per_device_train_batch_size=1, **options)])
    log = json.loads((tmp_path / "run" / "train_metrics.json").read_text())["log_history"]
    assert sum("loss" in entry for entry in log) == 8


def test_without_alignment_such_rows_train_as_ever(tmp_path, mixed_file):
    main([write_recipe(tmp_path, mixed_file, alignment_weight=0)])
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("granularity", ["sample", "turn"])
def test_nodes_of_a_mixed_batch_are_those_of_its_rows_with_images(mixed_file, granularity):
    rows = [*load_training_rows(mixed_file, require_extended=False).dataset]
    config = AlignmentConfig(
        alignment_preset="paper", rows_without_image="language_only", alignment_granularity=granularity
    )
    collator = LoGraMedDataCollator(tiny_processor(), config=config)
    mixed, alone = collator(rows[1:4]), collator([rows[1], rows[3]])
    length = alone["input_ids"].shape[1]
    assert mixed["input_ids"].shape[1] == length  # the row without an image is no longer
    for name, values in alone["nodes"].items():
        if name in ("image_places", "answer_places"):  # those of the second row lie one row further
            values = values + length * (values >= length)
        assert torch.equal(mixed["nodes"][name], values), name


@pytest.mark.parametrize("streaming", [False, True])
def test_a_question_without_words_is_refused_for_nodes_that_are_turns(tmp_path, wordless_file, streaming):
    words = "`conversations.3..value`: its question has no words, which alignment of turns needs"
    options = {"streaming": True} if streaming else {}
    with pytest.raises(RowError, match=words):
        main([write_recipe(tmp_path, wordless_file, alignment_granularity="turn", **options)])
    if not streaming:
        main([write_recipe(tmp_path, wordless_file, alignment_granularity="turn", on_bad_row="skip")])
        assert (tmp_path / "run" / "skipped_rows.jsonl").is_file()
        main([write_recipe(tmp_path, wordless_file, alignment_granularity="sample", output_dir=str(tmp_path / "b"))])


def test_a_stream_refuses_a_row_without_an_image_too(tmp_path, mixed_file):
    with pytest.raises(RowError, match="field `image`: no image"):
        main([write_recipe(tmp_path, mixed_file, streaming=True, max_steps=6)])


def test_language_alone_is_for_one_process_and_graphs_of_a_batch():
    class Accelerator:
        num_processes = 2

    arguments = LoGraMedTrainingArguments(alignment_preset="paper", rows_without_image="language_only", use_cpu=True)
    with pytest.raises(ValueError, match="does not work with several processes"):
        check_engine(arguments, Accelerator)
    Accelerator.num_processes = 1
    arguments = LoGraMedTrainingArguments(
        alignment_preset="paper", rows_without_image="language_only", accumulate_graph=True, use_cpu=True
    )
    with pytest.raises(ValueError, match="does not work with `accumulate_graph`"):
        check_engine(arguments, Accelerator)
