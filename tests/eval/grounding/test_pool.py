"""Tests of pooling the grounding of several runs."""

import json

import pytest

from logramed.eval.grounding.maps import KINDS
from logramed.eval.grounding.pool import POOLED_FILE, compare_arms, main, pool_items


def item(question_id, value, image=None, area=0.1):
    figures = {"pointing_accuracy": value, "energy_over_area": value / 50, "auc": value / 100}
    scores = dict.fromkeys([*KINDS, "center", "random"], figures)
    return {"question_id": question_id, "image_id": image or question_id, "group": "liver", "area": area} | {
        "scores": scores
    }


def write_run(folder, items):
    folder.mkdir(parents=True)
    (folder / "grounding.json").write_text(json.dumps({"questions": items}))
    return str(folder)


def test_a_question_of_several_runs_counts_once_with_the_mean():
    pooled = pool_items([[item("1", 0.0), item("2", 100.0)], [item("1", 100.0)]])
    assert [found["scores"]["attention"]["pointing_accuracy"] for found in pooled] == [50.0, 100.0]


def test_other_boxes_of_a_question_are_refused():
    with pytest.raises(ValueError, match="Question 1 has other boxes"):
        pool_items([[item("1", 0.0)], [item("1", 0.0, area=0.2)]])


def test_arms_are_compared_over_common_questions():
    first = [item(str(number), 100.0) for number in range(10)]
    second = [item(str(number), 50.0) for number in range(5, 20)]
    figure = compare_arms(first, second, num_resamples=200)["question"]["pointing_accuracy"]
    assert (figure["value"], figure["interval"], figure["num_questions"]) == (50.0, [50.0, 50.0], 5)
    with pytest.raises(ValueError, match="no question in common"):
        compare_arms(first[:5], second)


def test_the_command_writes_figures_and_corrected_differences(tmp_path, capsys):
    folds = [write_run(tmp_path / f"a{fold}", [item(f"{fold}-{n}", 100.0) for n in range(15)]) for fold in range(2)]
    other = write_run(tmp_path / "b", [item(f"{fold}-{n}", 0.0) for n in range(15) for fold in range(2)])
    main(["--arm", "aligned", *folds, "--arm", "plain", other, "--output", str(tmp_path / "out")])
    pooled = json.loads((tmp_path / "out" / POOLED_FILE).read_text())
    assert pooled["arms"]["aligned"]["num_runs"] == 2
    assert pooled["arms"]["aligned"]["groups"]["liver"]["num_questions"] == 30
    figure = pooled["differences"]["aligned minus plain"]["attention"]["auc"]
    assert figure["value"] == 1.0
    assert figure["p_value_holm"] == pytest.approx(9 * figure["p_value"])
    assert "| aligned minus plain: attention | 100.0 (100.0 to 100.0), p " in capsys.readouterr().out


def test_runs_without_grounding_and_arms_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no grounding\.json: evaluate that model"):
        main(["--arm", "a", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(ValueError, match="needs at least one run folder"):
        main(["--arm", "a", "--output", str(tmp_path)])
    run = write_run(tmp_path / "run", [item("1", 0.0)])
    with pytest.raises(ValueError, match="a different name each time, got a, a"):
        main(["--arm", "a", run, "--arm", "a", run, "--output", str(tmp_path)])
