import io
import itertools
import json
import tarfile
from pathlib import Path

import pytest

from logramed.trainer import train
from logramed.trainer.alignment import AlignmentConfig
from logramed.trainer.data.collator import LoGraMedDataCollator
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.run_data import read_data
from logramed.trainer.data.streaming import open_stream
from tests.benchmarks import kill_resume
from tests.tiny import tiny_processor
from tests.trainer.test_train import write_recipe


def write_shards(folder, data_file, num_shards=2, broken=None):
    """The rows of `data_file` as WebDataset shards."""
    folder.mkdir()
    rows = json.loads(data_file.read_text())
    for number in range(num_shards):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as shard:
            for row in rows[number::num_shards]:
                image = (data_file.parent / "images" / row["image"]).read_bytes()
                parts = {"json": json.dumps(row).encode(), "png": b"broken" if row["id"] == broken else image}
                for suffix, content in parts.items():
                    entry = tarfile.TarInfo(f"sample{row['id']}.{suffix}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
    return folder


def ids(stream, number):
    return [row["id"] for row in itertools.islice(stream, number)]


def test_stream_holds_every_row_once_a_pass_in_another_order_each(tmp_path, data_file):
    stream = open_stream(write_shards(tmp_path / "shards", data_file), seed=1)
    seen = ids(stream, 24)
    passes = [seen[:8], seen[8:16], seen[16:]]
    assert all(sorted(one) == list("01234567") for one in passes)
    assert passes[0] != passes[1]
    assert ids(stream, 24) == seen


def test_rows_of_shards_are_those_of_the_json_file(tmp_path, data_file):
    shards, lines = write_shards(tmp_path / "shards", data_file), tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in json.loads(data_file.read_text())))
    of_shards = {row["id"]: row for row in itertools.islice(open_stream(shards), 8)}
    of_lines = {row["id"]: row for row in itertools.islice(open_stream(lines), 8)}
    for number, row in of_lines.items():
        other = of_shards[number]
        assert (other["messages"], other["extended_answers"]) == (row["messages"], row["extended_answers"])
        assert other["images"][0]["bytes"] == Path(row["images"][0]).read_bytes()


def test_bad_rows_are_named_by_shard_and_key_or_left_out(tmp_path, data_file, caplog):
    rows = json.loads(data_file.read_text())
    del rows[4]["conversations_long"]
    data_file.write_text(json.dumps(rows))
    shards = write_shards(tmp_path / "shards", data_file)
    with pytest.raises(RowError, match=r"000\.tar: key sample4 \(id '4'\), field `conversations_long`"):
        ids(open_stream(shards), 8)
    assert sorted(ids(open_stream(shards, on_bad_row="skip"), 7)) == list("0123567")


def test_a_broken_image_is_named_by_its_row_when_it_is_used(tmp_path, data_file):
    rows = open_stream(write_shards(tmp_path / "shards", data_file, broken="3"))
    collator = LoGraMedDataCollator(tiny_processor(), config=AlignmentConfig(alignment_preset="paper"))
    with pytest.raises(ValueError, match=r"Row '3': cannot read image sample3\.png"):
        collator(list(itertools.islice(rows, 8)))


def test_a_stream_is_validated_on_the_other_split_of_its_folder(tmp_path, data_file):
    rows = json.loads(data_file.read_text())
    for split, chosen in (("train", rows[:5]), ("test", rows[5:])):
        (tmp_path / "folder").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in chosen)
        (tmp_path / "folder" / f"{split}.jsonl").write_text(lines)
    options = {"model": "any", "train_data": tmp_path / "folder", "validation_data": tmp_path / "folder"}
    options |= {"image_folder": data_file.parent / "images", "streaming": "true", "max_steps": 3, "use_cpu": "true"}
    _, data, training = train.parse_arguments([text for name in options for text in (f"--{name}", str(options[name]))])
    found = read_data(data, training, {})
    assert sorted(ids(found.train, 5)) == list("01234")
    assert found.validation["id"][:] == list("567")


def test_streams_of_nothing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.jsonl"):
        ids(open_stream(tmp_path / "nowhere.jsonl"), 1)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_resumed_stream_gives_the_losses_of_the_uninterrupted_run(tmp_path, data_file, step):
    shards = write_shards(tmp_path / "shards", data_file)

    def run(name, num_steps, *options):
        folder = tmp_path / name
        recipe = folder / "recipe.yaml"
        if not folder.exists():
            kill_resume.write_recipe(folder, data_file)
            text = recipe.read_text().replace("shuffle_turns: true", "streaming: true")
            text = "".join(
                line for line in text.splitlines(True) if not line.startswith(("first_stage", "validation"))
            )
            recipe.write_text(text.replace(f"train_data: {data_file}", f"train_data: {shards}"))
        values = ["--max_steps", str(num_steps), "--eval_strategy", "no", "--save_steps", "1", "--logging_steps", "1"]
        train.main([str(recipe), *values, "--lr_scheduler_type", "constant", *options])
        return kill_resume.read_results(folder)

    whole = run("whole", 6)
    run("parts", step)
    resumed = run("parts", 6, "--resume_from_checkpoint", "true")
    assert [entry.get("loss") for entry in resumed[0]][:6] == [entry.get("loss") for entry in whole[0]][:6]
    assert kill_resume.same_weights(resumed[1], whole[1])


def test_a_stream_needs_max_steps(tmp_path, data_file):
    shards = write_shards(tmp_path / "shards", data_file)
    values = {"streaming": True, "max_steps": -1, "save_strategy": "no"}
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        train.main([write_recipe(tmp_path, shards, **values)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation_share": 0.5, "eval_strategy": "no"}, "`validation_share`"),
        ({"shuffle_turns": True}, "`shuffle_turns`"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(tmp_path, data_file, options, words):
    arguments = {"model": "any", "train_data": data_file, "output_dir": tmp_path, "streaming": True, "max_steps": 3}
    argv = [text for name, value in {**arguments, **options}.items() for text in (f"--{name}", str(value))]
    with pytest.raises(ValueError, match=words):
        train.main([*argv, "--use_cpu", "true"])
