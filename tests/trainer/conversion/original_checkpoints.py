"""Small random checkpoints with the files, names and settings of the published ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.trainer.conversion.original_tokenizer import (
    ADDED_TOKENS,
    BASE_VOCABULARY_SIZE,
    write_json,
    write_tokenizer,
)
from tests.trainer.conversion.original_weights import (
    CLIP_TOWER_PREFIX,
    State,
    clip_state,
    clip_vision_state,
    decoder_state,
    graph_network_state,
    linear_projector_state,
    mlp_projector_state,
    save_state,
)


# Layout of `<im_patch>` tokens between `<im_start>` and `<im_end>`, with a vocabulary of four more tokens.
PATCH_TOKEN_KINDS = ("llava-med-v1", "llava-med-v1-delta", "exgra-med", "exgra-med-dci", "exgra-med-sci")
# Layout of one placeholder for an image, which is no token.
PLACEHOLDER_KINDS = ("llava-med-v1.5", "llava-v1.5")
KINDS = PATCH_TOKEN_KINDS + PLACEHOLDER_KINDS
CLIP_HIDDEN_SIZE = 24
HIDDEN_SIZE = 32
CLIP_NAME = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Original:
    """
    A checkpoint that was written.

    Args:
        folder (`Path`): Where its files are.
        config (`dict`): Its `config.json`.
        state (`dict`): The weights of the whole model under the originals' names, in the dtype of the files. Of a
            delta, the sum of base and delta.
    """

    folder: Path
    config: dict[str, Any]
    state: State


def write_clip(
    folder: str | Path,
    *,
    image_size: int = 32,
    patch_size: int = 8,
    num_layers: int = 4,
    hidden_size: int = CLIP_HIDDEN_SIZE,
    weights: str = "bin",
    seed: int = 0,
) -> Original:
    """
    Write a CLIP as `openai/clip-vit-large-patch14` has it: both towers, projections and the image processor.

    Args:
        folder (`str` or `Path`): Made if missing.
        image_size, patch_size (`int`): Pixels of a side; the first must be a multiple of the second.
        num_layers (`int`): Layers of the vision tower. Must be even for `dci`, and at least 3 for `sti` and `sci`.
        hidden_size (`int`): Of the vision tower, which has two heads.
        weights (`str`): `"bin"` or `"safetensors"`.
        seed (`int`): Of the weights.
    """
    folder = _made(folder)
    config = clip_config(image_size, patch_size, num_layers, hidden_size)
    state = clip_state(torch.Generator().manual_seed(seed), config)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", _clip_preprocessor(image_size))
    save_state(state, folder, weights, num_shards=1)
    return Original(folder, config, state)


def clip_config(
    image_size: int = 32, patch_size: int = 8, num_layers: int = 4, hidden_size: int = CLIP_HIDDEN_SIZE
) -> dict[str, Any]:
    """The `config.json` of a CLIP, in the form of 2022: each tower's settings stand there twice."""
    vision = {
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_attention_heads": 2,
        "num_hidden_layers": num_layers,
        "patch_size": patch_size,
        "projection_dim": 12,
        "image_size": image_size,
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": 12,
    }
    shared = {
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-05,
    }
    text_tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    text_size = {"max_position_embeddings": 16, "vocab_size": 60}
    return {
        "_name_or_path": "clip-vit-large-patch14/",
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 12,
        "text_config": {**shared, **text, **text_tokens, **text_size, "model_type": "clip_text_model"},
        "text_config_dict": {**text, **text_size},
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {**shared, **vision, "model_type": "clip_vision_model"},
        "vision_config_dict": vision,
    }


def write_llama(
    folder: str | Path,
    *,
    weights: str = "bin",
    num_shards: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
) -> Original:
    """
    Write the base LLaMA, to which a delta is added, as it was first converted to transformers.

    Args:
        folder (`str` or `Path`): Made if missing.
        weights (`str`): `"bin"` or `"safetensors"`.
        num_shards (`int`): Number of files.
        dtype (`torch.dtype`): Of the weights in the files.
        seed (`int`): Of the weights.
    """
    folder = _made(folder)
    config = _llama_config(dtype) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "transformers_version": "4.27.0.dev0",
        "vocab_size": BASE_VOCABULARY_SIZE,
    }
    state = _cast(decoder_state(torch.Generator().manual_seed(seed), config, inv_freq=True), dtype)
    _write_configs(folder, config)
    write_tokenizer(folder)
    save_state(state, folder, weights, num_shards)
    return Original(folder, config, state)


