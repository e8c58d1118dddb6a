"""Tests of the command: what it writes, and what it refuses."""

import json

import pytest

from logramed.eval import compare
from tests.eval.run_folders import write_run_folder


@pytest.fixture
def folders(tmp_path):
    return [
        write_run_folder(tmp_path / "ours", ability=0.9, num_questions=60, images=tmp_path / "images"),
        write_run_folder(
            tmp_path / "theirs",
            ability=0.5,
            seed=1,
            num_questions=60,
            blank=None,
            run={"model": None, "predictions": "/home/someone/radfm.csv"},
        ),
    ]


def run_command(folders, output, *options):
    assert compare.main([*map(str, folders), "--output", str(output), *options]) == 0


def test_command_writes_page_text_and_figures(folders, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    run_command(folders, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.html",
        "comparison.json",
        "comparison.md",
    ]
    said = capsys.readouterr().out
    assert "Average: ours is highest with" in said
    assert "No figures without sight of radfm" in said
    assert "comparison.html" in said
    content = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    metrics = json.loads((folders[0] / "metrics.json").read_text())
    assert content["systems"]["ours"]["open_recall"] == metrics["overall"]["open_recall"]
    assert {(test["figure"], test["first"], test["second"]) for test in content["paired_bootstrap"]} == {
        (figure, "ours", "radfm") for figure in ("open_recall", "closed_accuracy", "average")
    }
    assert all(test["corrected_p_value"] >= test["p_value"] for test in content["mcnemar"])
    assert content["test_unit"] == "image"


def test_same_runs_give_the_same_files_which_tell_no_folder(folders, tmp_path):
    for name in ("first", "second"):
        run_command(folders, tmp_path / name)
    for name in ("comparison.html", "comparison.md", "comparison.json"):
        text = (tmp_path / "first" / name).read_text(encoding="utf-8")
        assert text == (tmp_path / "second" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert "/home/someone" not in text


def test_one_run_is_fine_and_images_are_left_out_on_request(folders, tmp_path, capsys):
    run_command(folders[:1], tmp_path / "with")
    run_command(folders[:1], tmp_path / "without", "--no_images")
    assert "McNemar's test\n" not in (tmp_path / "with" / "comparison.md").read_text(encoding="utf-8")
    assert "ours with" in capsys.readouterr().out
    assert "data:image/jpeg" in (tmp_path / "with" / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in (tmp_path / "without" / "comparison.html").read_text(encoding="utf-8")


def test_command_refuses_other_questions_and_missing_runs(folders, tmp_path):
    other = write_run_folder(tmp_path / "other", num_questions=60, run={"split": "train"})
    with pytest.raises(ValueError, match=r"`split` is 'train' there and 'test' here"):
        compare.main([str(folders[0]), str(other), "--output", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"metrics.json is missing"):
        compare.main([str(tmp_path / "nothing"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
