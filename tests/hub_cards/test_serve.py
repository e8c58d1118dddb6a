"""`transformers serve`, told of our class, asked by OpenAI's own client."""

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

from logramed.hub_cards import serve
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


openai = pytest.importorskip("openai", reason="needs openai: pip install 'logramed[serve]'")
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


def test_an_image_that_cannot_be_read_is_an_error_and_the_server_goes_on(client, folder):
    with pytest.raises(openai.APIError):  # 500, after which uvicorn closes the connection
        client.chat.completions.create(messages=ask("data:image/png;base64,bm8gaW1hZ2U="), **options(folder))
    reply = client.with_options(max_retries=2).chat.completions.create(
        messages=ask(data_url(picture())), **options(folder)
    )
    assert reply.choices[0].message.content


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
    with pytest.raises(SystemExit, match=r"pip install 'logramed\[serve\]'"):
        serve.main(["--model", "org/model"])