def write_checkpoint(
    folder: str | Path,
    kind: str,
    *,
    clip: Original | None = None,
    base: Original | None = None,
    with_tower: bool = True,
    added_tokens: bool = True,
    config_changes: dict[str, Any] | None = None,
    weights: str | None = None,
    num_shards: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 2,
) -> Original:
    """
    Write a vision-language checkpoint in the layout of a published one.

    Args:
        folder (`str` or `Path`): Made if missing.
        kind (`str`): One of `KINDS`.
        clip (`Original`, *optional*): The CLIP whose features the projector takes: gives its width and, for
            `"llava-med-v1.5"`, the shapes of the tower in the file, whose weights are not those of `clip`.
        base (`Original`, *optional*): What a delta is taken from, in the same `dtype`. Needed for a delta only.
        with_tower (`bool`): Whether `"llava-med-v1.5"` holds its vision tower.
        added_tokens (`bool`): Whether the tokenizer files know the four added tokens, where the weights have them.
        config_changes (`dict`, *optional*): Further or other values of `config.json`. The weights stay as they are.
        weights (`str`, *optional*): `"bin"` or `"safetensors"`; by default `"safetensors"` for `"llava-med-v1.5"`.
        num_shards (`int`): Number of files.
        dtype (`torch.dtype`): Of the weights in the files.
        seed (`int`): Of the weights.
    """
    if kind not in KINDS or (base is not None) != (kind == "llava-med-v1-delta"):
        raise ValueError(f"Expected one of {KINDS}, and `base` for a delta only; got {kind!r}.")
    folder, clip_settings = _made(folder), clip_config(image_size=48) if clip is None else clip.config
    config = checkpoint_config(kind, clip_settings["vision_config"]["hidden_size"], dtype)
    tower = clip_settings["vision_config"] if kind == "llava-med-v1.5" and with_tower else None
    state = _cast(checkpoint_state(torch.Generator().manual_seed(seed), kind, config, tower), dtype)
    config |= config_changes or {}
    _write_configs(folder, config)
    has_patch_tokens = kind in PATCH_TOKEN_KINDS
    write_tokenizer(folder, added_tokens=has_patch_tokens and added_tokens, pad_token=_pad_token(kind))
    stored = delta(state, base.state) if kind == "llava-med-v1-delta" else state
    save_state(stored, folder, weights or ("safetensors" if kind == "llava-med-v1.5" else "bin"), num_shards)
    return Original(folder, config, state)


def checkpoint_config(kind: str, clip_hidden_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json` of a checkpoint of this kind."""
    if kind == "llava-med-v1.5":
        return _mistral_config(dtype) | _placeholder_settings(clip_hidden_size)
    if kind == "llava-v1.5":
        return _vicuna_config(dtype) | _placeholder_settings(clip_hidden_size)
    config = _llama_config(dtype) | _patch_token_settings(clip_hidden_size)
    if kind.startswith("exgra-med"):
        config |= {"mm_projector_type": "mlp2x_gelu", "multi_graph": True, "graph_num_features": HIDDEN_SIZE}
    if kind in ("exgra-med-dci", "exgra-med-sci"):
        config["mm_hidden_size"] = 3 * clip_hidden_size
    return config


def checkpoint_state(
    generator: torch.Generator, kind: str, config: dict[str, Any], tower: dict[str, Any] | None = None
) -> State:
    """The weights of a whole model of this kind, in the order of the files; `tower` is CLIP's vision configuration."""
    state = decoder_state(generator, config, inv_freq=kind != "llava-med-v1.5")
    lm_head = state.pop("lm_head.weight")
    if tower is not None:
        state |= {CLIP_TOWER_PREFIX + name: tensor for name, tensor in clip_vision_state(generator, tower).items()}
    is_linear = kind in ("llava-med-v1", "llava-med-v1-delta")
    state |= (linear_projector_state if is_linear else mlp_projector_state)(generator, config)
    if kind.startswith("exgra-med"):
        state |= graph_network_state(generator, config)
    return state | {"lm_head.weight": lm_head}


def delta(whole: State, base: State) -> State:
    """What `whole` adds to `base`: rows and tensors that `base` lacks are kept as they are."""
    difference = {name: tensor.clone() for name, tensor in whole.items()}
    for name, tensor in base.items():
        difference[name][: len(tensor)] -= tensor
    return difference


def _llama_config(dtype: torch.dtype) -> dict[str, Any]:
    """Settings as up to transformers 4.28; the ids of special tokens are not those of the tokenizer."""
    return {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": 56,
        "max_sequence_length": 2048,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": -1,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _patch_token_settings(clip_hidden_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "freeze_mm_mlp_adapter": False,
        "mm_hidden_size": clip_hidden_size,
        "mm_use_im_start_end": True,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": CLIP_NAME,
        "model_type": "llava",
        "transformers_version": "4.28.0.dev0",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "vocab_size": BASE_VOCABULARY_SIZE + len(ADDED_TOKENS),
    }


def _mistral_config(dtype: torch.dtype) -> dict[str, Any]:
    return _later_settings(dtype) | {
        "architectures": ["LlavaMistralForCausalLM"],
        "attention_dropout": 0.0,
        "max_position_embeddings": 32768,
        "model_type": "llava_mistral",
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tokenizer_model_max_length": 2048,
        "tokenizer_padding_side": "right",
        "transformers_version": "4.36.2",
        "unfreeze_mm_vision_tower": True,
    }


def _vicuna_config(dtype: torch.dtype) -> dict[str, Any]:
    return _later_settings(dtype) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "max_length": 4096,
        "max_position_embeddings": 4096,
        "model_type": "llava",
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "transformers_version": "4.31.0",
        "unfreeze_mm_vision_tower": False,
    }


def _later_settings(dtype: torch.dtype) -> dict[str, Any]:
    """What both placeholder layouts say of their language model."""
    removed = ("max_sequence_length", "pad_token_id")
    config = {name: value for name, value in _llama_config(dtype).items() if name not in removed}
    return config | {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-05, "vocab_size": BASE_VOCABULARY_SIZE}


def _placeholder_settings(clip_hidden_size: int) -> dict[str, Any]:
    return {
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": clip_hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"{CLIP_NAME}-336",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }


def _clip_preprocessor(image_size: int) -> dict[str, Any]:
    return {
        "crop_size": image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": image_size,
    }


def _write_configs(folder: Path, config: dict[str, Any]) -> None:
    write_json(folder / "config.json", config)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "transformers_version")
    generation = {name: config[name] for name in names if name in config}
    write_json(folder / "generation_config.json", {"_from_model_config": True} | generation)


def _pad_token(kind: str) -> str | None:
    return "<unk>" if kind in PLACEHOLDER_KINDS else None


def _made(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}
