"""What must not be published is found, by its content rather than its name, and named; the rest goes through."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from logramed.hub_cards.contents import Contents
from logramed.hub_cards.screening import find_problems


HF_TOKEN = "hf_" + "aB3dE6gH" * 5  # of no account
PRIVATE_KEY = "-----BEGIN EC " + "PRIVATE KEY-----\nabc"


def png():
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    return file.getvalue()


def problems_of(name, content, folder=None):
    return find_problems(Contents({name: content}), folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"login({HF_TOKEN})", "a Hugging Face token"),
        (PRIVATE_KEY, "a private key"),
        ("key: sk-" + "abcd1234" * 6, "an API key"),
        ("aws AKIA" + "IOSFODNN7EXAMPLE", "an API key"),
        ("https://me:" + "secret123word@host.org/repo", "a password in a URL"),
        ("xoxb-" + "123456789012-123456789012-abcdefghijABCDEFGHIJabcd", "an API key"),
        ('{"output_dir": "/home/someone/runs"}', "a path of this machine, /home/someone"),
        ('{"output_dir": "C:\\\\Users\\\\someone\\\\runs"}', "a path of this machine, C:"),
        ("see /Users/me/notes.txt", "a path of this machine, /Users/me"),
        ('<img src="data:image/png;base64,iVBORw0KGgo=">', "holds an image"),
    ],
)
def test_what_must_not_be_published_is_named(content, words):
    [problem] = problems_of("notes.md", content.encode())
    assert problem.startswith("notes.md ")
    assert words in problem


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.bin", b"anything"),
        ("archive", b"PK\x03\x04data.pkl"),
        ("data", pickle.dumps([1, 2])),
        ("array.npy", b"\x93NUMPY"),
    ],
)
def test_pickles_are_refused_whatever_their_name(name, content):
    [problem] = problems_of(name, content)
    assert "pickle" in problem


def test_archives_of_torch_are_refused_whatever_their_name(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    assert zipfile.is_zipfile(tmp_path / "weights.safetensors")
    [problem] = problems_of("weights.safetensors", tmp_path / "weights.safetensors")
    assert "may hold a pickle" in problem


@pytest.mark.parametrize(("name", "content"), [("scan.png", png()), ("scan", png()), ("scan.dcm", b"\0" * 200)])
def test_images_that_are_not_known_to_be_generated_are_refused(name, content):
    [problem] = problems_of(name, content)
    assert "is or holds an image, which may show a patient" in problem
    assert find_problems(Contents({name: content}, generated_images={name})) == []


def test_the_token_of_this_account_is_found(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    [problem] = problems_of("notes.txt", b"\0" * 100 + b"a-token-of-no-known-form")
    assert "the token of this account" in problem


def test_the_value_of_a_secret_variable_is_found(monkeypatch):
    monkeypatch.setenv("LOGRAMED_JUDGE_API_KEY", "0123-secret-of-a-judge")
    assert (
        "the value of the variable LOGRAMED_JUDGE_API_KEY" in problems_of("run.json", b'"0123-secret-of-a-judge"')[0]
    )


def test_a_token_in_the_metadata_of_weights_is_found(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"from": HF_TOKEN})
    assert "a Hugging Face token" in problems_of("model.safetensors", tmp_path / "model.safetensors")[0]


def test_paths_of_this_machine_are_found(tmp_path):
    text = json.dumps({"output_dir": str(tmp_path / "runs")}).encode()
    assert any("a path of this machine" in problem for problem in problems_of("run.json", text, tmp_path))
    assert any("a path of this machine" in problem for problem in problems_of("run.json", os.getcwd().encode()))


def test_what_is_harmless_goes_through(tmp_path):
    save_file({"a": torch.zeros(20)}, tmp_path / "model.safetensors")
    files = {
        "model.safetensors": tmp_path / "model.safetensors",
        "tokenizer.json": b'{"vocab": {"/home/": 1, "/Users/x": 2}}',
        "README.md": b"Weights in `org/model`, revision 0123456789abcdef0123456789abcdef01234567, 98.4 percent.",
        "code.py": Path(__file__).parents[2].joinpath("modeling_logramed", "image_processing_logramed.py"),
    }
    assert find_problems(Contents(files)) == []
