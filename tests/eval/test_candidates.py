"""Tests of the candidate answers."""

from pathlib import Path

import pytest

from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.candidates import training_candidates


VQA_RAD = Path(__file__).parents[3] / "shared" / "data" / "vqa_rad"


@pytest.mark.skipif(not VQA_RAD.is_dir(), reason=f"needs the VQA-RAD files in {VQA_RAD}")
def test_vqa_rad_has_the_403_candidates_of_the_published_recipe():
    candidates = training_candidates(load_questions(VQA_RAD, split="train"))
    assert len(candidates) == len(set(candidates)) == 403
    assert "hydrocephalus" not in candidates  # answers a question of a pattern only


def test_rows_without_open_answers_have_no_candidates():
    assert training_candidates([{"answer": "yes", "answer_type": "CLOSED"}, {"answer": "CT"}]) is None
