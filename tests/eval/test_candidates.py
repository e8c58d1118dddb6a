"""Tests of the candidate answers."""

from pathlib import Path

import pytest

from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.candidates import read_candidates, training_candidates


VQA_RAD = Path(__file__).parents[3] / "shared" / "data" / "vqa_rad"


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason=f"needs the VQA-RAD files in {VQA_RAD}")
def test_vqa_rad_has_the_403_candidates_of_the_published_recipe():
    candidates = training_candidates(load_questions(VQA_RAD, split="train"))
    assert len(candidates) == len(set(candidates)) == 403
    assert "hydrocephalus" not in candidates  # answers a question of a pattern only


def test_rows_without_open_answers_have_no_candidates():
    assert training_candidates([{"answer": "yes", "answer_type": "CLOSED"}, {"answer": "CT"}]) is None


def test_files_of_both_forms_are_read_and_others_refused(tmp_path):
    path = tmp_path / "candidate.json"
    path.write_text('\ufeff{"0": ["lung", 2]}', encoding="utf-8")
    assert read_candidates(path) == {"0": ["lung", 2]}
    path.write_text("[lung]")
    with pytest.raises(ValueError, match=r"candidate\.json is not JSON"):
        read_candidates(path)
