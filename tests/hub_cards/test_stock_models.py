"""A model of another family than ours, from a JSON file over training and evaluation to what is published."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoProcessor

from logramed.eval.run import main as evaluate
from logramed.hub_cards.publications import find_kind, prepare, read_front_matter
from logramed.trainer.train import main as train
from tests.vlm_models import tiny_gemma3_model, tiny_llava_model, tiny_qwen2_5_vl_model, tiny_smolvlm_model
from tests.vlm_processors import (
    tiny_gemma3_processor,
    tiny_llava_processor,
    tiny_qwen2_5_vl_processor,
    tiny_smolvlm_processor,
)


pytestmark = pytest.mark.usefixtures("default_text_encoder")


ROOT = Path(__file__).parents[2]
FAMILIES = {
    "llava": (tiny_llava_model, tiny_llava_processor),
    "gemma3": (tiny_gemma3_model, tiny_gemma3_processor),
    "qwen2_5_vl": (tiny_qwen2_5_vl_model, tiny_qwen2_5_vl_processor),
    "smolvlm": (tiny_smolvlm_model, tiny_smolvlm_processor),
}
NO_VIDEOS = ("qwen2_5_vl", "smolvlm")  # their processors' part for videos needs torchvision, which is not installed


@pytest.fixture(scope="module")
def trained(tmp_path_factory, phantoms):
    """Trains two steps of a family as README.md has it, on a folder in place of a Hub id; gives what is left."""

    def run(family, monkeypatch, **options):
        make_model, make_processor = FAMILIES[family]
        folder = tmp_path_factory.mktemp(family)
        make_model().save_pretrained(folder / "base")
        make_processor().save_pretrained(folder / "base")
        if family in NO_VIDEOS:
            monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *args, **kwargs: make_processor())
        options = {
            "model": folder / "base",
            "train_data": phantoms / "train.json",
            "output_dir": folder / "mine",
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "max_length": 512,
            "use_cpu": True,
        } | options
        assert train([text for name, value in options.items() for text in (f"--{name}", str(value))]) in (0, None)
        return options["output_dir"]

    return run


def ask(model, phantoms):
    output = model.parent / "evaluation"
    arguments = {"model": model, "benchmark": "phantoms", "data": phantoms, "output": output, "max_new_tokens": 4}
    evaluate([text for name, value in arguments.items() for text in (f"--{name}", str(value))])
    return output


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == "gemma3" else [pytest.mark.slow]) for name in FAMILIES]
)
def test_stock_model_is_trained_evaluated_and_made_ready_for_the_hub(family, trained, phantoms, monkeypatch):
    model = trained(family, monkeypatch)
    figures = json.loads((ask(model, phantoms) / "metrics.json").read_text())["overall"]
    assert 0 <= figures["closed_accuracy"] <= 1
    found = prepare(model, "someone/mine", license="apache-2.0", base_models=["org/base"])
    assert read_front_matter(found.card)["base_model"] in ("org/base", ["org/base"])
    assert "model.safetensors" in found.contents.files
    assert "alignment.safetensors" not in found.contents.files
    assert "trust_remote_code" not in found.card  # no code travels with it


def test_adapter_of_a_stock_model_names_the_base_that_its_settings_name(trained, phantoms, monkeypatch):
    model = trained("gemma3", monkeypatch, use_peft=True)
    ask(model, phantoms)
    settings = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "org/base"}))
    (model / "run.json").unlink()  # as where `LoGraMedTrainer` was called from Python
    found = prepare(model, "someone/mine", license="apache-2.0", evaluations=[])
    assert found.kind == "adapter"
    assert read_front_matter(found.card)["base_model"] in ("org/base", ["org/base"])
    assert "trust_remote_code" not in found.card


def test_python_of_the_readme_trains_a_stock_model_on_its_json_file(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text().split("## Your model, your data\n")[1].split("\n## ")[0]
    assert len(text.splitlines()) <= 40
    [rows], [code] = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("json", "python"))
    (tmp_path / "my.json").write_text(rows)
    image = tmp_path / "images" / json.loads(rows)[0]["image"]
    image.parent.mkdir()
    Image.new("L", (20, 30), 90).save(image)
    tiny_gemma3_model().save_pretrained(tmp_path / "base")
    tiny_gemma3_processor().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("Qwen/Qwen2.5-VL-3B-Instruct", "base"), "README.md", "exec"), {})
    assert find_kind(tmp_path / "runs" / "mine") == "adapter"
