import json

import numpy as np
import pytest
from PIL import Image

from logramed.trainer.study.analysis import summarize
from logramed.trainer.study.arms import PLAIN, PRIMARY, Side
from logramed.trainer.study.report import content_differences, main, mean_score, seeds_alone, write_report
from logramed.trainer.study.settings import SETTINGS_FILE
from tests.trainer.study.test_analysis import row


def study_rows(arms=(PLAIN, PRIMARY, "permuted"), shares=(10, 40), num_seeds=3):
    generator = np.random.default_rng(0)
    rows = []
    for share in shares:
        for seed in range(num_seeds):
            for number, arm in enumerate(arms):
                images = {f"{n}": [600.0 + 10 * number + generator.normal(0, 30), 10] for n in range(20)}
                one = row(arm, seed, images, share=share)
                one["image_scores"]["without_sight"] = {"open": {name: [300.0, 10] for name in images}}
                content = {"Organ": [1000.0 + 100 * number + 10 * seed * number, 20], "Size": [50.0, 1]}
                one["by_content"] = {"with_sight": content, "without_sight": {}}
                rows.append(one)
    return rows


def test_report_has_the_tables_and_a_picture_of_each_kind(tmp_path):
    rows = study_rows()
    paths = write_report(rows, tmp_path / "results")
    assert [path.name for path in paths] == ["tables.md", "shares.png", "arms.png", "kinds.png"]
    assert paths[0].read_text() == summarize(rows, "test")
    for path in paths[1:]:
        with Image.open(path) as picture:
            assert picture.size == (864, 504)
            assert len(picture.convert("L").getcolors()) > 20  # something is drawn


def test_committed_tables_are_those_of_the_committed_rows(tmp_path):
    results = SETTINGS_FILE.parent / "results"
    tables = [str(results / f"{name}.jsonl") for name in ("table", "further")]
    assert main(["--table", *tables, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "tables.md").read_text() == (results / "tables.md").read_text()
    for name in ("shares", "arms", "kinds"):
        assert (results / f"{name}.png").is_file()


def test_a_table_that_is_just_begun_is_drawn_too(tmp_path):
    write_report(study_rows(arms=(PLAIN,), shares=(10,), num_seeds=1), tmp_path)
    assert (tmp_path / "kinds.png").is_file()


def test_means_are_over_questions_and_seeds():
    rows = [row(PLAIN, 0, {"a": [100.0, 1], "b": [0.0, 3]}), row(PLAIN, 1, {"a": [100.0, 1], "b": [300.0, 3]})]
    assert mean_score(rows, Side(PLAIN), "with_sight").mean == pytest.approx(500 / 8)
    assert mean_score(rows, Side(PRIMARY), "with_sight") is None


def test_content_types_are_paired_by_seed():
    found = content_differences(study_rows(shares=(10,)))
    assert list(found) == ["Organ (20)", "Size (1)"]
    assert found["Organ (20)"].mean == pytest.approx((100 + 110 + 120) / 3 / 20)
    assert (found["Size (1)"].mean, found["Size (1)"].p_value) == (0, 1)


def test_interval_over_seeds_is_students():
    found = seeds_alone(np.array([1.0, 2.0, 4.0]))
    # t of 2 degrees of freedom at 97.5%: 4.302653
    half = 4.302653 * np.sqrt(7 / 3) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert seeds_alone(np.array([1.0])) is None


def test_command_reads_a_table_and_names_one_that_is_missing(tmp_path, capsys):
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(one) + "\n" for one in study_rows(num_seeds=2)))
    assert main(["--table", str(tmp_path / "table.jsonl"), "--output", str(tmp_path)]) == 0
    assert "arms.png" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--table", str(tmp_path / "none.jsonl"), "--output", str(tmp_path)])
    assert "none.jsonl is missing" in capsys.readouterr().err
