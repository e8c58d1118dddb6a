"""The study's training files, of generated rows."""

import json
from collections import Counter

import pytest
from PIL import Image

from logramed.trainer.data import load_training_rows
from logramed.trainer.study.arms import ARMS, Run
from logramed.trainer.study.data import (
    LONG_FORM,
    add_extended_targets,
    derange,
    make_row,
    permute_partners,
    read_rows,
    source_rows,
    turns_of,
    write_rows,
    write_training_file,
)


def made_rows(num_rows=20):
    """Rows with two closed questions and an open one each; texts repeat between images, as SLAKE's do."""
    rows = []
    for number in range(num_rows):
        turns = [
            (f"Is there organ {number % 5}?", ("Yes", "No")[number % 2], f"Long {number} a."),
            ("Is it healthy?", ("no", "yes.")[number % 2], f"Long {number} b."),
            ("Which organ?", f"Organ {number % 4}", f"Long {number} c."),
        ]
        rows.append(make_row(f"r{number}", f"{number}.png", turns))
    return rows


def partner_texts(rows):
    return [text for row in rows for text in row["extended_answers"]]


def own_texts(rows):
    return [f"{question} {answer}" for row in rows for question, answer, _ in turns_of(row)]


def test_permuted_partners_are_the_same_texts_within_answer_types_and_none_is_right():
    rows = made_rows()
    permuted = permute_partners(rows, seed=3)
    own, partners = own_texts(rows), partner_texts(permuted)
    assert Counter(partners) == Counter(own)
    assert all(text != partner for text, partner in zip(own, partners, strict=True))
    assert [text.startswith("Which") for text in own] == [text.startswith("Which") for text in partners]
    assert [row["conversations"] for row in permuted] == [row["conversations"] for row in rows]
    assert permute_partners(rows, seed=3) == permuted
    assert permute_partners(rows, seed=4) != permuted


def test_a_derangement_tells_nothing_of_the_place_and_refuses_what_has_none():
    texts = [str(number) for number in range(6)]
    dealt = [derange(texts, seed) for seed in range(3000)]
    for place in range(6):
        counts = Counter(order[place] for order in dealt)
        assert str(place) not in counts
        assert all(abs(count - 600) < 120 for count in counts.values())  # five standard deviations
    assert derange(["a", "a", "b", "b"], seed=0) == ["b", "b", "a", "a"]
    assert derange([], seed=0) == []
    with pytest.raises(ValueError, match=r"More than half of 3 texts are equal"):
        derange(["a", "a", "b"], seed=0)


def test_extended_targets_are_further_turns_that_ask_for_a_sentence():
    [row] = add_extended_targets([make_row("1", "1.png", [("Organ?", "Lung", "It is the lung.")])], seed=0)
    assert turns_of(row) == [
        ("Organ?", "Lung", "It is the lung."),
        (f"Organ? {LONG_FORM}", "It is the lung.", "It is the lung."),
    ]


def test_shares_are_drawn_by_seed_nested_and_the_same_for_all_arms(tmp_path):
    source = write_rows(tmp_path / "source.json", made_rows())

    def written(share, seed, arm="plain"):
        path = tmp_path / f"{share}-{seed}-{arm}.json"
        digest = write_training_file(path, source, Run("scratch", "slake", share, arm, seed))
        assert digest == write_training_file(path, source, Run("scratch", "slake", share, arm, seed))
        return [row["id"] for row in read_rows(path)]

    tenth, part, whole = (written(share, 0) for share in (10, 40, 100))
    assert (len(tenth), len(part), len(whole)) == (2, 8, 20)
    assert set(tenth) < set(part) < set(whole)
    assert written(40, 1) != part
    assert all(written(40, 0, arm) == part for arm in ARMS if arm != "permuted")
    assert written(40, 0, "permuted") == part


def test_training_files_are_read_by_the_product_with_the_texts_they_were_made_of(tmp_path):
    (tmp_path / "original").mkdir()
    for number in range(2):
        Image.new("L", (8, 8), number).save(tmp_path / "original" / f"{number}.png")
    original = tmp_path / "original" / "rows.json"
    write_rows(original, made_rows(2))
    read = load_training_rows(original).dataset.with_format(None)
    rows = source_rows("made", read, tmp_path / "data")
    path = write_rows(tmp_path / "data" / "made.json", rows)
    again = load_training_rows(path)
    assert [row["id"] for row in again.dataset] == ["made/r0", "made/r1"]
    assert [turns_of(row) for row in rows] == [turns_of(row) for row in made_rows(2)]
    for first, second in zip(read, again.dataset.with_format(None), strict=True):
        assert first["messages"] == second["messages"]
        assert first["extended_answers"] == second["extended_answers"]
    assert json.loads(path.read_text())[1]["image"] == "made/r1.png"
