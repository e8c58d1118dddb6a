"""Tests of the command: what it writes, and what it refuses."""

import json

import pytest

from logramed.eval import compare
from logramed.eval.comparison.markdown_report import format_table
from logramed.eval.comparison.tables import Cell, Table
from tests.eval.run_folders import change_metrics, make_questions, write_run_folder


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


def test_command_writes_page_text_figures_and_pictures(folders, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    run_command(folders, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "plots",
    ]
    said = capsys.readouterr().out
    assert "Average: ours is highest with" in said
    assert "No figures without sight of radfm" in said
    assert "comparison.html" in said


def test_markdown_names_every_picture_and_its_tables_are_whole(folders, tmp_path):
    run_command(folders, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    named = {line.split("(plots/")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert named == {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    for block in text.split("\n\n"):
        if block.startswith("|"):
            widths = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(widths) == 1
    for words in ("strict protocol", "## Paired bootstrap", "## McNemar's test", "Published, not run here"):
        assert words in text


def test_markdown_escapes_what_would_break_a_table():
    table = Table("a_b", ["x|y"], [[Cell("<b>|\n*", is_strong=True)], [Cell("plain", "note")]])
    assert format_table(table).splitlines()[2:] == [
        r"| x\|y |",
        "| --- |",
        r"| **&lt;b>\| \*** |",
        "| plain note |",
    ]


def test_json_holds_figures_and_tests_for_programs(folders, tmp_path):
    run_command(folders, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    metrics = json.loads((folders[0] / "metrics.json").read_text())
    assert content["systems"]["ours"]["figures"]["open_recall"]["value"] == metrics["overall"]["open_recall"]
    assert content["systems"]["radfm"]["figures"]["average"]["num_items"] == 60
    assert {(test["figure"], test["first"], test["second"]) for test in content["paired_bootstrap"]} == {
        (figure, "ours", "radfm") for figure in ("open_recall", "closed_accuracy", "average")
    }
    assert all(test["corrected_p_value"] >= test["p_value"] for test in content["mcnemar"])
    assert content["questions"]["benchmark"] == "vqa_rad"
    assert content["protocol"] == "strict"


def test_no_output_tells_a_folder_of_this_machine(folders, tmp_path):
    run_command(folders, tmp_path / "out")
    for name in ("comparison.html", "comparison.md", "comparison.json"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert "/home/someone" not in text


def test_images_are_left_out_on_request(folders, tmp_path):
    run_command(folders, tmp_path / "with")
    run_command(folders, tmp_path / "without", "--no_images")
    assert "data:image/jpeg" in (tmp_path / "with" / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" not in (tmp_path / "without" / "comparison.html").read_text(encoding="utf-8")


def test_same_runs_give_the_same_files(folders, tmp_path):
    for name in ("first", "second"):
        run_command(folders, tmp_path / name)
    for name in ("comparison.html", "comparison.md", "comparison.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_one_run_is_fine(folders, tmp_path, capsys):
    run_command(folders[:1], tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "McNemar's test\n" not in text
    assert "ours with" in capsys.readouterr().out


def test_curves_are_drawn_when_a_system_has_several_shares(tmp_path):
    folders = [
        write_run_folder(tmp_path / f"a{share}", seed=share, run={"system": "A", "training_data_share": share})
        for share in (10, 100)
    ]
    run_command(folders, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out" / "plots").iterdir()}
    assert {"curve-open_recall", "curve-closed_accuracy", "curve-average", "curve-release-average"} <= names
    assert "A, 10% of the data" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_published_figures_do_not_stand_beside_strict_ones(tmp_path):
    rows = make_questions(20)
    folder = write_run_folder(tmp_path / "a", rows=rows)
    change_metrics(folder, lambda metrics: metrics.pop("release_protocol"))
    run_command([folder], tmp_path / "out")
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "81.62" not in text
    assert "No run has figures under the release" in text


def test_command_refuses_other_questions_and_missing_runs(folders, tmp_path):
    other = write_run_folder(tmp_path / "other", num_questions=60, run={"split": "train"})
    with pytest.raises(ValueError, match=r"`split` is 'train' there and 'test' here"):
        compare.main([str(folders[0]), str(other), "--output", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"metrics.json is missing"):
        compare.main([str(tmp_path / "nothing"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
