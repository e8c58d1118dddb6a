"""The figures of recipes/MEMORY.md: computed here from models built without memory, and the formulas of that page."""

from functools import cache

import pytest
import torch
from transformers import LlamaConfig

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration
from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.train import RECIPE_FOLDER


RANK, NF4_BYTES = 16, 4.127 / 8
MODEL_SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}


def count(*modules):
    return sum(weight.numel() for module in modules for weight in module.parameters())


@cache
def count_weights(size):
    """Weights by part, in the order of the page."""
    hidden, intermediate, layers, heads = MODEL_SIZES[size]
    text = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads
    )
    with torch.device("meta"):
        model, network = LoGraMedForConditionalGeneration(LoGraMedConfig(text_config=text)), GraphNetwork(hidden)
    decoder = model.get_decoder()
    linear = [module for module in decoder.layers.modules() if isinstance(module, torch.nn.Linear)]
    parts = {
        "tower": count(model.model.vision_tower),
        "projector": count(model.model.multi_modal_projector),
        "graph network": count(network),
        "embeddings": count(decoder.embed_tokens),
        "layers": count(decoder.layers, decoder.norm),
        "head": count(model.lm_head),
    }
    lora = sum(RANK * (layer.in_features + layer.out_features) for layer in linear)
    return {**parts, "all": sum(parts.values()), "LoRA": lora}


def state_bytes(engine, trained, frozen, devices):
    """Of weights, gradients and optimizer, as the page has them."""
    if engine == "one":
        return 6 * trained + 4 * frozen, 4 * trained, 8 * trained
    if engine == "fsdp":
        return tuple(value / devices for value in (4 * (trained + frozen), 4 * trained, 8 * trained))
    shards = devices if engine == "zero3" else 1
    return 2 * (trained + frozen) / shards, 2 * trained / devices, 12 * trained / devices


def memory(method, engine, devices, tokens=16 * 1024, node_tokens=16 * 800):
    """Of weights, gradients, optimizer and activations of a 7B model, in GB a device."""
    parts = count_weights("7b")
    if method == "full":
        trained, frozen = parts["all"] - parts["tower"], parts["tower"]
        weights, gradients, optimizer = state_bytes(engine, trained, frozen, devices)
    elif method == "projector":
        trained = parts["projector"]
        weights, gradients, optimizer = state_bytes(engine, trained, parts["all"] - trained, devices)
    else:
        trained = parts["projector"] + parts["graph network"] + parts["LoRA"]
        layers = parts["layers"] * (NF4_BYTES if method == "qlora" else 2)
        weights = 2 * (parts["tower"] + parts["embeddings"] + parts["head"]) + layers + 4 * trained
        gradients, optimizer = 4 * trained, 8 * trained
    if engine in ("fsdp", "zero3"):  # split weights while they are whole
        weights += 2 * (2 * parts["layers"] / 32 + parts["all"] - parts["layers"] - parts["tower"])
    value = 4 if method in ("full", "projector") and engine == "one" else 2
    recomputed = {2: 46, 4: 56}[value] * max(tokens, node_tokens)
    activations = 4096 * (value * (tokens + node_tokens) * 32 + recomputed)
    found = (weights, gradients, optimizer, activations)
    return [value / 1e9 for value in (*found, sum(found))]


CAPTIONS = {"tokens": 16 * 512, "node_tokens": 0}
RUNS = {
    "1 device, QLoRA": memory("qlora", "one", 1),
    "1 device, LoRA": memory("lora", "one", 1),
    "1 device, stage 1": memory("projector", "one", 1, **CAPTIONS),
    "1 device, full": memory("full", "one", 1),
    "4 devices, stage 1, FSDP": memory("projector", "fsdp", 4, **CAPTIONS),
    "4 devices, full, FSDP": memory("full", "fsdp", 4),
    "4 devices, full, ZeRO-2": memory("full", "zero2", 4),
    "8 devices, full, FSDP": memory("full", "fsdp", 8),
    "8 devices, full, ZeRO-3": memory("full", "zero3", 8),
}


@pytest.mark.parametrize(("engine", "gigabytes"), [("zero2", 16.6), ("zero3", 1.9)])
def test_states_of_the_zero_papers_example_are_the_papers(engine, gigabytes):
    # arXiv:1910.02054, figure 1: 7.5 billion weights on 64 devices.
    assert round(sum(state_bytes(engine, 7.5e9, 0, 64)) / 1e9, 1) == gigabytes


def test_rows_of_the_page_are_what_its_formulas_give():
    page = (RECIPE_FOLDER / "MEMORY.md").read_text()
    for size in MODEL_SIZES:
        figures = " | ".join(f"{number / 1e6:,.0f}" for number in count_weights(size).values())
        assert f"| {size} | {figures} |" in page
    for name, parts in RUNS.items():
        assert f"| {name} | {' | '.join(f'{part:.1f}' for part in parts)} |" in page


def test_figures_named_elsewhere_are_those_of_the_page():
    assert f"({RUNS['1 device, full'][-1]:.0f} GB, computed)" in (RECIPE_FOLDER / "README.md").read_text()
    checkpoint = 12 * count_weights("7b")["all"]
    assert f"has {checkpoint / 1e9:.0f} GB" in (RECIPE_FOLDER / "slurm" / "train.sbatch").read_text()
