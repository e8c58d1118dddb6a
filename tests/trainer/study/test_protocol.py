"""PROTOCOL.md says what run.py does."""

import re
from importlib.resources import files

from logramed.trainer.study.arms import ARMS, PARTS, SECONDARY_COMPARISONS, planned_runs
from logramed.trainer.study.run import tuning_runs
from logramed.trainer.study.settings import LEVELS, ORTHOGONAL_ARRAY, STRENGTHS, TUNED_ARMS


PROTOCOL = (files("logramed.trainer.study") / "PROTOCOL.md").read_text(encoding="utf-8")


def table(heading):
    section = PROTOCOL.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]


def test_arms_are_those_that_run():
    assert [row[0].strip("`") for row in table("Arms")[2:]] == list(ARMS)
    assert {run.arm for run in planned_runs()} == set(ARMS)


def test_numbers_of_runs_are_those_that_are_planned():
    counts = {part.title: len(part.runs()) for part in PARTS}
    counts["tuning"] = sum(len(tuning_runs(arm)) for arm in TUNED_ARMS)
    counts["all"] = sum(counts.values())
    expected = [[title, str(count)] for title, count in counts.items()]
    assert [row[:2] for row in table("Runs and compute")[2:]] == expected
    assert len(set(planned_runs())) == len(planned_runs())


def test_trials_are_those_that_are_tried():
    text = " ".join(PROTOCOL.split())
    for values in (*LEVELS.values(), *STRENGTHS.values()):
        levels = [
            f"{value:g}".replace("0.0005", "5e-4").replace("0.001", "1e-3").replace("0.002", "2e-3")
            for value in values
        ]
        assert f"({', '.join(levels)})" in text
    assert len(ORTHOGONAL_ARRAY) == 9
    assert "the same nine trials" in text


def test_named_comparisons_are_those_that_are_corrected():
    analysis = PROTOCOL.split("## Analysis\n")[1].split("\n## ")[0]
    assert len(re.findall(r"^- ", analysis, flags=re.MULTILINE)) == 4
    assert len(SECONDARY_COMPARISONS) == 1 + 5 + 3 + 2
    for comparison in SECONDARY_COMPARISONS:
        assert f"`{comparison.second.arm}`" in analysis
