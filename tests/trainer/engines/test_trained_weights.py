import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from logramed.trainer.engines.trained_weights import freeze_unused_weights, load_weights, train_in_float32
from tests.tiny_models import TOWERS, tiny_inputs, tiny_model


CHOICES = [{"dense_connector": name} for name in ("none", "sti", "sci", "dci")]
CHOICES += [{"vision_feature_layer": layer} for layer in (-1, 2)]


@pytest.mark.parametrize(("tower", "values"), list(itertools.product(TOWERS, CHOICES)), ids=str)
def test_exactly_the_weights_without_a_gradient_are_frozen(tower, values):
    model = tiny_model(tower, **values)
    inputs = tiny_inputs(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    freeze_unused_weights(model)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == without
    assert any("vision_tower" in name for name in without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_trained_beside_a_16_bit_base_is_float32(dtype, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["multi_modal_projector"])
    model = get_peft_model(tiny_model().to(dtype), config)
    model.base_model.model.lm_head.to(dtype)
    train_in_float32(model, TrainingArguments(str(tmp_path), bf16=True, use_cpu=True))
    dtypes = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert dtypes == {True: torch.float32, False: dtype}


def test_parts_in_full_beside_a_16_bit_base_need_mixed_precision(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["multi_modal_projector"])
    model = get_peft_model(tiny_model().to(torch.bfloat16), config)
    with pytest.raises(ValueError, match=r"weights are trained in full on a 16-bit base.*Set `bf16`"):
        train_in_float32(model, TrainingArguments(str(tmp_path), use_cpu=True))


def test_weights_are_loaded_from_a_folder_in_the_dtype_that_is_there(tmp_path):
    model, other = tiny_model(), tiny_model(seed=1).double()
    model.save_pretrained(tmp_path)
    load_weights(other, tmp_path)
    for weight, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected.double())
