"""Going on with an adapter, merging it, and resuming with other arguments than a run had."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from logramed.eval.models import load_model
from logramed.trainer.merge import main as merge
from logramed.trainer.train import main
from tests.trainer.test_train import write_recipe


pytestmark = pytest.mark.usefixtures("default_text_encoder")


LORA = ("--use_peft", "true", "--lora_r", "3", "--lora_alpha", "6", "--learning_rate", "0.05")


@pytest.fixture
def base(tmp_path, data_file):
    main([write_recipe(tmp_path, data_file, output_dir=str(tmp_path / "base"), max_steps=1)])
    return tmp_path / "base"


def train(folder, data_file, model, output, *further):
    arguments = {
        "model": model,
        "train_data": data_file,
        "output_dir": folder / output,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_neighbors": 2,
        "report_to": "none",
        "use_cpu": "true",
    }
    main([*(text for name, value in arguments.items() for text in (f"--{name}", str(value))), *further])
    return folder / output


@pytest.fixture
def adapter(tmp_path, data_file, base):
    return train(tmp_path, data_file, base, "adapter", *LORA)


def logits(folder):
    model, processor = load_model(str(folder))
    image = {"type": "image", "image": Image.new("RGB", (8, 8), "red")}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "what organ is shown"}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("further", [(), LORA[:2], LORA])
def test_a_next_stage_trains_the_adapter_on_its_base(tmp_path, data_file, base, adapter, further, capsys):
    more = train(tmp_path, data_file, adapter, "more", "--learning_rate", "0.05", *further)
    assert json.loads((more / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    before, after = weights(adapter), weights(more)
    assert before.keys() == after.keys()
    assert any("lora_" in name and not torch.equal(before[name], after[name]) for name in before)
    assert any("projector" in name and not torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(logits(adapter), logits(more))


def test_a_projector_that_is_not_named_stays_as_it_is(tmp_path, data_file, adapter):
    more = train(tmp_path, data_file, adapter, "more", "--learning_rate", "0.05", "--train", "language")
    before, after = weights(adapter), weights(more)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("projector" in name for name in changed)


@pytest.mark.parametrize(
    ("further", "words"),
    [
        (("--lora_r", "5"), "`lora_r` is 5, but the adapter in .*adapter has 3: leave it out"),
        (("--train", "vision"), "`train` must name `language` and not `vision`"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path, data_file, adapter, further, words):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, data_file, adapter, "more", *further)


def test_a_merged_model_answers_as_its_adapter_does_and_needs_no_peft(tmp_path, adapter, capsys):
    assert merge([str(adapter), "--output", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(adapter), rtol=0, atol=1e-5)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name in model.state_dict())
    assert AutoProcessor.from_pretrained(tmp_path / "merged").num_image_tokens == model.config.num_image_tokens
    assert json.loads((tmp_path / "merged" / "run.json").read_text())["starts"]
    assert not (tmp_path / "merged.unfinished").exists()


def test_what_cannot_be_merged_is_refused(tmp_path, base):
    with pytest.raises(ValueError, match="base is not an adapter folder"):
        merge([str(base), "--output", str(tmp_path / "merged")])
    with pytest.raises(ValueError, match="is not an adapter folder"):
        merge([str(tmp_path / "nowhere"), "--output", str(tmp_path / "merged")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--lora_r", "5"), "`lora_r` 3 -> 5"),
        (("--use_peft", "false"), "`use_peft` True -> False"),
        (("--lora_target_modules", "q_proj"), "`lora_target_modules` None -> 'q_proj'"),
    ],
)
def test_a_run_is_resumed_with_its_own_weights_alone(tmp_path, data_file, base, change, words):
    saving = ("--save_strategy", "steps", "--save_steps", "1")
    train(tmp_path, data_file, base, "adapter", *LORA, *saving)
    with pytest.raises(ValueError, match=f"has other weights: {words}.*run.json"):
        train(tmp_path, data_file, base, "adapter", *LORA, *saving, "--resume_from_checkpoint", "true", *change)
