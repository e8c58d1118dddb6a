"""The demo: images, answers, confidence and relevance by themselves, and the page in a real browser."""

import json
import math
import os
import re
import shutil
import threading

import numpy as np
import png
import pytest
import torch
from PIL import Image

from logramed.eval.grounding.maps import read_maps
from logramed.eval.grounding.region_weights import ATTENTION_TEMPERATURE
from logramed.trainer.data.phantom_images import draw_phantom, sample_phantom
from tests.conftest import NEEDS_CHROMIUM
from tests.hub_cards.space_app import FOLDER, space_modules
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


pytest.importorskip("gradio", reason="needs gradio: pip install 'logramed[demo]'")
CHROMIUM = os.environ.get("LOGRAMED_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NEEDS_CHROMIUM)
PATIENCE = 60_000  # milliseconds that the browser waits for what must come
QUESTION, SECOND = "what organ is shown ?", "is there a mass ?"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, space_modules() as modules:
        # gradio deletes its files when it ends, and by default all its processes share one folder.
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield modules


@pytest.fixture(scope="module")
def assistant(space, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "tiny-model"
    tiny_model(text_sizes={"vocab_size": 84}).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return space["conversation"].Assistant(str(folder))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(path)
    return path


# Images


def test_uploads_become_grey_or_rgb_of_a_size_that_can_be_shown(space, tmp_path):
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "wide.jpg")
    Image.new("RGBA", (5, 5), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    read = space["images"].read_upload
    wide = read(tmp_path / "wide.jpg")
    assert (wide.mode, max(wide.size), wide.width) == ("RGB", wide.width, 2 * wide.height)
    assert max(wide.size) <= 2048
    assert read(tmp_path / "clear.png").getpixel((0, 0)) == (0, 0, 0)


def test_deep_grey_images_keep_their_contrast(space, tmp_path):
    Image.fromarray(np.array([[0, 2047], [4095, 1024]], dtype=np.uint16)).save(tmp_path / "ct.png")
    image = space["images"].read_upload(tmp_path / "ct.png")
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 127], [255, 64]]


def test_deep_colour_images_keep_their_contrast_too(space, tmp_path):
    values = np.array([[[0, 2047, 4095], [4095, 0, 0]]], dtype=np.uint16)
    with (tmp_path / "ct.png").open("wb") as file:
        png.Writer(2, 1, greyscale=False, bitdepth=16).write(file, values.reshape(1, -1).tolist())
    image = space["images"].read_upload(tmp_path / "ct.png")
    assert np.asarray(image).tolist() == [[[0, 127, 255], [255, 0, 0]]]


def test_photographs_are_turned_as_their_camera_says(space, tmp_path):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[274] = 6  # a quarter turn
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert space["images"].read_upload(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.png", b"no image", r"notes\.png cannot be read as a PNG or JPEG"),
        ("scan.gif", "gif", r"scan\.gif cannot be read as a PNG or JPEG"),
        ("cut.png", "cut", r"cut\.png cannot be read"),
        ("huge.png", "huge", r"huge\.png has 12000 x 9000 pixels.* 100 million"),
        ("bomb.png", "bomb", r"bomb\.png is too large"),
    ],
)
def test_uploads_that_cannot_be_used_are_named(space, tmp_path, name, content, words):
    path = tmp_path / name
    write_bad_upload(path, content)
    with pytest.raises(space["images"].UploadError, match=words):
        space["images"].read_upload(path)


