"""
Supported kinds of checkpoints: their weight names, chat templates, and configurations as a LoGra-Med. Layouts are
those of LLaVA-Med v1.0.0, ExGra-Med, LLaVA-Med v1.5 and LLaVA.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.repocard import metadata_load
from transformers import AutoConfig

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration
from logramed.configuration_logramed import CLIP_VIT_L_14_224
from logramed.eval.model_names import find_foreign_kind, naming_model


# All files that a conversion reads; other files of a repository (other weights, pictures) are not downloaded.
READ_FILES = ("*.json", "*.safetensors", "*.bin", "tokenizer.model", "*.jinja", "README.md")
LICENSE_NAMES = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint."""

    language_model: str  # model type
    chat_template: str  # name of the template it was trained with
    stop_string: str | None  # text that ends its turns, if that is not a token
    license: dict[str, str]  # in the form of the Hub's front matter, if the checkpoint's card names none
    has_image_tokens: bool = False  # whether its embeddings have rows for image tokens


MICROSOFT_RESEARCH = {"license": "other", "license_name": "microsoft-research-license"}
KINDS = {
    "llava-med-v1": Kind("llama", "llava_med_v0", "###", MICROSOFT_RESEARCH, True),
    "llava-med-v1-delta": Kind("llama", "llava_med_v0", "###", MICROSOFT_RESEARCH, True),
    "exgra-med": Kind("llama", "llava_med_v0", "###", {"license": "cc-by-nc-4.0"}, True),
    "llava-med-v1.5": Kind("mistral", "llava_med_v1_5", None, {"license": "apache-2.0"}),
    "llava": Kind("llama", "llava_v1", None, {}),
}
DELTA = "llava-med-v1-delta"
# Kinds that config.json cannot tell apart, by the kind it looks like.
ALIKE = {"llava-med-v1": ("llava-med-v1", DELTA, "exgra-med")}
# In checkpoints of LLaVA v0 these follow the base tokens.
IMAGE_TOKENS = {"image_token": "<im_patch>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"}
FORMER_PAD_TOKEN = "[PAD]"
MAX_LENGTH = 2048
# Towers that the checkpoints name, so that no download is needed for their sizes.
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": CLIP_VIT_L_14_224,
    "openai/clip-vit-large-patch14-336": {**CLIP_VIT_L_14_224, "image_size": 336},
}

# Towers whose weights have one more level in files than in the model in transformers 5.
TOWERS_WITH_LEVEL = ("clip_vision_model", "siglip_vision_model", "siglip2_vision_model")

TOWER_PREFIX = "vision_tower."
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
FIRST_LAYER = "multi_modal_projector.linear_1.weight"
GRAPH_NETWORK = re.compile(r"model\.message_pass_node_features\.(.*)")
# Original names and ours, tried in this order; None leaves a weight out.
RENAMES = (
    (GRAPH_NETWORK.pattern, None),
    (r".*\.rotary_emb\.inv_freq", None),
    (r"model\.mm_projector\.(weight|bias)", r"multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.0\.(weight|bias)", r"multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)", r"multi_modal_projector.linear_2.\1"),
    (r"(?:model\.)?vision_tower\.(?:vision_tower\.)?vision_model\.embeddings\.position_ids", None),
    (r"(?:model\.)?vision_tower\.(?:vision_tower\.)?vision_model\.(.*)", r"vision_tower.vision_model.\1"),
    (r"model\.(embed_tokens|layers|norm)\.(.*)", r"language_model.model.\1.\2"),
    (r"lm_head\.(.*)", r"language_model.lm_head.\1"),
)
# For CLIP's own files, which may contain its text model too.
TOWER_RENAMES = (
    (r"vision_model\.embeddings\.position_ids", None),
    (r"vision_model\.(.*)", r"vision_tower.vision_model.\1"),
    (r"text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale", None),
    # A tower without the rest of CLIP, as transformers 5 saves it.
    (r"embeddings\.position_ids", None),
    (r"((?:embeddings|encoder|pre_layrnorm|post_layernorm)\..*)", r"vision_tower.vision_model.\1"),
)


def rename_all(
    names: Iterable[str], renames: tuple[tuple[str, str | None], ...] = RENAMES
) -> tuple[dict[str, str], list[str]]:
    """
    The original names of weights by our names, without those that are left out, and the unknown names.

    Example:
        >>> rename_all(["model.layers.0.mlp.up_proj.weight", "a.rotary_emb.inv_freq", "b"])
        ({'language_model.model.layers.0.mlp.up_proj.weight': 'model.layers.0.mlp.up_proj.weight'}, ['b'])
    """
    known, unknown = {}, []
    for name in names:
        found = next((rename for rename in renames if re.fullmatch(rename[0], name)), None)
        if found is None:
            unknown.append(name)
        elif found[1] is not None:
            known[re.sub(*found, name)] = name
    return known, unknown


def fetch(name: str, argument: str) -> Path:
    """The folder of a model, downloaded if it is a Hub repository; raises `ValueError` if it is neither."""
    with naming_model(name, argument, foreign=True):
        return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=choose_files(name)))


