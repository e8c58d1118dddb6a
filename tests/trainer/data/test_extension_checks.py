import json
import re
from pathlib import Path

import pytest

from logramed.trainer.data.extension_checks import (
    ReplyError,
    find_missing_terms,
    find_polarity,
    find_problem,
    read_reply,
    split_words,
)


VQA_RAD = Path(__file__).parents[3] / ".." / "shared" / "data" / "vqa_rad"
needs_vqa_rad = pytest.mark.skipif(not VQA_RAD.is_dir(), reason="needs the VQA-RAD files")
TAIL = "which is what one would expect to see in an image of this kind"


def load_pairs():
    """Original and extended answers of VQA-RAD's training questions."""
    extended = {}
    for line in (VQA_RAD / "extended_train.jsonl").read_text().splitlines():
        row = json.loads(line)
        extended[row["qid"]] = row["extended"]
    questions = json.loads((VQA_RAD / "trainset.json").read_text())
    return [(str(q["answer"]).strip(), extended[q["qid"]]) for q in questions if q["qid"] in extended]


@pytest.mark.parametrize(
    ("answer", "extended", "words"),
    [
        ("Yes", f"Yes, the heart is enlarged, {TAIL}.", None),
        ("Yes", f"The heart is enlarged, yes, {TAIL}.", None),
        ("no", f"There is no fracture of the ribs, {TAIL}.", None),
        ("no", f"Neither lung shows a nodule, {TAIL}.", None),
        ("no", f"The ribs aren\u2019t broken, {TAIL}.", None),
        ("Yes", f"No, the heart is of normal size, {TAIL}.", "does not say yes"),
        ("no", f"The ribs are broken, {TAIL}.", "does not say no"),
        ("left lung", f"The finding is in the left lung, {TAIL}.", None),
        ("left lung", f"The finding is in the right lung, {TAIL}.", "leaves out left"),
        ("Xray", f"This is an X-ray, {TAIL}.", None),
        ("12 ribs", f"One can count 12 ribs, {TAIL}.", None),
        ("12 ribs", f"One can count 11 ribs, {TAIL}.", "leaves out 12"),
        ("pleural effusions", f"It shows a pleural effusion, {TAIL}.", None),
        ("lung", "The lung.", "has 2 words; it needs at least 6"),
        ("lung", f"The lung, {TAIL}" + " again" * 80, "it may have at most 80"),
        ("lung", f"The lung of <image>, {TAIL}.", "holds <image>"),
    ],
)
def test_problems_of_an_extended_answer(answer, extended, words):
    problem = find_problem(answer, extended)
    assert (problem is None) if words is None else (words in problem)


def test_polarity_is_only_that_of_a_yes_or_no():
    assert find_polarity("No.") is False
    assert find_polarity("yes") is True
    assert find_polarity("no evidence of pneumothorax") is None
    assert find_polarity("left lung") is None


def test_long_answers_may_be_reworded_in_part():
    answer = "consolidation with air bronchograms throughout the right lower lobe"
    assert find_missing_terms(answer, "consolidation with air bronchograms in the right lower part of the lobe") == []
    assert "consolidation" in find_missing_terms(answer, "the right lobe")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("Here you are", "not valid JSON"),
        ("[]", "not of the form"),
        ('{"answers": []}', "'extended_answers' is a required property"),
        ('{"extended_answers": [1]}', "1 is not of type 'string'"),
        ('{"extended_answers": []}', "has 0 extended answers, but the conversation has 1"),
    ],
)
def test_replies_of_another_form_are_refused(reply, words):
    with pytest.raises(ReplyError, match=words):
        read_reply(reply, ["lung"])


@needs_vqa_rad
def test_good_extended_answers_are_hardly_ever_refused():
    pairs = load_pairs()
    refused = [answer for answer, extended in pairs if find_problem(answer, extended)]
    assert len(pairs) == 1797
    assert len(refused) <= 6  # 0.3 percent: misspelt originals, such as "abcess"


@needs_vqa_rad
def test_flipped_answers_are_mostly_found():
    found = tried = 0
    for answer, extended in load_pairs():
        polarity, flipped = find_polarity(answer), extended
        if polarity and "yes" in extended.lower():
            flipped = re.sub(r"\byes\b", "no", extended, count=1, flags=re.IGNORECASE)
        elif polarity is False and extended.lower().startswith("no,"):
            flipped = "Yes" + extended[2:]
        if flipped != extended:
            tried += 1
            found += find_problem(answer, flipped) is not None
    assert tried > 500
    assert found == tried


@needs_vqa_rad
def test_answers_that_lost_their_key_term_are_mostly_found():
    found = tried = 0
    for answer, extended in load_pairs():
        terms = [word for word in split_words(answer) if len(word) > 4 and word.isalpha()]
        if terms and find_polarity(answer) is None:
            other = re.sub(re.escape(terms[0][:5]) + r"\w*", "region", extended, flags=re.IGNORECASE)
            if other != extended:
                tried += 1
                found += find_problem(answer, other) is not None
    assert found / tried > 0.9
