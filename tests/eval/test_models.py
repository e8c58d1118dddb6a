"""Tests of loading what is to be evaluated: adapters, and models of other families."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.vqa_rad import load_questions
from logramed.eval.likelihood import score_options
from logramed.eval.models import fingerprint_model, load_model, read_stop_string, resolve_adapter
from tests.eval.other_families import build_tiny_llava_next, build_tiny_qwen2_vl


pytestmark = pytest.mark.filterwarnings("ignore:This VQA-RAD test split has")


def ask(model, processor, questions, **options):
    options = {"batch_size": 5, "max_new_tokens": 8, "progress": False} | options
    return {row["question_id"]: answer for row, answer in answer_questions(model, processor, questions, **options)}


@pytest.fixture(scope="module")
def questions(tiny_vqa_rad):
    return load_questions(tiny_vqa_rad)


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory) -> Path:
    """A LoRA adapter of the tiny model that changes its answers."""
    torch.manual_seed(1)
    base = AutoModelForImageTextToText.from_pretrained(tiny_model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="model.language_model.*(q_proj|v_proj|down_proj)"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_an_adapter_answers_as_its_merged_model_does(adapter, tiny_model, questions, tmp_path):
    model, processor = load_model(str(adapter))
    answers = ask(model, processor, questions)
    assert answers != ask(*load_model(str(tiny_model)), questions)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert answers == ask(*load_model(str(tmp_path)), questions)


def test_an_adapter_may_be_put_on_a_base_model_that_was_moved(adapter, tiny_model, questions, tmp_path):
    moved = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base model"):
        load_model(str(moved))
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone"}))
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    with pytest.raises(ValueError, match="is an adapter itself"):
        resolve_adapter(str(moved), str(adapter))
    assert resolve_adapter(str(base)) == (str(base), None)
    shutil.move(moved / "adapter_config.json", tmp_path / "kept.json")
    shutil.copy(adapter / "adapter_config.json", moved / "adapter_config.json")
    assert ask(*load_model(str(base), str(moved)), questions) == ask(*load_model(str(adapter)), questions)


def test_adapters_answer_in_batches_as_one_by_one(adapter, questions):
    model, processor = load_model(str(adapter))
    assert ask(model, processor, questions, batch_size=7) == ask(model, processor, questions, batch_size=1)


def test_the_fingerprint_of_an_adapter_tells_base_and_adapter_apart(adapter, tiny_model):
    base, both = fingerprint_model(str(tiny_model)), fingerprint_model(str(adapter))
    assert both.startswith(base + "+")
    assert fingerprint_model(str(tiny_model), str(adapter)) == both
    assert fingerprint_model("org/model-on-the-hub") == "org/model-on-the-hub"


def test_the_stop_string_is_that_of_the_processor_that_is_loaded(adapter, tiny_model, tmp_path):
    base, own = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (tiny_model, adapter))
    assert read_stop_string(str(base)) is None
    settings = json.loads((base / "processor_config.json").read_text())
    (base / "processor_config.json").write_text(json.dumps(settings | {"stop_string": "###"}))
    assert read_stop_string(str(base)) == read_stop_string(str(base), str(own)) == "###"
    (own / "processor_config.json").write_text(json.dumps(settings | {"stop_string": "END"}))
    assert read_stop_string(str(base), str(own)) == "END"
    (base / "processor_config.json").unlink()
    assert read_stop_string(str(base)) is None
    for name in (str(tmp_path / "nowhere"), "no/such/folder", "no such name"):
        assert read_stop_string(name) is None


def test_the_fingerprint_tells_projectors_apart_in_the_middle_of_the_file(tmp_path):
    weights = {"lm_head": torch.zeros(1 << 20), "projector": torch.zeros(1 << 20), "tower": torch.zeros(1 << 20)}
    save_file(weights, tmp_path / "model.safetensors")
    former = fingerprint_model(str(tmp_path))
    save_file(weights | {"projector": torch.ones(1 << 20)}, tmp_path / "model.safetensors")
    assert fingerprint_model(str(tmp_path)) != former


@pytest.mark.parametrize("name", ["adapter_model.bin", "chat_template.json", "chat_template.jinja", "tokenizer.json"])
def test_the_fingerprint_covers_all_that_an_answer_depends_on(tmp_path, name):
    (tmp_path / name).write_text("one")
    former = fingerprint_model(str(tmp_path))
    (tmp_path / name).write_text("two")
    assert fingerprint_model(str(tmp_path)) != former


@pytest.fixture(scope="module", params=["LLaVA-NeXT", "Qwen2-VL"])
def other_family(request, tmp_path_factory):
    """A model that is no LLaVA, and its processor."""
    if request.param == "Qwen2-VL":
        return build_tiny_qwen2_vl()
    return load_model(str(build_tiny_llava_next(tmp_path_factory.mktemp("llava_next"))))


def test_models_of_other_families_answer_in_batches_as_one_by_one(other_family, questions):
    model, processor = other_family
    batched = ask(model, processor, questions)
    assert batched == ask(model, processor, questions, batch_size=1)
    assert len(set(batched.values())) > 3
    assert batched != ask(model, processor, questions, blank_images=True)


def test_models_of_other_families_score_options(other_family, questions):
    model, processor = other_family
    rows = [row | {"options": ["yes", "left lung", "no mass"]} for row in questions[:4]]
    by_batch, by_one = (
        {
            row["question_id"]: scores
            for row, scores in score_options(model, processor, rows, batch_size=size, progress=False)
        }
        for size in (4, 1)
    )
    for question_id, scores in by_batch.items():
        assert scores == pytest.approx(by_one[question_id], abs=1e-4)
    assert len({tuple(scores) for scores in by_batch.values()}) > 1