def choose_files(name: str) -> list[str]:
    """The files to download: those at the top level of a repository, with weights in one format only."""
    try:
        files = [file for file in list_repo_files(name) if "/" not in file]
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):  # then the cache is used
        return list(READ_FILES)
    if any(file.endswith(".safetensors") for file in files):
        files = [file for file in files if not file.endswith((".bin", ".bin.index.json"))]
    return [file for file in files if any(Path(file).match(pattern) for pattern in READ_FILES)]


def read_license(folder: Path) -> dict[str, str]:
    """The licence in the checkpoint's card, by the names in the Hub's front matter; empty if it names none."""
    try:
        found = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # a damaged card must not stop a conversion
        found = {}
    return {name: str(found[name]) for name in LICENSE_NAMES if found.get(name)}


def read_config(folder: Path, argument: str = "SOURCE") -> dict[str, Any]:
    """Read the config.json of a folder; raises `ValueError` if it is missing or not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{argument} {folder} has no config.json: it is not a model folder.")
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises `ValueError` if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}.")
    return content


def refuse_other_kind(kind: str, config: Mapping[str, Any], source: str) -> None:
    """Raises `ValueError` if config.json is not that of a checkpoint of this `kind`."""
    if config.get("model_type") == "logramed":
        raise ValueError(f"{source} is already a LoGra-Med.")
    if config.get("model_type") == "llava" and "text_config" in config:
        raise ValueError(f"{source} is transformers' own LLaVA, which needs no conversion: every command takes it.")
    found = find_foreign_kind(config)
    if kind not in ALIKE.get(found, (found,)):
        ends = " with start and end tokens of images" if config.get("mm_use_im_start_end") else ""
        described = f"model type {config.get('model_type')!r}{ends}"
        advice = f" It looks like `--from {found}`." if found else ""
        raise ValueError(f"The config.json of {source} does not fit --from {kind} ({described}).{advice}")


def text_config_of(config: Mapping[str, Any], language_model: str, vocab_size: int) -> dict[str, Any]:
    """The language model's configuration, with a default length, which old files lack."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "hidden_act", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling"),
        *("rope_parameters", "sliding_window", "tie_word_embeddings"),
    )
    found = {name: config[name] for name in names if config.get(name) is not None}
    if language_model == "mistral":
        found["sliding_window"] = config.get("sliding_window")  # null is a value: no window
    length = config.get("max_position_embeddings") or config.get("max_sequence_length") or MAX_LENGTH
    return {
        "model_type": language_model,
        **found,
        "max_position_embeddings": length,
        "vocab_size": vocab_size,
    }


def vision_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision tower's part of a CLIP configuration."""
    vision = config.get("vision_config") if config.get("model_type") == "clip" else config
    if not isinstance(vision, Mapping) or vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ValueError(f"The vision tower must be CLIP, and its config.json says {config.get('model_type')!r}.")
    keep = ("id2label", "label2id", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path")
    found = {name: value for name, value in vision.items() if name not in keep}
    return AutoConfig.for_model(**{**found, "model_type": "clip_vision_model"}).to_dict()


def choose_dense_connector(width: int, tower_size: int, given: str | None) -> str:
    """
    The dense connector for a projector whose first layer takes `width` features from a tower with `tower_size`. Raises
    `ValueError` if the width does not determine it, or `given` does not fit the width.
    """
    if width == tower_size:
        if given in ("sci", "dci"):
            raise ValueError(
                f"--dense_connector {given} joins three layers, but the projector takes {width} features, as many as "
                "the vision tower has. Leave it out."
            )
        return given or "none"
    if width != 3 * tower_size:
        raise ValueError(
            f"The projector must take as many features as the vision tower has ({tower_size}) or three times as many, "
            f"got {width}. Name the right tower with --vision_tower."
        )
    if given is None:
        raise ValueError(
            f"The projector takes {width} features, three times those of the vision tower, but the checkpoint does "
            "not say which layers were joined. Give --dense_connector dci or --dense_connector sci."
        )
    if given not in ("sci", "dci"):
        raise ValueError(
            f"--dense_connector {given} gives {tower_size} features, but the projector takes {width}: use sci or dci."
        )
    return given


def expected_weights(config: LoGraMedConfig) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of the weights in the files of a model with `config`, for transformers 4.57 and 5.

    Towers other than `TOWERS_WITH_LEVEL` are left out: transformers does not expose their names in files.
    """
    try:
        with torch.device("meta"):
            model = LoGraMedForConditionalGeneration(config)
    except KeyError as error:
        raise ValueError(f"The configuration names {error}, which is unknown to transformers.") from error
    tower = config.vision_config.model_type
    names = {file_name(name, tower): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {
        name: shape
        for name, shape in names.items()
        if not (config.tie_word_embeddings and name == HEAD)
        and (tower in TOWERS_WITH_LEVEL or not name.startswith(TOWER_PREFIX))
    }


def file_name(name: str, tower: str = "clip_vision_model") -> str:
    """
    The name in files of a weight, for a model whose tower has the model type `tower`.

    Example:
        >>> file_name("model.language_model.norm.weight"), file_name("model.vision_tower.encoder.a")
        ('language_model.model.norm.weight', 'vision_tower.vision_model.encoder.a')
    """
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name).removeprefix("model.")
    if tower in TOWERS_WITH_LEVEL:  # the level that the model lacks in transformers 5
        name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    return name
