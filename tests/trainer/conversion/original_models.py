"""
What the originals compute, in plain functions of their weights.

Nothing of transformers is used. Weights go by the originals' names, configurations are their `config.json`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainer.conversion.original_checkpoints import ADDED_TOKENS
from tests.trainer.conversion.original_weights import CLIP_TOWER_PREFIX, State


IMAGE_PLACEHOLDER = -200  # stands in the ids of the placeholder layouts, and is in no vocabulary
STI_POOLING = 8
DENSE_CONNECTORS = ("none", "sti", "sci", "dci")


def original_logits(
    state: State,
    config: dict[str, Any],
    clip_state: State,
    clip_config: dict[str, Any],
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    dense_connector: str = "none",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """
    The logits of a whole model, without padding or dropout.

    Args:
        state (`dict`): The checkpoint's weights. A vision tower among them is not used: see `checkpoint_tower`.
        config (`dict`): The checkpoint's `config.json`.
        clip_state (`dict`): Weights of CLIP under `vision_model.`.
        clip_config (`dict`): CLIP's `config.json`.
        input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, int64):
            With `<im_start>`, a run of `<im_patch>` and `<im_end>` for an image where the checkpoint has these tokens,
            else with one `IMAGE_PLACEHOLDER`; of the latter, every row must have equally many.
        pixel_values (`torch.Tensor` of shape `(num_images, 3, height, width)`, *optional*):
            Normalized images, in the order of their places, row by row.
        dense_connector (`str`): One of `DENSE_CONNECTORS`.
        dtype (`torch.dtype`): In which everything is computed.

    Returns:
        `torch.Tensor` of shape `(batch_size, length, vocab_size)`: a placeholder counts as its image's features.
    """
    state = _cast(state, dtype)
    if pixel_values is None:
        image_features = None
    else:
        hidden_states = clip_hidden_states(clip_state, clip_config, pixel_values, dtype)
        image_features = project(state, connect(hidden_states, dense_connector))
    return decoder_logits(state, config, embed(state, config, input_ids, image_features), dtype)


def checkpoint_tower(state: State) -> State:
    """The vision tower that the checkpoint itself holds, under CLIP's names."""
    return _part(state, CLIP_TOWER_PREFIX)


