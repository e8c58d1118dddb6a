"""Tests of questions about several images: prompts, answers, likelihoods, and whole runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from logramed.eval import run
from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.rows import find_images, read_question
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.comparison.run_folder import check_same_questions, read_run_folder
from logramed.eval.files import hash_file
from logramed.eval.leakage import find_leakage
from logramed.eval.likelihood import score_options
from logramed.eval.prompts import build_prompt
from logramed.eval.question_images import question_content
from logramed.eval.run import fingerprint_questions, identify_images
from tests import vlm_models, vlm_processors
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model as tiny_logramed


FAMILIES = {
    "ours": (tiny_logramed, tiny_processor),
    "llava": (vlm_models.tiny_llava_model, vlm_processors.tiny_llava_processor),
    "qwen2_5_vl": (vlm_models.tiny_qwen2_5_vl_model, vlm_processors.tiny_qwen2_5_vl_processor),
    "smolvlm": (vlm_models.tiny_smolvlm_model, vlm_processors.tiny_smolvlm_processor),
}
OPTIONS = ["yes", "no", "left lung", "right lung liver mass"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """Model and processor of a family."""
    build_model, build_processor = FAMILIES[request.param]
    return build_model(), build_processor()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Five images of noise, of two shapes."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(5):
        shape = (16, 24, 3) if number % 2 else (16, 16, 3)
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(5)]


@pytest.fixture(scope="module")
def questions(paths):
    """Rows of one to three images, at any place, some of them with the same list."""
    a, b, c, d, e = paths
    rows = [
        {"question": "what organ is shown in the image ?", "image": a},
        {"question": "compare with <image> this : <image> what is shown ?", "images": [a, b]},
        {"question": "compare with <image> this : <image> is there a mass ?", "images": [a, b]},
        {"question": "compare with <image> this : <image> is there a mass ?", "images": [b, a]},
        {"question": "where is the liver ? <image> or <image>", "images": [c, d]},
        {"question": "how many images ?", "images": [c, d, e]},
        {"question": "<image> lung <image> head <image> which modality is this ?", "images": [e, e, a]},
        {"question": "<image> is there an effusion in the left lung ?", "images": [d]},
    ]
    return [row | {"question_id": str(number), "options": OPTIONS} for number, row in enumerate(rows)]


def ask(pair, questions, **options):
    options = {"batch_size": 3, "max_new_tokens": 8, "progress": False} | options
    return {row["question_id"]: answer for row, answer in answer_questions(*pair, questions, **options)}


def score(pair, questions, **options):
    options = {"batch_size": 3, "progress": False} | options
    return {row["question_id"]: scores for row, scores in score_options(*pair, questions, **options)}


@torch.no_grad()
def one_step(pair, content):
    """Logits of the first token of an answer to a message whose parts hold their images."""
    model, processor = pair
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return inputs, model(**inputs).logits[0, -1]


def parts(question):
    """Content with opened images, by hand."""
    images = iter(question.get("images", [question.get("image")]))
    text = question["question"] if "<image>" in question["question"] else None
    if text is None:
        text = "<image>" * len(question.get("images", [0])) + question["question"]
    content = []
    for number, piece in enumerate(text.split("<image>")):
        if number:
            content.append({"type": "image", "image": Image.open(next(images)).convert("RGB")})
        if piece.strip():
            content.append({"type": "text", "text": piece.strip()})
    return content


def test_answers_are_those_of_generate_on_messages_that_hold_the_images(pair, questions):
    model, processor = pair
    expected = {}
    for question in questions:
        inputs, _ = one_step(pair, parts(question))
        sequence = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected[question["question_id"]] = processor.tokenizer.decode(sequence, skip_special_tokens=True).strip()
    assert ask(pair, questions) == ask(pair, questions, batch_size=1) == expected
    assert len(set(expected.values())) > 2


def test_images_that_change_places_change_the_logits_and_so_does_their_place_in_the_text(pair, questions):
    _, logits = one_step(pair, parts(questions[2]))
    _, swapped = one_step(pair, parts(questions[3]))
    assert (logits - swapped).abs().max() > 1e-3
    if type(pair[1]).__name__ != "LlavaProcessor":  # whose template writes all images first
        first = questions[2] | {"question": "<image><image> compare with this : is there a mass ?"}
        assert (logits - one_step(pair, parts(first))[1]).abs().max() > 1e-3


def test_a_list_of_one_image_is_asked_as_one_image_and_scored_as_one(pair, questions):
    one = questions[0]
    listed = {key: value for key, value in one.items() if key != "image"} | {"images": [one["image"]]}
    assert build_prompt(pair[1], listed) == build_prompt(pair[1], one)
    assert ask(pair, [listed]) == ask(pair, [one])
    assert score(pair, [listed]) == score(pair, [one])


def test_likelihoods_in_batches_are_those_of_one_option_after_the_other(pair, questions):
    batched = score(pair, questions)
    for question in questions:
        for place, option in enumerate(OPTIONS):
            alone = score(pair, [question | {"options": [option]}])[question["question_id"]]
            assert batched[question["question_id"]][place] == pytest.approx(alone[0], abs=1e-4)
    assert batched["2"] != pytest.approx(batched["3"], abs=1e-4)  # the same images, changed about


def test_blank_images_take_the_sight_of_every_image(pair, questions, paths):
    small = [path for number, path in enumerate(paths) if number % 2 == 0]  # of one shape
    orders = ([small[0], small[1]], [small[2], small[0]], [small[1], small[2]])
    row = {"question": "<image> compare with <image> this : is there a mass ?", "options": OPTIONS[:1]}
    rows = [row | {"question_id": str(number), "images": order} for number, order in enumerate(orders)]
    assert len(set(ask(pair, rows, blank_images=True).values())) == 1
    blind, seen = (score(pair, rows, blank_images=blank) for blank in (True, False))
    assert blind["0"] == pytest.approx(blind["1"], abs=1e-5)
    assert blind["0"] == pytest.approx(blind["2"], abs=1e-5)
    assert abs(seen["0"][0] - seen["1"][0]) > 1e-3
    assert abs(seen["0"][0] - seen["2"][0]) > 1e-3


def test_the_content_of_a_question_has_its_images_where_it_says():
    row = {"question_id": "7", "question": "Then <image>\nnow <image> grown?", "images": ["/a.png", "/b.png"]}
    assert question_content(row) == [
        {"type": "text", "text": "Then"},
        {"type": "image", "path": "/a.png"},
        {"type": "text", "text": "now"},
        {"type": "image", "path": "/b.png"},
        {"type": "text", "text": "grown?"},
    ]
    first = question_content(row | {"question": " Grown? "})
    assert [part.get("path") or part["text"] for part in first] == ["/a.png", "/b.png", " Grown? "]
    with pytest.raises(ValueError, match=r"Question '7', `question`: 3 <image> placeholder\(s\) for 2 image\(s\) in"):
        question_content(row | {"question": "<image><image><image> grown?"})
    for images in ([], "/a.png", None, [None]):
        with pytest.raises(ValueError, match=r"Question '7', `images`: expected a list of at least one path, got"):
            question_content(row | {"images": images})


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"images": []}, r"row 3, `images` is an empty list"),
        ({"images": ["0.png", "gone.png"]}, r"row 3, `images\[1\]`: .*gone\.png is missing"),
        ({"images": ["0.png", 1]}, r"row 3, `images\[1\]`: expected the path of an image below .*, got 1"),
        ({"image": "0.png", "images": ["1.png"]}, r"row 3 has both `image` and `images`"),
        ({"image": None}, r"row 3, `image`: expected the path"),
    ],
)
def test_images_that_cannot_be_found_are_refused_by_row_and_field(paths, tmp_path, record, words):
    shutil.copy(paths[0], tmp_path / "0.png")
    with pytest.raises(ValueError, match=words):
        find_images(tmp_path, record, "row 3")


def test_placeholders_that_do_not_fit_the_images_are_refused_by_row_and_field():
    record = {"value": "<image> or <image> or <image>?"}
    with pytest.raises(ValueError, match=r"row 3, `value`: 3 <image> placeholder\(s\) for 2 image\(s\) in `images`"):
        read_question(record, "value", "row 3", ["/a.png", "/b.png"])
    assert read_question(record, "value", "row 3", ["/a.png"] * 3) == record["value"]


def test_leakage_is_of_all_images_of_a_question(paths):
    a, b, c, d, e = paths

    def row(question_id, *images, answer="yes"):
        return {"question_id": question_id, "images": list(images), "question": "Grown?", "answer": answer}

    asked = [row("same", a, b), row("turned", b, a), row("half", a, c), row("other", d, e)]
    trained = [row("", a, b), row("", a, c, answer="no"), {"image": c, "question": "Grown?", "answer": "yes"}]
    leakage = find_leakage(asked, trained)
    assert (leakage["num_test_images"], leakage["num_test_images_in_training"]) == (5, 3)
    assert leakage["num_questions_on_them"] == 3
    assert leakage["triplet_question_ids"] == ["same"]


def test_questions_about_the_same_images_in_any_order_are_drawn_together(paths):
    hashes = {path: hash_file(path) for path in paths}
    one = identify_images({"image": paths[0]}, hashes)
    assert one == hash_file(paths[0]).hex()[:16] == identify_images({"images": [paths[0]]}, hashes)
    both = identify_images({"images": paths[:2]}, hashes)
    assert both == identify_images({"images": paths[1::-1]}, hashes)
    assert len({one, both, identify_images({"images": paths[:3]}, hashes)}) == 3


def test_the_fingerprint_of_single_images_is_what_it_was_and_that_of_several_knows_their_order(paths, tmp_path):
    (tmp_path / "0.png").write_bytes(b"bytes of an image")
    image = str(tmp_path / "0.png")
    row = {"question_id": "1", "image": image, "question": "Organ?", "answer": "lung", "groups": {}}
    # As it was before questions could have several images, so that older runs go on.
    expected = "40294d6c871124798b75da869605397740f10aa929102b7fb11b53021f0741ff"
    assert fingerprint_questions([row], {image: hash_file(image)}) == expected
    hashes = {path: hash_file(path) for path in paths}
    several = {key: value for key, value in row.items() if key != "image"}
    prints = [fingerprint_questions([several | {"images": images}], hashes) for images in (paths[:2], paths[1::-1])]
    assert prints[0] != prints[1]


def write_pairs(folder, paths):
    """Questions about two images each in LLaVA-Med's form of VQA-RAD, and one about one image."""
    rows, images = [], folder / "images"
    images.mkdir(parents=True)
    for path in paths:
        shutil.copy(path, images)
    for number in range(6):
        asked = ("<image> then <image> more?", "mass in the lung?")[number % 2]
        rows.append(
            {
                "id": str(number),
                "images": [f"{number % 4}.png", f"{number % 3 + 1}.png"],
                "answer_type": ("OPEN", "CLOSED")[number % 2],
                "conversations": [
                    {"from": "human", "value": asked},
                    {"from": "gpt", "value": ("left lung", "yes")[number % 2]},
                ],
            }
        )
    rows[5] |= {"images": "4.png"}
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
def test_a_run_over_several_images_is_written_goes_on_and_is_shown(tiny_model, paths, tmp_path):
    data = write_pairs(tmp_path / "data", paths)
    command = ["--model", str(tiny_model), "--benchmark", "vqa_rad", "--data", str(data), "--max_new_tokens", "6"]
    output = tmp_path / "run"
    run.main([*command, "--output", str(output)])
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert rows[0]["images"] == ["0.png", "1.png"]
    assert (rows[5]["image"], "images" in rows[5]) == ("4.png", False)
    assert rows[0]["question"] == "<image> then <image> more?"
    local = json.loads((output / "local_paths.json").read_text())["images"]
    assert local["0"] == [str(data / "images" / name) for name in rows[0]["images"]]
    scores = [json.loads(line) for line in (output / "scores.jsonl").read_text().splitlines()]
    assert len({row["image_id"] for row in scores}) == 6
    assert (output / "report.html").read_text().count("data:image/jpeg;base64,") == 2 * sum(
        row["scores"].get("open_recall", row["scores"].get("closed_accuracy")) < 50 for row in scores[:5]
    ) + (scores[5]["scores"]["closed_accuracy"] < 50)

    before = (output / "predictions.jsonl").read_bytes()
    (output / "predictions.jsonl").write_bytes(b"".join(before.splitlines(keepends=True)[:2]))
    run.main([*command, "--output", str(output), "--batch_size", "2"])
    assert (output / "predictions.jsonl").read_bytes() == before

    turned = json.loads((data / "test.json").read_text())
    turned[0]["images"].reverse()
    (data / "test.json").write_text(json.dumps(turned))
    with pytest.raises(ValueError, match="`data_fingerprint` was"):
        run.main([*command, "--output", str(output)])
    run.main([*command, "--output", str(tmp_path / "turned")])
    with pytest.raises(ValueError, match="cannot be compared"):
        check_same_questions([read_run_folder(output), read_run_folder(tmp_path / "turned")])


@pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")
def test_a_question_with_a_damaged_image_among_several_is_left_out_naming_the_file(tiny_model, paths, tmp_path):
    data = write_pairs(tmp_path / "data", paths)
    image = data / "images" / "3.png"
    image.write_bytes(image.read_bytes()[:80])
    command = ["--model", str(tiny_model), "--benchmark", "vqa_rad", "--data", str(data), "--max_new_tokens", "6"]
    with pytest.warns(UserWarning, match=r"2 bad rows left out \(question 2: the image .*3\.png cannot be read"):
        run.main([*command, "--output", str(tmp_path / "run"), "--no_blank_images"])
    about = [row["question_id"] for row in load_questions(data) if str(image) in row.get("images", [])]
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    answered = [json.loads(line)["question_id"] for line in lines]
    assert about == ["2", "3"]
    assert answered == ["0", "1", "4", "5"]