def write_bad_upload(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "gif":
        Image.new("L", (4, 4)).save(path, "GIF")
    elif content == "cut":
        Image.effect_noise((200, 200), 50).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    else:
        size = (12000, 9000) if content == "huge" else (20000, 20000)
        Image.new("1", size).save(path)


def test_example_images_are_what_the_phantoms_generator_draws(space):
    examples = json.loads((FOLDER / "examples" / "examples.json").read_text())
    assert len({example["question"] for example in examples}) == len(examples) == 4
    for example in examples:
        drawn = example["drawn"]
        generator = np.random.default_rng(drawn["seed"])
        phantoms = [sample_phantom(generator) for _ in range(drawn["number"] + 1)]
        expected = draw_phantom(phantoms[-1], drawn["image_size"])
        np.testing.assert_array_equal(np.asarray(Image.open(FOLDER / "examples" / example["image"])), expected)


# Answers


def turns_of(space, *questions, images=()):
    turns = [space["conversation"].Turn(question) for question in questions]
    turns[0].images = [str(path) for path in images]
    return turns


def test_streamed_text_is_that_of_generate(space, assistant, picture):
    turns = turns_of(space, QUESTION, images=[picture])
    texts = [turn.answer for turn in assistant.answer(turns, 6)]
    inputs = assistant.encode(turns_of(space, QUESTION, images=[picture]))
    sequence = assistant.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = assistant.processor.decode(sequence[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts[-1] == expected.strip() != ""
    assert len(texts) > 2
    assert all(texts[-1].startswith(text.strip()) for text in texts)


def test_an_answer_ends_before_the_stop_string_of_the_processor(space, assistant, picture, monkeypatch):
    lengths, generate = [], assistant.model.generate

    def draw(**arguments):  # the likeliest words of this model are all the same
        torch.manual_seed(1)
        output = generate(**arguments | {"do_sample": True, "temperature": 1.5})
        lengths.append(len(output.logits))
        return output

    monkeypatch.setattr(assistant.model, "generate", draw)
    *_, whole = assistant.answer(turns_of(space, QUESTION, images=[picture]), 12)
    words = whole.answer.split()
    stop_string = next(word for word in words[1:] if word not in words[0])
    monkeypatch.setattr(assistant.processor, "stop_string", stop_string)
    turns = turns_of(space, QUESTION, images=[picture])
    shown = [turn.answer for turn in assistant.answer(turns, 12)]
    assert shown[-1] == whole.answer[: whole.answer.index(stop_string)].strip() != ""
    assert all(shown[-1].startswith(text) for text in shown)
    assert lengths[1] < 12
    # With a text that never comes whole, a beginning of it at the end goes.
    monkeypatch.setattr(assistant.processor, "stop_string", words[-1] + "END")
    *_, turn = assistant.answer(turns_of(space, QUESTION, images=[picture]), 12)
    assert turn.answer == whole.answer.removesuffix(words[-1]).rstrip()
    assert lengths[2] == 12


def test_confidence_is_the_mean_probability_of_the_tokens_taken(space, assistant, picture):
    turns = turns_of(space, QUESTION, images=[picture])
    *_, turn = assistant.answer(turns, 5)
    inputs = assistant.encode(turns_of(space, QUESTION, images=[picture]))
    sequence = assistant.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    with torch.no_grad():
        logits = assistant.model(
            input_ids=sequence, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(sequence)
        ).logits
    start = inputs["input_ids"].shape[1]
    probabilities = logits[0, start - 1 : -1].softmax(-1).gather(-1, sequence[0, start:, None])
    assert turn.confidence == pytest.approx(math.exp(probabilities.log().mean()), rel=1e-4)


def test_a_checkpoint_of_another_code_is_refused_with_the_command_that_converts_it(space, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_mistral"}))
    with pytest.raises(ValueError, match=r"`--model` .*in another format.* logramed-convert --from llava-med-v1\.5 "):
        space["conversation"].Assistant(str(tmp_path))


def test_a_model_that_is_not_there_is_one_sentence_and_exit_code_2(space, capsys, monkeypatch):
    monkeypatch.delenv("LOGRAMED_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stopped:
        space["app"].main(["--model", "runs/nothing/model"])
    assert stopped.value.code == 2
    assert re.fullmatch(
        r"app.py: error: `--model` runs/nothing/model: there is no such folder in .*\n", capsys.readouterr().err
    )


def test_a_second_turn_sees_the_first_and_its_images(space, assistant, picture):
    turns = turns_of(space, QUESTION, images=[picture, picture])
    *_, _ = assistant.answer(turns, 3)
    turns.append(space["conversation"].Turn(SECOND))
    inputs = assistant.encode(turns)
    text = assistant.processor.decode(inputs["input_ids"][0])
    assert inputs["pixel_values"].shape[0] == 2
    assert re.search(r"organ .* ASSISTANT : \w.* USER : is there a mass", text)


def test_a_generation_ends_where_nobody_listens_any_more(space, assistant, picture):
    turns = turns_of(space, QUESTION, images=[picture])
    before = threading.active_count()
    answering = assistant.answer(turns, 512)
    next(answering)
    answering.close()
    assert threading.active_count() == before
    assert len(turns[0].answer.split()) < 400


def test_what_generation_raises_reaches_who_asked(space, assistant, picture, monkeypatch):
    monkeypatch.setattr(assistant.model, "generate", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(assistant.answer(turns_of(space, QUESTION, images=[picture])))


def test_an_image_placeholder_in_a_question_is_no_image(space, assistant, picture):
    inputs = assistant.encode(turns_of(space, "what <image> is <image> shown ?", images=[picture]))
    assert inputs["pixel_values"].shape[0] == 1


# Relevance


def test_relevance_is_gradient_times_input_of_each_image_token(space, assistant, picture):
    turns = turns_of(space, QUESTION, images=[picture, picture])
    turns[0].answer = "lung left"
    found = space["relevance"].image_relevance(assistant, turns)
    assert [values.shape for values in found] == [(2, 2), (2, 2)]
    inputs = assistant.encode(turns, with_last_answer=True)
    start = assistant.encode(turns)["input_ids"].shape[1]
    features = {}

    def scale(module, arguments, output):
        features["scales"] = torch.ones(output.shape[:2], requires_grad=True)
        return output * features["scales"][..., None]

    handle = assistant.model.model.multi_modal_projector.register_forward_hook(scale)
    logits = assistant.model(**inputs).logits[0, start - 1 : -1]
    handle.remove()
    # The derivative by a factor on a token is the sum of its features times their gradients.
    logits.log_softmax(-1).gather(-1, inputs["input_ids"][0, start:, None]).sum().backward()
    expected = features["scales"].grad.abs().reshape(2, 2, 2).numpy()
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-4)
    assert all(weight.grad is None for weight in assistant.model.parameters())


def test_relevance_of_pooled_images_lies_on_the_grid_of_their_tokens(space, picture, tmp_path):
    model = tiny_model(text_sizes={"vocab_size": 84}, vision_sizes={"patch_size": 2}, image_token_pooling=3)
    model.save_pretrained(tmp_path / "pooled")
    tiny_processor(num_image_tokens=9).save_pretrained(tmp_path / "pooled")
    turns = turns_of(space, QUESTION, images=[picture, picture])
    turns[0].answer = "lung left"
    found = space["relevance"].image_relevance(space["conversation"].Assistant(str(tmp_path / "pooled")), turns)
    assert [values.shape for values in found] == [(3, 3), (3, 3)]


def test_images_of_an_answer_are_drawn_on_one_scale(space, assistant, picture, monkeypatch):
    turns = turns_of(space, QUESTION, images=[picture, picture])
    weights = [np.full((2, 2), 0.5), np.full((2, 2), 1.0)]
    monkeypatch.setattr(space["relevance"], "image_relevance", lambda *arguments: weights)
    (weak, first), (strong, second) = space["relevance"].draw_relevance(assistant, turns)
    assert (first, second) == ("Image 1", "Image 2")
    assert weak.size == strong.size == (30, 20)
    original = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    changes = [np.abs(np.asarray(image) - original) for image in (weak, strong)]
    assert np.allclose(2 * changes[0], changes[1], atol=2)


def test_each_question_weighs_the_regions_of_the_images_so_far_as_an_evaluation_does(space, assistant, tmp_path):
    paths = []
    for number, size in enumerate([(8, 8), (8, 16)]):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    turns = turns_of(space, QUESTION, SECOND, "where ?", images=paths[:1])
    turns[1].images, turns[0].answer, turns[1].answer = paths[1:], "left lung", "yes"
    found = space["relevance"].matched_regions(assistant, turns)
    assert [len(grids) for grids in found] == [1, 2, 2]
    rows = [{"question_id": "0", "question": QUESTION, "image": paths[0]}]
    ((_, maps),) = read_maps(assistant.model, assistant.processor, rows, batch_size=1, progress=False)
    np.testing.assert_allclose(found[0], maps["answer_state"], rtol=1e-4)
    # The conversation up to the second answer alone: what comes later changes nothing.
    inputs = assistant.encode(turns[:2])
    with torch.no_grad():
        state = assistant.model.model(**inputs).last_hidden_state[0, -1]
        features = assistant.model.model.get_image_features(inputs["pixel_values"]).pooler_output
    cosines = torch.cosine_similarity(torch.cat(list(features)), state[None], dim=-1)
    expected = (cosines / ATTENTION_TEMPERATURE).softmax(0).reshape(2, 2, 2).numpy()
    np.testing.assert_allclose(found[1], expected, rtol=1e-3)
    titles = [title for _, title in space["relevance"].draw_matched_regions(assistant, turns)]
    shares = [round(100 * float(expected[place].sum())) for place in (0, 1)]
    assert titles[:2] == ["Q1, image 1: 100%", f"Q2, image 1: {shares[0]}%"]
    assert len(titles) == 5


def test_a_model_without_a_square_of_image_tokens_is_refused(space):
    with pytest.raises(ValueError, match="The 7 tokens of an image do not form a square"):
        space["relevance"].lay_on_grid(np.zeros(7))


# Uploads and the command line


def test_uploads_are_forgotten_when_they_are_old(space, assistant, picture):
    page = space["app"].Page(assistant)
    old = page.read_message({"text": QUESTION, "files": [str(picture)]}, []).images[0]
    os.utime(old, (0, 0))
    new = page.read_message({"text": QUESTION, "files": [str(picture)]}, []).images[0]
    assert [os.path.exists(path) for path in (old, new)] == [False, True]


def test_a_page_without_a_model_is_refused(space, monkeypatch, capsys):
    monkeypatch.delenv("MODEL_ID", raising=False)
    with pytest.raises(SystemExit):
        space["app"].read_arguments([])
    assert "Give --model, a folder or an id on the Hub, or set MODEL_ID" in capsys.readouterr().err
    monkeypatch.setenv("MODEL_ID", "org/model")
    assert space["app"].read_arguments([]).model == "org/model"


# In a browser


@pytest.fixture(scope="module")
def address(space, assistant):
    page = space["app"].Page(assistant).build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **space["app"].launch_options())
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser, address):
    contexts, problems = [], []

    def open_one(width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: note_foreign(request.url))
        page.goto(address)
        page.wait_for_selector("#message textarea")
        return page

    def note_foreign(url):
        if not url.startswith((address, "data:", "blob:")):
            problems.append(f"asks {url}")

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def upload(page, *paths):
    with page.expect_response(lambda response: "upload" in response.url and response.request.method == "POST"):
        page.set_input_files("#message input[type=file]", [str(path) for path in paths])
    page.wait_for_function(
        "count => document.querySelectorAll('#message .thumbnail-item').length >= count", arg=len(paths)
    )


def send(page, question):
    page.fill("#message textarea", question)
    page.press("#message textarea", "Enter")


def wait_for_answers(page, count):
    try:
        page.wait_for_function("count => document.querySelectorAll('#chat .confidence').length === count", arg=count)
        page.wait_for_selector("#stop", state="hidden")
    except Exception as error:  # of playwright, which may not be installed
        raise AssertionError(f"no {count} answers on a page that says: {page.inner_text('body')}") from error


def said(page):
    return page.inner_text("#chat")


@needs_chromium
def test_a_user_uploads_asks_reads_asks_again_and_looks(open_page, picture):
    page = open_page()
    assert "Not for clinical use." in page.inner_text("#header")
    upload(page, picture)
    send(page, QUESTION)
    wait_for_answers(page, 1)
    assert QUESTION in said(page)
    assert re.search(r"Confidence \d+\.\d% \(mean token probability; not calibrated\)", said(page))
    assert page.input_value("#message textarea") == ""
    send(page, SECOND)
    wait_for_answers(page, 2)
    page.click("#show_answer")
    page.wait_for_selector("#relevance img")
    assert "It is not an explanation" in page.inner_text("#side")
    page.click("#clear")
    page.wait_for_function("!document.querySelector('#chat .confidence')")
    assert page.is_disabled("#show_answer")


@needs_chromium
def test_answers_come_piece_by_piece_and_can_be_stopped(open_page, assistant, picture, monkeypatch):
    go_on = threading.Event()
    process = type(assistant.processor.tokenizer).decode
    num_pieces = []

    def decode_slowly(self, *args, **kwargs):
        num_pieces.append(1)
        if len(num_pieces) > 4:  # the browser has to see the first words before the rest comes
            go_on.wait(PATIENCE / 1000)
        return process(self, *args, **kwargs)

    monkeypatch.setattr(type(assistant.processor.tokenizer), "decode", decode_slowly)
    page = open_page()
    upload(page, picture)
    send(page, QUESTION)
    page.wait_for_function("[...document.querySelectorAll('#chat .bot')].some(bot => /[a-z]/i.test(bot.innerText))")
    assert page.is_visible("#stop")
    assert page.query_selector("#chat .confidence") is None
    page.click("#stop")
    go_on.set()
    page.wait_for_selector("#stop", state="hidden")
    assert re.search(r"[a-z]", page.inner_text("#chat .bot"))
    # While the browser waits for the end of what it cancelled, it takes no message: a person presses Enter again.
    send(page, SECOND)
    page.wait_for_timeout(2000)
    if page.input_value("#message textarea") == SECOND:
        page.press("#message textarea", "Enter")
    wait_for_answers(page, 1)


@needs_chromium
def test_an_example_asks_itself_and_two_images_of_one_conversation_are_both_shown(open_page, picture):
    page = open_page()
    page.get_by_role("button", name="CT of a head").click()
    wait_for_answers(page, 1)
    assert "Describe the image." in said(page)
    upload(page, picture)
    send(page, SECOND)
    wait_for_answers(page, 2)
    page.click("#show_answer")
    page.wait_for_function("document.querySelectorAll('#relevance img').length === 2")
    page.click("#show_matched")
    page.wait_for_function("document.querySelectorAll('#relevance img').length === 3")
    assert "Q2, image 1" in page.inner_text("#relevance")
    assert "as alignment weighs them" in page.inner_text("#side")


@needs_chromium
def test_uploads_that_cannot_be_used_are_said_to_be_and_change_nothing(open_page, picture, tmp_path):
    page = open_page()
    send(page, QUESTION)
    page.wait_for_selector("#status [role=alert]")
    assert "Add an image first" in page.inner_text("#status")
    write_bad_upload(tmp_path / "notes.png", b"no image")
    upload(page, tmp_path / "notes.png")
    send(page, QUESTION)
    page.wait_for_function("document.querySelector('#status').innerText.includes('notes.png cannot be read')")
    assert page.query_selector("#chat .bot") is None
    assert page.input_value("#message textarea") == QUESTION
    page.reload()
    page.wait_for_selector("#message textarea")
    write_bad_upload(tmp_path / "huge.png", "huge")
    upload(page, tmp_path / "huge.png")
    send(page, QUESTION)
    page.wait_for_function("document.querySelector('#status').innerText.includes('huge.png has 12000 x 9000 pixels')")
    large = tmp_path / "large.jpg"
    Image.new("RGB", (9000, 9000)).save(large)
    page.reload()
    page.wait_for_selector("#message textarea")
    upload(page, large)
    send(page, QUESTION)
    wait_for_answers(page, 1)
    assert page.evaluate("Math.max(...[...document.querySelectorAll('#chat img')].map(i => i.naturalWidth))") <= 2048


@needs_chromium
def test_two_users_at_once_see_their_own_conversations(open_page, picture):
    first, second = open_page(), open_page()
    for page, question in ((first, "is there a nodule ?"), (second, "is there a lobe ?")):
        upload(page, picture)
        send(page, question)
    for page, own, other in ((first, "nodule", "lobe"), (second, "lobe", "nodule")):
        wait_for_answers(page, 1)
        assert f"is there a {own} ?" in said(page)
        assert f"is there a {other} ?" not in said(page)


@needs_chromium
def test_the_page_is_used_by_keyboard_alone(open_page):
    page = open_page()
    for _ in range(30):
        page.keyboard.press("Tab")
        if "MRI of a head" in page.evaluate("document.activeElement.innerText || ''"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(outline.removesuffix("px")) >= 2
    page.keyboard.press("Enter")
    wait_for_answers(page, 1)
    page.focus("#message textarea")
    page.keyboard.type(SECOND)
    page.keyboard.press("Enter")
    wait_for_answers(page, 2)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, textarea, input:not([type=hidden])')].filter(
            e => e.offsetParent && !(e.innerText || e.ariaLabel || e.title || (e.labels && e.labels.length)
                || e.querySelector('img[alt]:not([alt=""])'))).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


@needs_chromium
@pytest.mark.parametrize("width", [390, 320, 768])
def test_no_width_needs_scrolling_sideways(open_page, width):
    page = open_page(width, 844)
    page.get_by_role("button", name="CT of a head").click()
    wait_for_answers(page, 1)
    page.click("#show_answer")
    page.wait_for_selector("#relevance img")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#message").bounding_box()
    assert box["width"] > 0.8 * min(width, 500)