def clip_hidden_states(
    clip_state: State, clip_config: dict[str, Any], pixel_values: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """
    The hidden states of CLIP's vision tower: after the first norm, and after each layer.

    Returns:
        `list[torch.Tensor]`: One more than layers, of shape `(num_images, 1 + num_patches, hidden_size)`, the class
        token first.
    """
    config = clip_config["vision_config"]
    state = _cast(_part(clip_state, "vision_model."), dtype)
    hidden_states = _clip_embeddings(_part(state, "embeddings."), pixel_values.to(dtype), config)
    outputs = [_layer_norm(state, "pre_layrnorm", hidden_states, config)]
    for number in range(config["num_hidden_layers"]):
        outputs.append(_clip_layer(_part(state, f"encoder.layers.{number}."), outputs[-1], config))
    return outputs


def connect(hidden_states: list[Tensor], dense_connector: str) -> Tensor:
    """
    What a projector takes: the patches of hidden state -2, and by the dense connector those of earlier ones.

    Args:
        hidden_states (`list[torch.Tensor]`): As of `clip_hidden_states`.
        dense_connector (`str`): `"sti"` appends those at a third and two thirds of the depth as tokens, pooled by 8,
            `"sci"` the same as channels, and `"dci"` the means of both halves as channels. None takes the last one.

    Returns:
        `torch.Tensor` of shape `(num_images, num_tokens, num_channels)`.
    """
    patches = [hidden_state[:, 1:] for hidden_state in hidden_states]
    num_layers, selected = len(patches) - 1, patches[-2]
    thirds = [patches[num_layers // 3 - 1], patches[2 * num_layers // 3 - 1]]
    halves = [patches[: num_layers // 2], patches[num_layers // 2 : num_layers]]
    if dense_connector == "sti":
        return torch.cat([selected, *map(_pool_tokens, thirds)], dim=1)
    if dense_connector == "sci":
        return torch.cat([selected, *thirds], dim=2)
    if dense_connector == "dci":
        return torch.cat([selected, *(sum(half) / len(half) for half in halves)], dim=2)
    if dense_connector != "none":
        raise ValueError(f"Expected one of {DENSE_CONNECTORS}, got {dense_connector!r}.")
    return selected


def project(state: State, features: Tensor) -> Tensor:
    """Features of the vision tower in the language model's size: `(num_images, num_tokens, hidden_size)`."""
    projector = _part(state, "model.mm_projector")
    if ".weight" in projector:
        return _linear(projector, "", features)
    return _linear(projector, ".2", F.gelu(_linear(projector, ".0", features)))


def embed(state: State, config: dict[str, Any], input_ids: Tensor, image_features: Tensor | None) -> Tensor:
    """
    Token embeddings with the image features in their places, in the order of the images.

    Returns:
        `torch.Tensor` of shape `(batch_size, length, hidden_size)`.
    """
    embeddings = state["model.embed_tokens.weight"]
    if image_features is None:
        if (input_ids == IMAGE_PLACEHOLDER).any():
            raise ValueError("`input_ids` has places for images, but there are none.")
        return embeddings[input_ids]
    images = iter(image_features)
    put = _replace_patch_tokens if config["mm_use_im_start_end"] else _replace_placeholders
    rows = [put(embeddings, config, row, images) for row in input_ids]
    if next(images, None) is not None:
        raise ValueError(f"{len(image_features)} images are more than `input_ids` has places for.")
    return torch.stack(rows)


def decoder_logits(
    state: State, config: dict[str, Any], inputs_embeds: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """
    The logits of a LLaMA or Mistral at every position.

    Args:
        state (`dict`): Weights with `model.layers.*`, `model.norm.weight` and `lm_head.weight`.
        config (`dict`): The `config.json` of the language model, or of a model with its settings.
        inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): No padding.
        dtype (`torch.dtype`): In which everything is computed.

    Returns:
        `torch.Tensor` of shape `(batch_size, sequence_length, vocab_size)`.
    """
    if config.get("sliding_window") is not None:
        raise ValueError("A sliding window is not computed here.")
    state, hidden_states = _cast(state, dtype), inputs_embeds.to(dtype)
    for number in range(config["num_hidden_layers"]):
        hidden_states = _decoder_layer(_part(state, f"model.layers.{number}."), hidden_states, config)
    return _rms_norm(hidden_states, state["model.norm.weight"], config) @ state["lm_head.weight"].T


def added_token_id(config: dict[str, Any], token: str) -> int:
    """The id of an added token of a checkpoint whose last rows are `ADDED_TOKENS`."""
    return config["vocab_size"] - len(ADDED_TOKENS) + ADDED_TOKENS.index(token)


def _clip_embeddings(state: State, pixel_values: Tensor, config: dict[str, Any]) -> Tensor:
    """Each patch is a row of pixels, by channel, row and column, times one matrix."""
    num_images, num_channels, height, width = pixel_values.shape
    size = config["patch_size"]
    blocks = pixel_values.reshape(num_images, num_channels, height // size, size, width // size, size)
    pixels = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    patches = pixels @ state["patch_embedding.weight"].flatten(1).T
    class_token = state["class_embedding"].expand(num_images, 1, -1)
    return torch.cat([class_token, patches], dim=1) + state["position_embedding.weight"]


def _clip_layer(state: State, hidden_states: Tensor, config: dict[str, Any]) -> Tensor:
    normed = _layer_norm(state, "layer_norm1", hidden_states, config)
    queries, keys, values = (
        _split_heads(_linear(state, f"self_attn.{name}_proj", normed), config["num_attention_heads"]) for name in "qkv"
    )
    hidden_states = hidden_states + _linear(state, "self_attn.out_proj", _attend(queries, keys, values))
    normed = _layer_norm(state, "layer_norm2", hidden_states, config)
    return hidden_states + _linear(state, "mlp.fc2", _quick_gelu(_linear(state, "mlp.fc1", normed)))


def _decoder_layer(state: State, hidden_states: Tensor, config: dict[str, Any]) -> Tensor:
    normed = _rms_norm(hidden_states, state["input_layernorm.weight"], config)
    hidden_states = hidden_states + _self_attention(_part(state, "self_attn."), normed, config)
    normed = _rms_norm(hidden_states, state["post_attention_layernorm.weight"], config)
    gate = normed @ state["mlp.gate_proj.weight"].T
    inner = gate * torch.sigmoid(gate) * (normed @ state["mlp.up_proj.weight"].T)
    return hidden_states + inner @ state["mlp.down_proj.weight"].T


def _self_attention(state: State, normed: Tensor, config: dict[str, Any]) -> Tensor:
    """Causal, with rotary positions; each key and value head serves as many query heads as there are more of them."""
    num_heads = config["num_attention_heads"]
    num_key_heads = config.get("num_key_value_heads", num_heads)
    queries = _split_heads(normed @ state["q_proj.weight"].T, num_heads)
    keys = _split_heads(normed @ state["k_proj.weight"].T, num_key_heads)
    values = _split_heads(normed @ state["v_proj.weight"].T, num_key_heads)
    base = config.get("rope_theta", 10000.0)
    queries, keys = _rotate(queries, base), _rotate(keys, base)
    key_head_of = torch.arange(num_heads) // (num_heads // num_key_heads)
    length = normed.shape[1]
    is_future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return _attend(queries, keys[:, key_head_of], values[:, key_head_of], is_future) @ state["o_proj.weight"].T


def _attend(queries: Tensor, keys: Tensor, values: Tensor, is_hidden: Tensor | None = None) -> Tensor:
    """Softmax attention of `(batch_size, num_heads, length, head_size)`; returns `(batch_size, length, size)`."""
    scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
    if is_hidden is not None:
        scores = scores.masked_fill(is_hidden, float("-inf"))
    return (scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)


def _rotate(heads: Tensor, base: float) -> Tensor:
    """Turn channels i and i + head_size / 2 of each head, as one complex number, by their angle at each position."""
    length, half = heads.shape[2], heads.shape[3] // 2
    frequencies = base ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    cosine, sine = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    real, imaginary = heads[..., :half], heads[..., half:]
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)


def _replace_patch_tokens(embeddings: Tensor, config: dict[str, Any], row: Tensor, images: Any) -> Tensor:
    """Features take the places of the tokens between `<im_start>` and `<im_end>`, which must all be `<im_patch>`."""
    patch, start, end = (added_token_id(config, token) for token in ("<im_patch>", "<im_start>", "<im_end>"))
    embedded = embeddings[row].clone()
    for position in (row == start).nonzero().flatten().tolist():
        features = next(images)
        stop = position + 1 + len(features)
        if not (row[position + 1 : stop] == patch).all() or row[stop : stop + 1].tolist() != [end]:
            raise ValueError(f"Expected {len(features)} `<im_patch>` and `<im_end>` after position {position}.")
        embedded[position + 1 : stop] = features
    return embedded


def _replace_placeholders(embeddings: Tensor, config: dict[str, Any], row: Tensor, images: Any) -> Tensor:
    """Features take the place of one position each, so that the row grows."""
    parts = [next(images) if token == IMAGE_PLACEHOLDER else embeddings[token][None] for token in row.tolist()]
    return torch.cat(parts)


def _pool_tokens(patches: Tensor) -> Tensor:
    """Means of `STI_POOLING` patches each; their number must be a multiple of it."""
    return patches.unflatten(1, (-1, STI_POOLING)).mean(dim=2)


def _quick_gelu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(1.702 * values)


def _split_heads(values: Tensor, num_heads: int) -> Tensor:
    return values.unflatten(2, (num_heads, -1)).transpose(1, 2)


def _rms_norm(values: Tensor, weight: Tensor, config: dict[str, Any]) -> Tensor:
    return values * (values.square().mean(dim=-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * weight


def _layer_norm(state: State, name: str, values: Tensor, config: dict[str, Any]) -> Tensor:
    centered = values - values.mean(dim=-1, keepdim=True)
    scale = (centered.square().mean(dim=-1, keepdim=True) + config["layer_norm_eps"]).rsqrt()
    return centered * scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(state: State, name: str, values: Tensor) -> Tensor:
    return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
