from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from logramed.trainer import plan
from logramed.trainer.plan import LAYER_BYTES, NF4_BYTES, Run, count_weights, memory, state_bytes
from logramed.trainer.train import RECIPE_FOLDER


@pytest.mark.parametrize(("engine", "gigabytes"), [("zero2", 16.6), ("zero3", 1.9)])
def test_states_of_the_zero_papers_example_are_the_papers(engine, gigabytes):
    # arXiv:1910.02054, figure 1: 7.5 billion weights on 64 devices.
    assert round(sum(state_bytes(engine, 7.5e9, 0, 64).values()) / 1e9, 1) == gigabytes


def test_weights_are_those_of_llama_7b_and_clip_vit_large():
    counts = count_weights("7b")
    assert counts.embeddings + counts.layers + counts.head == 6_738_415_616
    assert counts.vision == 303_179_776
    assert counts.lora == 39_976_960  # what peft says of rank 16 on all linear layers


@pytest.mark.parametrize("value_bytes", [2, 4])
def test_a_llama_layer_keeps_the_bytes_that_the_plan_counts(value_bytes):
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 4}
    model = LlamaModel(LlamaConfig(num_hidden_layers=1, vocab_size=8, **sizes))
    dtype = torch.float32 if value_bytes == 4 else torch.bfloat16
    hidden = torch.randn(2, 64, 512, dtype=dtype, requires_grad=True)
    model = model.to(dtype)
    positions = model.rotary_emb(hidden, torch.arange(64)[None])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        copy_of_weight = tuple(sorted(tensor.shape)) in shapes and tensor.dtype != hidden.dtype
        if storage.data_ptr() not in weights and not copy_of_weight:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=value_bytes == 4),
    ):
        output = model.layers[0](hidden, attention_mask=None, position_embeddings=positions)
    assert output.shape == hidden.shape
    assert sum(kept.values()) / hidden.numel() == pytest.approx(LAYER_BYTES[value_bytes], abs=1)


def test_split_states_shrink_with_the_devices_and_activations_do_not():
    few, many = memory(Run(num_devices=4)), memory(Run(num_devices=64))
    assert few["optimizer"] == pytest.approx(16 * many["optimizer"])
    assert few["activations"] == many["activations"]
    assert many["total"] == pytest.approx(sum(value for name, value in many.items() if name != "total"))


def test_quantized_weights_take_a_quarter_of_16_bits():
    lora, qlora = (memory(Run(method=method, engine="single", num_devices=1)) for method in ("lora", "qlora"))
    layers = count_weights("7b").layers
    assert lora["weights"] - qlora["weights"] == pytest.approx(layers * (2 - NF4_BYTES))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"engine": "single"}, "'single' is one device"),
        ({"engine": "fsdp", "num_devices": 1}, "the others are several; got 1"),
        ({"batch_size": 0}, "start at 1; got 4 and 0"),
    ],
)
def test_a_run_that_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        Run(**values)


def test_tables_of_the_pages_are_what_the_code_computes():
    page = "".join((Path(RECIPE_FOLDER) / name).read_text() for name in ("MEMORY.md", "README.md"))
    for table in plan.TABLES:
        assert table() in page, f"{table.__name__}: run `python trainer/plan.py --page`"


def test_figures_named_elsewhere_are_what_the_code_computes():
    full = memory(Run(engine="single", num_devices=1))["total"]
    assert f"({full / 1e9:.0f} GB, computed)" in (RECIPE_FOLDER / "README.md").read_text()
    checkpoint = 12 * count_weights("7b").total
    assert f"has {checkpoint / 1e9:.0f} GB" in (RECIPE_FOLDER / "slurm" / "train.sbatch").read_text()


def test_command_describes_one_run(capsys):
    assert plan.main(["--devices", "8", "--engine", "zero3", "--batch_size", "4"]) == 0
    output = capsys.readouterr().out
    assert "GB a device" in output
    assert "Computed, not measured" in output
    with pytest.raises(SystemExit):
        plan.main(["--engine", "single"])
    assert "'single' is one device" in capsys.readouterr().err
