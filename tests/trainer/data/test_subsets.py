import itertools
import json
import random

import pytest
from PIL import Image

from logramed.trainer.data.run_data import load_rows
from logramed.trainer.data.sources import load_training_rows
from logramed.trainer.data.subsets import Subset, draw_subsets, main, select_listed
from logramed.trainer.train import parse_arguments


# The three least of `printf 42:row0 | sha256sum` to 42:row29.
EXPECTED_DRAW = ["row24", "row21", "row25"]


def record(number, **changes):
    turn = {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": f"Finding {number}."}
    return {"id": f"row{number}", "image": "a.png", "conversations": list(turn), **changes}


def medical_records():
    return [record(number) for number in range(100)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "images" / "a.png")
    return tmp_path


def write(path, records):
    path.write_text(json.dumps(records))
    return path


def test_smaller_shares_lie_inside_larger_ones_even_when_drawn_apart(folder):
    path = write(folder / "data.json", medical_records())
    shares = [0.1, 0.11, 0.25, 0.4, 0.7, 1.0]
    lists = [set(draw_subsets(path, [share], seed=7)[0].ids) for share in shares]
    assert [len(ids) for ids in lists] == [10, 11, 25, 40, 70, 100]
    assert all(small < large for small, large in itertools.pairwise(lists))
    together = draw_subsets(path, shares, seed=7)
    assert [set(subset.ids) for subset in together] == lists


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows(folder):
    records = medical_records()
    (subset,) = draw_subsets(write(folder / "data.json", records), [0.3], seed=1)
    random.Random(1).shuffle(records)
    (shuffled,) = draw_subsets(write(folder / "data.json", records), [0.3], seed=1)
    assert shuffled == subset
    (other,) = draw_subsets(folder / "data.json", [0.3], seed=2)
    assert set(other.ids) != set(subset.ids)


def test_the_draw_is_the_same_on_every_machine(folder):
    path = write(folder / "data.json", [record(number) for number in range(30)])
    (subset,) = draw_subsets(path, [0.1], seed=42)
    assert subset.ids == EXPECTED_DRAW


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "above 0 and at most 1; got 0.0"), (1.2, "got 1.2"), (0.001, "of 100 rows is less than one row")],
)
def test_a_share_of_nothing_or_of_more_than_all_is_refused(folder, share, words):
    with pytest.raises(ValueError, match=words):
        draw_subsets(write(folder / "data.json", medical_records()), [share], seed=0)


def test_command_writes_lists_and_never_over_another(folder, capsys):
    path = write(folder / "data.json", medical_records())
    arguments = [str(path), "--share", "0.1", "0.125", "--output", str(folder / "subsets"), "--name", "alignment"]
    assert main(arguments) == main(arguments) == 0
    assert "alignment_10percent.json: 10 of 100 rows." in capsys.readouterr().out
    assert len(Subset.read(folder / "subsets" / "alignment_12.5percent.json").ids) == 13
    with pytest.raises(FileExistsError, match="holds another list"):
        main([*arguments, "--seed", "3"])


def training_arguments(folder, **values):
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    required = ["--model", "m", "--output_dir", str(folder / "run"), "--alignment_weight", "0", "--use_cpu", "true"]
    _, data, training = parse_arguments([*required, *words])
    return data, training


def test_training_takes_the_listed_rows_in_the_order_of_the_data(folder):
    path = write(folder / "data.json", medical_records())
    main([str(path), "--share", "0.1", "--output", str(folder)])
    listed = folder / "data_10percent.json"
    rows, _ = load_rows(*training_arguments(folder, train_data=path, train_ids=listed), {})
    ids = set(Subset.read(listed).ids)
    assert rows["id"] == [row["id"] for row in medical_records() if row["id"] in ids]


def test_the_list_holds_for_the_file_with_extended_answers_too(folder):
    records = medical_records()
    write(folder / "data.json", records)
    main([str(folder / "data.json"), "--share", "0.1", "--output", str(folder)])
    extended = [{**row, "conversations_long": row["conversations"]} for row in records]
    rows = load_training_rows(write(folder / "extended.json", extended))
    assert len(select_listed(rows, folder / "data_10percent.json")) == 10


def test_ids_that_the_data_lacks_are_refused_with_count_and_names(folder):
    records = medical_records()
    main([str(write(folder / "data.json", records)), "--share", "1", "--output", str(folder)])
    rows = load_training_rows(write(folder / "data.json", records[8:]), require_extended=False)
    words = r"names 8 of 100 ids that the training data lacks \('row\d'(, 'row\d'){4}, and 3 more\): it was drawn from"
    with pytest.raises(ValueError, match=words):
        select_listed(rows, folder / "data_100percent.json")


def test_a_listed_row_that_is_skipped_as_bad_is_left_out(folder):
    records = medical_records()
    main([str(write(folder / "data.json", records)), "--share", "1", "--output", str(folder)])
    records[3]["image"] = "none.png"
    rows = load_training_rows(write(folder / "data.json", records), require_extended=False, on_bad_row="skip")
    assert len(select_listed(rows, folder / "data_100percent.json")) == 99


def test_a_file_that_is_no_list_is_refused(folder):
    path = write(folder / "ids.json", ["row1"])
    with pytest.raises(ValueError, match=r"is not a list written by data/subsets\.py"):
        Subset.read(path)
