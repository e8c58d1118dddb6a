"""Tests of the published figures: sums that must come out, and what they may stand beside."""

import pytest

from logramed.eval.comparison.published_figures import (
    oddities_of,
    provenance_lines,
    published_for,
    read_published,
    why_not_beside,
)


BENCHMARKS = ("vqa_rad", "slake", "path_vqa")


def figure_of(method, share, benchmark, figure, source="paper_note"):
    (value,) = [
        row["figures"][figure]
        for row in read_published()["figures"]
        if (row["source"], row["method"], row["training_data_share"], row["benchmark"])
        == (source, method, share, benchmark)
    ]
    return value


@pytest.mark.parametrize(
    ("method", "share", "num_right"),
    [
        ("LLaVA-Med", 100, 222),
        ("ExGra-Med", 10, 215),
        ("LLaVA-Med", 10, 167),
        ("InfoNCE", 10, 211),
        ("SigLIP", 10, 212),
    ],
)
def test_closed_accuracies_are_whole_numbers_of_the_272_closed_questions(method, share, num_right):
    num_closed = read_published()["benchmarks"]["vqa_rad"]["num_closed"]
    accuracy = figure_of(method, share, "vqa_rad", "closed_accuracy")
    assert accuracy == pytest.approx(100 * num_right / num_closed, abs=0.005)
    assert num_closed == 272


def test_averages_are_the_means_of_open_and_closed():
    rows = [row["figures"] for row in read_published()["figures"] if len(row["figures"]) == 3]
    assert len(rows) == 5
    for figures in rows:
        assert figures["average"] == pytest.approx(
            (figures["open_recall"] + figures["closed_accuracy"]) / 2, abs=0.011
        )


def test_overall_figures_are_the_means_of_the_three_benchmarks():
    rows = [row for row in read_published()["figures"] if row["benchmark"] == "mean_of_three"]
    assert len(rows) == 10
    for row in rows:
        method = row["method"], row["training_data_share"]
        averages = [figure_of(*method, name, "average", source=row["source"]) for name in BENCHMARKS]
        assert row["figures"]["average"] == pytest.approx(sum(averages) / 3, abs=0.011)


def test_what_med_moe_quotes_of_itself_gives_the_average_of_the_papers_table():
    for benchmark in BENCHMARKS:
        parts = [
            figure_of("Med-MoE Phi2", None, benchmark, part, source="med_moe")
            for part in ("open_recall", "closed_accuracy")
        ]
        average = figure_of("Med-MoE Phi2 3.6B", None, benchmark, "average", source="paper_quotes")
        assert average == pytest.approx(sum(parts) / 2, abs=0.006)


def test_gain_at_ten_percent_is_the_one_the_paper_states():
    ours, theirs = (figure_of(name, 10, "vqa_rad", "average") for name in ("ExGra-Med", "LLaVA-Med"))
    assert ours == pytest.approx(theirs + 20.13)


def test_points_of_the_curve_fit_the_table():
    for method, shares in (("ExGra-Med", (10, 100)), ("LLaVA-Med", (10, 100))):
        for share in shares:
            point = figure_of(method, share, "vqa_rad", "average", source="project_page_figure")
            assert point == pytest.approx(figure_of(method, share, "vqa_rad", "average"), abs=0.05)


def test_dashed_lines_of_the_figure_are_overall_figures():
    (oddity,) = [text for text in oddities_of("vqa_rad") if "dashed" in text]
    for method in ("Med-Dr 40B", "BiomedGPT-B 182M", "Med-MoE Phi2 3.6B"):
        assert f"{figure_of(method, None, 'mean_of_three', 'average', source='paper_quotes'):.2f}" in oddity
    assert any("73.75" in text and "74.37" in text for text in oddities_of("vqa_rad"))


def test_every_figure_has_a_known_source_and_protocol_and_is_a_percentage():
    content = read_published()
    for source in content["sources"].values():
        assert source["protocol"] in content["protocols"]
        assert source["where"]
        assert source["provenance"]
    for row in content["figures"]:
        assert row["source"] in content["sources"]
        assert row["figures"]
        assert all(0 < value <= 100 for value in row["figures"].values())
    assert len(
        {(r["source"], r["method"], r["training_data_share"], r["benchmark"]) for r in content["figures"]}
    ) == len(content["figures"])


def test_benchmarks_have_the_sizes_of_the_published_test_splits():
    sizes = {name: (one["num_open"], one["num_closed"]) for name, one in read_published()["benchmarks"].items()}
    assert sizes == {"vqa_rad": (179, 272), "slake": (645, 416), "path_vqa": (3370, 3391)}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        ({"benchmark": "vqa_rad", "split": "test"}, None),
        ({"benchmark": "slake", "split": "test", "subset": "en"}, None),
        ({"benchmark": "slake", "split": "test", "subset": "zh"}, "over the subset 'en', this run is over 'zh'"),
        ({"benchmark": "path_vqa", "split": "validation"}, "over the split 'test'"),
        ({"benchmark": "vqa_rad", "split": "test", "limit": 5}, "first 5 questions"),
        ({"benchmark": "omnimedvqa", "split": "test"}, "No published figures of omnimedvqa"),
    ],
)
def test_published_figures_stand_beside_the_whole_same_split_only(run, reason):
    found = why_not_beside(run)
    assert found is None if reason is None else reason in found


def test_provenance_is_said_once_for_each_source_in_plain_words():
    lines = provenance_lines(published_for("vqa_rad"))
    assert len(lines) == 4
    assert any("reading note" in line for line in lines)
    assert any("read off a figure" in line for line in lines)
    assert sum("how each was scored is not known" in line for line in lines) == 2


def test_only_models_that_the_paper_trained_are_called_scored_as_the_release_scores():
    # Only their closed accuracies are known to be whole numbers of the 272 questions, as the release's script makes.
    release = {row.method for row in published_for("vqa_rad") if row.protocol == "release"}
    assert release == {"LLaVA-Med", "InfoNCE", "SigLIP", "ExGra-Med", "ExGra-Med + DCI"}
