import pytest

from logramed.eval.model_names import looks_like_path, naming_model
from logramed.eval.models import load_model
from logramed.trainer.build_model import join_models


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "runs" / "quickstart" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "model" / "config.json").write_text("{}")
    (tmp_path / "runs" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("runs/quickstart/model", True),
        ("./model", True),
        ("../model", True),
        ("~/model", True),
        ("/model", True),
        ("model/", True),
        ("runs\\model", True),
        ("runs/model", True),  # `runs` is a folder here
        ("org/model", False),
        ("gpt2", False),
    ],
)
def test_ids_of_the_hub_are_told_from_paths(folder, name, expected):
    assert looks_like_path(name) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "runs/quickstart/modle",
            r"^`--model` runs/quickstart/modle: there is no such folder in /",
        ),
        (
            "runs/quickstart",
            r"a folder without config.json or adapter_config.json: not a model\.$",
        ),
        ("runs/empty", r"`--model` runs/empty is a folder without config.json or adapter_config.json: not a model\.$"),
        ("runs/quickstart/model/config.json", "there is no such folder"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_before_anything_is_loaded(folder, name, words):
    with pytest.raises(ValueError, match=words), naming_model(name, "`--model`"):
        pytest.fail("went on")


def test_an_id_that_nobody_has_is_said_to_be_neither(folder):
    words = r"org/gone: there is no such folder here, and no such model on the Hub"
    with pytest.raises(ValueError, match=words), naming_model("org/gone", "`--model`"):
        raise OSError("We couldn't connect to 'https://huggingface.co'")


def test_what_a_folder_lacks_is_said_as_it_is(folder):
    with pytest.raises(OSError, match="no file named"), naming_model("runs/quickstart/model", "x"):
        raise OSError("Error no file named model.safetensors")


def test_an_adapter_whose_base_lies_elsewhere_names_both(folder):
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "runs/base", "peft_type": "LORA"}')
    words = r"adapter: its base model \(`base_model_name_or_path`\) runs/base: there is no such folder in"
    with pytest.raises(ValueError, match=words):
        load_model(str(adapter))


def test_parts_are_named_by_their_argument(folder):
    with pytest.raises(ValueError, match=r"^`--language` runs/languag: there is no such folder"):
        join_models("runs/tower", "runs/languag")
