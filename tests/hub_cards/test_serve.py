"""`transformers serve`, told of our class, asked by OpenAI's own client."""

import asyncio
import base64
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from logramed.eval.stop_strings import StopStrings
from logramed.hub_cards import serve
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


openai = pytest.importorskip("openai", reason="needs openai: pip install 'logramed[serve]'")
pytest.importorskip("fastapi", reason="needs fastapi: pip install 'logramed[serve]'")
PROGRAM = Path(__file__).parents[2] / "hub_cards" / "serve.py"
START_SECONDS = 120
QUESTION, SECOND = "what organ is shown ?", "is there a mass ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny-model"
    tiny_model(text_sizes={"vocab_size": 84}, seed=2).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
    }
    log = (folder.parent / "log").open("w+")
    command = [sys.executable, str(PROGRAM), "--model", str(folder), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            break
        except urllib.error.URLError:
            log.seek(0)
            assert server.poll() is None, log.read()
            assert time.monotonic() < end
            time.sleep(0.2)
    yield client
    server.terminate()
    server.wait()


def picture():
    return Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30))


def data_url(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask(url, question=QUESTION):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def options(folder):
    return {"model": str(folder), "max_tokens": 6, "temperature": 0.0}


def expected_answer(folder, messages):
    model, processor = tiny_model(text_sizes={"vocab_size": 84}, seed=2), tiny_processor()
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        sequence = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.decode(sequence[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def as_ours(messages, image):
    """The messages with the image itself, as the processor takes them."""
    parts = [
        {"type": "image", "image": image} if part["type"] == "image_url" else part for part in messages[0]["content"]
    ]
    return [{"role": "user", "content": parts}, *messages[1:]]


def test_an_answer_over_http_is_that_of_the_model(client, folder):
    messages = ask(data_url(picture()))
    reply = client.chat.completions.create(messages=messages, **options(folder))
    expected = expected_answer(folder, as_ours(messages, picture()))
    assert reply.choices[0].message.content.strip() == expected.strip() != ""


def test_a_streamed_answer_is_the_same_in_pieces(client, folder):
    messages = ask(data_url(picture()))
    stream = client.chat.completions.create(messages=messages, stream=True, **options(folder))
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    expected = expected_answer(folder, as_ours(messages, picture()))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == expected.strip()


def test_a_second_turn_and_a_system_message_are_understood(client, folder):
    messages = [
        *ask(data_url(picture())),
        {"role": "assistant", "content": "lung"},
        {"role": "user", "content": SECOND},
    ]
    reply = client.chat.completions.create(messages=messages, **options(folder))
    assert reply.choices[0].message.content.strip() == expected_answer(folder, as_ours(messages, picture())).strip()
    with_system = [{"role": "system", "content": "be brief"}, *messages]
    reply = client.chat.completions.create(messages=with_system, **options(folder))
    ours = [{"role": "system", "content": "be brief"}, *as_ours(messages, picture())]
    assert reply.choices[0].message.content.strip() == expected_answer(folder, ours).strip()


def test_another_image_gives_another_input(client, folder):
    answers = {
        client.chat.completions.create(messages=ask(data_url(image)), **{**options(folder), "max_tokens": 20})
        .choices[0]
        .message.content
        for image in (picture(), Image.new("RGB", (30, 20), "white"), Image.new("RGB", (30, 20), "red"))
    }
    assert len(answers) > 1


def test_what_openai_allows_works(client, folder):
    messages = [{"role": "developer", "content": "be brief"}, *ask(data_url(picture()))]
    further = {"user": "me", "n": 1, "top_p": 1.0, "seed": 3, "frequency_penalty": 0.0}
    reply = client.chat.completions.create(messages=messages, **options(folder), **further)
    ours = [{"role": "system", "content": "be brief"}, *as_ours(messages[1:], picture())]
    assert reply.choices[0].message.content.strip() == expected_answer(folder, ours).strip()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop(client, folder, stream):
    messages = ask(data_url(picture()))
    whole = client.chat.completions.create(messages=messages, **options(folder)).choices[0].message.content
    words = whole.split()
    stop = next(word for word in words[1:] if word not in words[0])
    reply = client.chat.completions.create(messages=messages, stop=[stop, "never"], stream=stream, **options(folder))
    if stream:
        content = "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
    else:
        content = reply.choices[0].message.content
        assert reply.usage.completion_tokens < 6
    assert content.strip() == whole[: whole.index(stop)].strip() != ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be 1 or more, got 0"),
        ({"max_completion_tokens": -1}, "`max_completion_tokens` must be 1 or more, got -1"),
        ({"temperature": -1}, "`temperature` must be 0 or more, got -1"),
        ({"n": 2}, "`n` is not supported, got 2."),
        ({"stop": [""]}, "at least one character"),
        ({"logprobs": True}, "`logprobs` is not supported"),
        ({"response_format": {"type": "json_object"}}, "`response_format` is not supported"),
        ({"model": "someone/other"}, "someone/other"),
        ({"messages": []}, "`messages` must be a list of at least one message"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "`role` of a message must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "type text or image_url"),
        ({"messages": ask("data:image/png;base64,bm8gaW1hZ2U=")}, "image"),
        ({"messages": [{"role": "user", "content": "an <image> of a lung"}]}, "A text contains <image>: send"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words_and_the_server_goes_on(client, folder, changes, words):
    request = {"messages": ask(data_url(picture())), **options(folder), **changes}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**request)
    assert words in refused.value.response.json()["detail"]
    assert client.chat.completions.create(messages=ask(data_url(picture())), **options(folder)).choices


@pytest.mark.parametrize(
    ("pieces", "turn_end", "said"),
    [
        (["left", " lu", "ng", " END", " more"], None, "left lung "),
        (["a", "E", "N", "x"], None, "aENx"),
        (["a", "EN"], None, "aEN"),
        (["aEND"], None, "a"),
        (["left", " lung", "\n", "##", "# Human"], "###", "left lung"),
        (["left", " lung", "\n#"], "###", "left lung"),
        (["left ", "lung #", "2"], "###", "left lung #2"),
        (["left", " END ", "###"], "###", "left"),
    ],
)
def test_streamed_pieces_end_before_a_stop_and_before_the_end_of_a_turn(pieces, turn_end, said):
    from logramed.hub_cards.chat_requests import StoppingQueue

    async def collect():
        queue = asyncio.Queue()
        for piece in [*pieces, None]:
            queue.put_nowait(piece)
        stop = StopStrings(tiny_processor().tokenizer, ["END", "###"], turn_end=turn_end)
        stopping, found = StoppingQueue(queue, stop), []
        while (piece := await stopping.get()) is not None:
            found.append(piece)
        return found

    assert "".join(asyncio.run(collect())).rstrip() == said.rstrip()


@pytest.mark.parametrize("stop_string", [None, "###"])
def test_an_answer_of_the_server_ends_where_the_processor_says_that_turns_end(stop_string):
    from logramed.hub_cards.chat_requests import StoppingManager

    class OneAnswer:
        """In place of the server's manager."""

        async def generate_non_streaming(self, model, processor, inputs, config, **options):
            assert config.stop_strings is None  # transformers' own criterion does not know all tokenizers
            criteria.extend(inputs.get("stopping_criteria", []))
            return "left lung\n### Human", 7

        def generate_streaming(self, model, processor, inputs, config, **options):
            queue = asyncio.Queue()
            for piece in ("left", " lung\n", "##", "# Human", None):
                queue.put_nowait(piece)
            return queue, "streamer"

    async def stream(queue):
        pieces = []
        while (piece := await queue.get()) is not None:
            pieces.append(piece)
        return "".join(pieces)

    criteria, processor = [], tiny_processor(stop_string=stop_string)
    inputs = processor(text="what", return_tensors="pt")
    request = (None, processor, inputs)
    config = GenerationConfig(stop_strings=["never said"])
    text, length = asyncio.run(StoppingManager(OneAnswer()).generate_non_streaming(*request, config))
    expected = "left lung\n### Human" if stop_string is None else "left lung"
    assert (text, length) == (expected, 7)
    answers = [
        torch.tensor([[*inputs["input_ids"][0], *processor(text=said)["input_ids"][0]]]) for said in ("#", "###")
    ]
    assert [bool(criteria[0](answer)) for answer in answers] == [False, stop_string is not None]
    queue, streamer = StoppingManager(OneAnswer()).generate_streaming(*request, GenerationConfig())
    assert (asyncio.run(stream(queue)), streamer) == (expected, "streamer")


def test_the_example_of_the_documentation_answers(client, folder, monkeypatch, tmp_path, capsys):
    readme = Path(__file__).parents[2] / "hub_cards" / "README.md"
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(), flags=re.MULTILINE | re.DOTALL)
    [code] = [block for block in blocks if "openai" in block]
    image = tmp_path / re.search(r'Path\("([^"]+)"\)', code)[1]
    image.parent.mkdir(parents=True)
    picture().save(image)
    monkeypatch.chdir(tmp_path)
    code = code.replace("http://127.0.0.1:8000/v1", str(client.base_url)).replace("runs/quickstart/model", str(folder))
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_serving_without_a_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        serve.main([])
    assert "--model" in capsys.readouterr().err


def test_serving_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"pip install 'logramed\[serve\]'"):
        serve.main(["--model", "org/model"])
