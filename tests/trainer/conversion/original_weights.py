"""Small random weights under the originals' names, and the files that hold them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


State = dict[str, Tensor]
# Random weights are multiples of this. Two weights of one place differ by less than 2, so half precision holds both,
# and their difference, exactly.
GRID = 2.0**-10
CLIP_TOWER_PREFIX = "model.vision_tower.vision_tower."


def matrix(generator: torch.Generator, *shape: int) -> Tensor:
    """Random weights of about 1 over the square root of the number of inputs, on the grid."""
    values = torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5
    return _on_grid(values.clamp(-0.99, 0.99))


def vector(generator: torch.Generator, size: int, center: float = 0.0) -> Tensor:
    """A bias, or with `center=1.0` the weight of a norm, on the grid."""
    return _on_grid(center + (0.1 * torch.randn(size, generator=generator)).clamp(-0.5, 0.5))


def clip_state(generator: torch.Generator, config: dict[str, Any]) -> State:
    """The weights of a whole CLIP under the names of its published files, `position_ids` among them."""
    vision, text, projection_size = config["vision_config"], config["text_config"], config["projection_dim"]
    state = {"logit_scale": torch.tensor(2.6592)}
    positions = torch.arange(text["max_position_embeddings"])[None]
    state["text_model.embeddings.position_ids"] = positions
    for name, rows in (("token_embedding", text["vocab_size"]), ("position_embedding", positions.shape[1])):
        state[f"text_model.embeddings.{name}.weight"] = matrix(generator, rows, text["hidden_size"])
    state |= _clip_layers(generator, "text_model.", text)
    state |= _norm(generator, "text_model.final_layer_norm", text["hidden_size"])
    state |= clip_vision_state(generator, vision)
    num_positions = state["vision_model.embeddings.position_embedding.weight"].shape[0]
    state["vision_model.embeddings.position_ids"] = torch.arange(num_positions)[None]
    state["visual_projection.weight"] = matrix(generator, projection_size, vision["hidden_size"])
    state["text_projection.weight"] = matrix(generator, projection_size, text["hidden_size"])
    return state


def clip_vision_state(generator: torch.Generator, vision: dict[str, Any]) -> State:
    """The weights of CLIP's vision tower, without `position_ids`."""
    size, patch_size = vision["hidden_size"], vision["patch_size"]
    num_positions = (vision["image_size"] // patch_size) ** 2 + 1
    embeddings = "vision_model.embeddings."
    state = {
        f"{embeddings}class_embedding": matrix(generator, 1, size)[0],
        f"{embeddings}patch_embedding.weight": matrix(generator, size, 3, patch_size, patch_size),
        f"{embeddings}position_embedding.weight": matrix(generator, num_positions, size),
    }
    state |= _norm(generator, "vision_model.pre_layrnorm", size)  # misspelled in CLIP
    state |= _clip_layers(generator, "vision_model.", vision)
    return state | _norm(generator, "vision_model.post_layernorm", size)


def decoder_state(generator: torch.Generator, config: dict[str, Any], *, inv_freq: bool) -> State:
    """
    The weights of a LLaMA or Mistral, `lm_head` last.

    Args:
        generator (`torch.Generator`): Changed by the drawing.
        config (`dict`): The checkpoint's `config.json`.
        inv_freq (`bool`): Whether each layer has the buffer `rotary_emb.inv_freq`, as up to transformers 4.31.
    """
    state = {"model.embed_tokens.weight": matrix(generator, config["vocab_size"], config["hidden_size"])}
    for number in range(config["num_hidden_layers"]):
        state |= _decoder_layer(generator, f"model.layers.{number}.", config, inv_freq)
    state["model.norm.weight"] = vector(generator, config["hidden_size"], center=1.0)
    state["lm_head.weight"] = matrix(generator, config["vocab_size"], config["hidden_size"])
    return state


def linear_projector_state(generator: torch.Generator, config: dict[str, Any]) -> State:
    return _linear(generator, "model.mm_projector", config["hidden_size"], config["mm_hidden_size"])


def mlp_projector_state(generator: torch.Generator, config: dict[str, Any]) -> State:
    size = config["hidden_size"]
    first = _linear(generator, "model.mm_projector.0", size, config["mm_hidden_size"])
    return first | _linear(generator, "model.mm_projector.2", size, size)


def graph_network_state(generator: torch.Generator, config: dict[str, Any]) -> State:
    """The message passing between the nodes of a graph, which answering does not use."""
    state, size = {}, config["graph_num_features"]
    for name in ("conv1", "conv2"):
        prefix = f"model.message_pass_node_features.{name}"
        state |= _linear(generator, f"{prefix}.lin_rel", size, size)
        state[f"{prefix}.lin_root.weight"] = matrix(generator, size, size)
    return state


def save_state(state: State, folder: Path, weights: str, num_shards: int) -> None:
    """
    Write the weights in the order of `state`, with an index if there is more than one file.

    Args:
        state (`dict`): Tensors by name.
        folder (`Path`): Must exist.
        weights (`str`): `"bin"` or `"safetensors"`.
        num_shards (`int`): Number of files.
    """
    stem, save = {"bin": ("pytorch_model", torch.save), "safetensors": ("model", _save_safetensors)}[weights]
    if num_shards == 1:
        save(state, folder / f"{stem}.{weights}")
        return
    names, files = list(state), {}
    for number in range(num_shards):
        shard = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        file_name = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.{weights}"
        save({name: state[name] for name in shard}, folder / file_name)
        files |= dict.fromkeys(shard, file_name)
    total_size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": files}
    (folder / f"{stem}.{weights}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _save_safetensors(state: State, path: Path) -> None:
    save_file(state, path, metadata={"format": "pt"})


def _on_grid(values: Tensor) -> Tensor:
    return (values / GRID).round() * GRID


def _linear(generator: torch.Generator, name: str, num_outputs: int, num_inputs: int) -> State:
    weight = matrix(generator, num_outputs, num_inputs)
    return {f"{name}.weight": weight, f"{name}.bias": vector(generator, num_outputs)}


def _norm(generator: torch.Generator, name: str, size: int) -> State:
    return {f"{name}.weight": vector(generator, size, center=1.0), f"{name}.bias": vector(generator, size)}


def _clip_layers(generator: torch.Generator, prefix: str, config: dict[str, Any]) -> State:
    state, size, inner_size = {}, config["hidden_size"], config["intermediate_size"]
    for number in range(config["num_hidden_layers"]):
        layer = f"{prefix}encoder.layers.{number}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            state |= _linear(generator, f"{layer}self_attn.{name}", size, size)
        state |= _norm(generator, f"{layer}layer_norm1", size)
        state |= _linear(generator, f"{layer}mlp.fc1", inner_size, size)
        state |= _linear(generator, f"{layer}mlp.fc2", size, inner_size)
        state |= _norm(generator, f"{layer}layer_norm2", size)
    return state


def _decoder_layer(generator: torch.Generator, prefix: str, config: dict[str, Any], inv_freq: bool) -> State:
    size, inner_size = config["hidden_size"], config["intermediate_size"]
    head_size = size // config["num_attention_heads"]
    key_size = head_size * config.get("num_key_value_heads", config["num_attention_heads"])
    shapes = {
        "self_attn.q_proj": (size, size),
        "self_attn.k_proj": (key_size, size),
        "self_attn.v_proj": (key_size, size),
        "self_attn.o_proj": (size, size),
        "mlp.gate_proj": (inner_size, size),
        "mlp.down_proj": (size, inner_size),
        "mlp.up_proj": (inner_size, size),
    }
    state = {f"{prefix}{name}.weight": matrix(generator, *shape) for name, shape in shapes.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        state[f"{prefix}{name}.weight"] = vector(generator, size, center=1.0)
    if inv_freq:
        steps = torch.arange(0, head_size, 2) / head_size
        state[f"{prefix}self_attn.rotary_emb.inv_freq"] = 10000.0**-steps
    return state
