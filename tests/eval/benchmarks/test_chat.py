"""Tests of the chat loader on a generated copy of LLaVA-Med's file."""

import json
import re
from pathlib import Path

import pytest

from logramed.eval.benchmarks import get_benchmark
from logramed.eval.benchmarks.chat import load_questions
from tests.eval.benchmarks.conftest import write_image, write_zip


pytestmark = pytest.mark.filterwarnings("ignore:This chat test split has")
FILE = "llava_med_eval_qa50_qa.jsonl"
DOMAINS = ("chest_xray", "mri", "ct_scan", "histology", "gross")  # in the order of the file


def official_row(number: int, image: str, text: str, domains=(), mentions=None, kind="conversation") -> dict:
    return {
        "question_id": number,
        "image": image,
        "pair_id": image.removesuffix(".jpg"),
        "text": text,
        "gpt4_answer": f"Answer {number}.",
        "fig_caption": f"Caption {number}.",
        "in_text_mention": mentions,
        "domain": {name: name in domains for name in DOMAINS},
        "type": kind,
        "fig_label": "Fig. 3" if number else "Figure 1.",
    }


def official_rows() -> list[dict]:
    """The traps: placeholder last, first and in the middle; several domains, none; mentions as objects or null."""
    mentions = [
        {"tokens": "A mass was seen ( Fig. 3 ) .", "entities": [{"type": "figure", "entity_id": "3"}]},
        {"tokens": "It had grown .", "entities": []},
    ]
    return [
        official_row(0, "a.jpg", "What is the organ in the image?\n<image>", ["gross", "histology"], mentions),
        official_row(1, "a.jpg", "<image>\nIs there a mass?", ["ct_scan", "chest_xray"], mentions[:1]),
        official_row(2, "b.jpg", "Look at <image> and say what you see", []),
        official_row(3, "b.jpg", "Describe it in detail\n<image>", ["mri"], [], "detailed_description"),
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    write_rows(tmp_path / "chat" / FILE, official_rows())
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        write_image(tmp_path / "chat" / "images" / name, seed)
    return tmp_path / "chat"


def test_rows_of_the_official_file_become_question_rows(folder):
    questions = load_questions(folder)
    assert questions[0] == {
        "question_id": "0",  # a number in the file
        "image": str(folder / "images" / "a.jpg"),
        "question": "What is the organ in the image?",
        "answer": "Answer 0.",
        "context": (
            "Caption of Figure 1: Caption 0.\n"
            "Mentioned in the text: A mass was seen ( Fig. 3 ) .\n"
            "Mentioned in the text: It had grown ."
        ),
        "domains": ["histology", "gross"],
        "groups": {"question_type": "conversation", "domain": "histology"},
    }


def test_the_image_placeholder_is_removed_wherever_it_stands(folder):
    questions = [row["question"] for row in load_questions(folder)]
    assert questions[1] == "Is there a mass?"
    assert questions[2] == "Look at  and say what you see"


def test_every_question_counts_in_one_domain_and_keeps_all_of_its_own(folder):
    questions = load_questions(folder)
    assert [row["groups"]["domain"] for row in questions] == ["histology", "chest_xray", "none", "mri"]
    assert [row["domains"] for row in questions] == [["histology", "gross"], ["chest_xray", "ct_scan"], [], ["mri"]]


def test_a_figure_without_mentions_has_its_caption_as_context(folder):
    assert [row["context"] for row in load_questions(folder)[2:]] == [
        "Caption of Fig. 3: Caption 2.",
        "Caption of Fig. 3: Caption 3.",
    ]


@pytest.mark.parametrize("data", ["", "data", "data/eval", f"data/eval/{FILE}"])
def test_the_layout_of_llava_meds_repository_is_found_from_each_of_its_folders(tmp_path, data):
    write_rows(tmp_path / "data" / "eval" / FILE, official_rows())
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / "data" / "images" / name)
    assert load_questions(tmp_path / data)[0]["image"] == str(tmp_path / "data" / "images" / "a.jpg")


def test_images_are_read_from_an_archive(folder, cache):
    image = (folder / "images" / "a.jpg").read_bytes()
    for path in (folder / "images").iterdir():
        path.unlink()
    (folder / "images").rmdir()
    write_zip(folder / "qa50_images.zip", {"qa50_images/a.jpg": image, "qa50_images/b.jpg": image})
    questions = load_questions(folder)
    assert Path(questions[0]["image"]).read_bytes() == image
    assert Path(questions[0]["image"]).is_relative_to(cache)


def test_other_counts_are_named(folder):
    words = (
        "This chat test split has 4 questions instead of 193 and 2 images instead of 50: its figures are not "
        "comparable with published ones."
    )
    with pytest.warns(UserWarning, match=re.escape(words)):
        load_questions(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpt4_answer": None}, r"qa50_qa\.jsonl, line 2 has no `gpt4_answer`"),
        ({"text": "<image>\n"}, r"line 2, `text` holds no question"),
        ({"fig_caption": None}, r"line 2 has no `fig_caption`"),
        (
            {"in_text_mention": "a text"},
            r"line 2, `in_text_mention`: expected a list of objects or null, got 'a text'",
        ),
        ({"in_text_mention": [{"entities": []}]}, r"line 2, `in_text_mention\[0\]` has no `tokens`"),
        ({"domain": {"xray": True}}, r"line 2, `domain`: expected chest_xray, mri, .*, got {'xray': True}"),
        ({"domain": {"mri": "yes"}}, r"line 2, `domain`: expected .* with true or false, got {'mri': 'yes'}"),
        ({"type": None}, r"line 2 has no `type`"),
        ({"image": "gone.jpg"}, r"line 2, `image`: .*gone\.jpg is missing"),
        ({"image": "../a.jpg"}, r"line 2, `image`: expected a path that stays in"),
        ({"question_id": 0}, r"holds the same `question_id` more than once: 0"),
    ],
)
def test_bad_rows_are_refused_by_file_line_and_field(folder, fields, words):
    rows = official_rows()
    rows[1] |= fields
    write_rows(folder / FILE, rows)
    with pytest.raises(ValueError, match=words):
        load_questions(folder)


def test_a_row_without_domain_belongs_to_none(folder):
    rows = official_rows()
    del rows[0]["domain"]
    rows[1]["domain"] = None
    write_rows(folder / FILE, rows)
    assert [row["groups"]["domain"] for row in load_questions(folder)[:2]] == ["none", "none"]


def test_unknown_splits_subsets_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="must be one of test, got 'train'"):
        load_questions(folder, "train")
    with pytest.raises(ValueError, match="chat has no subsets: leave `subset` out, got 'en'"):
        load_questions(folder, subset="en")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"`data` holds no {FILE} \(nor eval/"):
        load_questions(tmp_path / "empty")
    with pytest.raises(ValueError, match=rf"must be LLaVA-Med's {FILE} or the folder with it; 'nowhere' does not"):
        load_questions("nowhere")


def test_the_register_knows_the_benchmark():
    assert get_benchmark("chat").TASK == "chat"


def test_a_question_about_several_images_keeps_their_places(folder):
    row = official_row(4, "a.jpg", "Before: <image> After: <image> Has it grown?") | {"image": None}
    row["images"] = ["a.jpg", "b.jpg"]
    write_rows(folder / FILE, [*official_rows(), row])
    asked = load_questions(folder)[-1]
    assert asked["images"] == [str(folder / "images" / name) for name in row["images"]]
    assert asked["question"] == row["text"]
    write_rows(folder / FILE, [row | {"text": "<image>?"}])
    with pytest.raises(ValueError, match=r"qa\.jsonl, line 1, `text`: 1 <image> placeholder\(s\) for 2 image\(s\)"):
        load_questions(folder)
