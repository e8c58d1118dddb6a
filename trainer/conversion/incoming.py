"""Converts checkpoints of the original LLaVA code to LoGra-Med folders, one tensor at a time."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from logramed import LoGraMedConfig, LoGraMedImageProcessor, LoGraMedProcessor
from logramed.chat_templates_logramed import CHAT_TEMPLATES
from logramed.eval.files import require_empty
from logramed.trainer.build_model import VOCABULARY_MULTIPLE
from logramed.trainer.conversion.plans import Plan
from logramed.trainer.conversion.sources import (
    DELTA,
    EMBEDDINGS,
    HEAD,
    KINDS,
    KNOWN_TOWERS,
    TOWER_PREFIX,
    choose_dense_connector,
    fetch,
    read_config,
    read_json_object,
    read_license,
    refuse_other_kind,
    rename_all,
    text_config_of,
    vision_config_of,
)
from logramed.trainer.conversion.tokens import (
    add_former_image_tokens,
    add_image_token,
    find_stop_tokens,
    load_tokenizer,
)
from logramed.trainer.conversion.weights import WeightFiles


FINAL_NORM = "model.norm.weight"
DELTA_NORM = 0.1  # the final norm of a complete LLaMA averages above 1, that of a delta about 0


def convert_to_logramed(
    kind: str,
    source: str,
    output: str | Path,
    *,
    dense_connector: str | None = None,
    base: str | None = None,
    vision_tower: str | None = None,
) -> Path:
    """
    Convert another project's checkpoint to a LoGra-Med folder with its processor.

    Args:
        kind (`str`): One of `KINDS`.
        source (`str`): Folder or Hub id of the checkpoint.
        output (`str` or `Path`): A folder that does not exist yet, or is empty.
        dense_connector (`str`, *optional*): Which layers were joined, if the checkpoint does not say.
        base (`str`, *optional*): Folder or Hub id of LLaMA, for a delta.
        vision_tower (`str`, *optional*): Folder or Hub id of CLIP; by default the tower in the checkpoint, or the one
            that its configuration names.

    Returns:
        `Path`: The folder. A graph network in the checkpoint is saved in its `training/graph_network.safetensors`.

    Raises:
        ValueError: If the checkpoint is of another kind, incomplete, ambiguous or damaged, or `output` is not empty.
    """
    output = Path(output)
    require_empty(output, "OUTPUT")
    plan = plan_conversion(kind, source, dense_connector, base, vision_tower)
    plan.check(source)
    plan.write(output)
    return output


def plan_conversion(
    kind: str, source: str, dense_connector: str | None, base: str | None, vision_tower: str | None
) -> Plan:
    """Read everything but the weights of a checkpoint."""
    if (kind == DELTA) != (base is not None):
        needed = "is needed by" if kind == DELTA else "is for"
        raise ValueError(f"--base, the LLaMA that a delta is added to, {needed} --from {DELTA} only.")
    folder = fetch(source, "SOURCE")
    config = read_config(folder)
    refuse_other_kind(kind, config, source)
    files, layout = WeightFiles(folder), KINDS[kind]
    if "model.embed_tokens.weight" not in files.tensors:
        raise ValueError(f"{source} holds no model.embed_tokens.weight: it is not a complete checkpoint.")
    num_rows = files.tensors["model.embed_tokens.weight"].shape[0]
    if config.get("vocab_size") not in (None, num_rows):
        raise ValueError(
            f"{source} has {num_rows} embedding rows, but config.json says {config['vocab_size']} (`vocab_size`)."
        )
    warn_of_delta(kind, files, source)
    base_folder = None if base is None else fetch(base, "--base")
    tokenizer = load_tokenizer([folder, *([base_folder] if base_folder else [])])
    if layout.has_image_tokens or config.get("mm_use_im_start_end"):
        image_tokens = add_former_image_tokens(tokenizer, num_rows, config.get("mm_use_im_start_end", True))
    else:
        image_tokens = add_image_token(tokenizer, num_rows)
    tower_name, tower_folder = find_tower(config, files, vision_tower)
    vision_config = tower_config(tower_name, tower_folder)
    if len(tokenizer) > num_rows:
        num_rows = -(-len(tokenizer) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    logramed_config = LoGraMedConfig(
        vision_config=vision_config,
        text_config={
            **text_config_of(config, layout.language_model, num_rows),
            **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        },
        image_token_index=tokenizer.convert_tokens_to_ids(image_tokens["image_token"]),
        vision_feature_layer=-2 if config.get("mm_vision_select_layer") is None else config["mm_vision_select_layer"],
        vision_feature_select_strategy="full" if config.get("mm_vision_select_feature") == "cls_patch" else "default",
        **find_projector(files, vision_config["hidden_size"], dense_connector),
    )
    processor = LoGraMedProcessor(
        image_processor(vision_config, tower_folder),
        tokenizer,
        num_image_tokens=logramed_config.num_image_tokens,
        chat_template=CHAT_TEMPLATES[layout.chat_template],
        stop_string=layout.stop_string,
        **image_tokens,
    )
    return Plan(
        config=logramed_config,
        processor=processor,
        end_token_ids=find_stop_tokens(tokenizer, layout.stop_string),
        files=files,
        tower_files=None if tower_folder is None else WeightFiles(tower_folder),
        add_base=None if base_folder is None else adding_base(WeightFiles(base_folder), source, base),
        parts={
            "source": source,
            "format": kind,
            **(read_license(folder) or layout.license),
            "base_models": [name for name in (source, base, tower_name) if name],
        },
    )


def warn_of_delta(kind: str, files: WeightFiles, source: str) -> None:
    """Warn if a delta is taken for a complete model or vice versa: both have the same names and shapes."""
    if FINAL_NORM not in files.tensors:
        return
    mean = files.read(FINAL_NORM).float().mean().item()
    if (abs(mean) < DELTA_NORM) != (kind == DELTA):
        looks, other = ("a delta", DELTA) if kind != DELTA else ("a complete model", "llava-med-v1")
        warnings.warn(
            f"{source} looks like {looks}: {FINAL_NORM} averages {mean:.2f}. If it is, convert with --from {other}.",
            stacklevel=2,
        )


def find_projector(files: WeightFiles, tower_size: int, dense_connector: str | None) -> dict[str, Any]:
    """The configuration of the projector, inferred from its weights."""
    is_linear = "model.mm_projector.weight" in files.tensors
    layer = "model.mm_projector" if is_linear else "model.mm_projector.0"
    first = files.tensors.get(f"{layer}.weight")
    if first is None:
        raise ValueError(f"{files.folder} holds no model.mm_projector weights: unknown projector.")
    return {
        "projector_type": "linear" if is_linear else "mlp2x_gelu",
        "dense_connector": choose_dense_connector(first.shape[1], tower_size, dense_connector),
        "multimodal_projector_bias": f"{layer}.bias" in files.tensors,
    }


def find_tower(config: Mapping[str, Any], files: WeightFiles, given: str | None) -> tuple[str, Path | None]:
    """The name of the vision tower, and the folder of its weights or `None` if the checkpoint contains them."""
    named = config.get("mm_vision_tower") or ""
    named = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(named, str):
        raise ValueError(f"{files.folder}: mm_vision_tower in config.json must be a name, got {named!r}.")
    if given is None and any("vision_tower." in tensor for tensor in files.tensors):
        return named, None
    if not (given or named):
        raise ValueError(f"{files.folder} holds no vision tower and names none. Name it with --vision_tower.")
    argument = "--vision_tower" if given else "The vision tower that config.json names (--vision_tower names another)"
    return given or named, fetch(given or named, argument)


def tower_config(name: str, folder: Path | None) -> dict[str, Any]:
    """The tower's configuration, from its folder or, if the checkpoint contains the tower, by its name."""
    if folder is not None:
        return vision_config_of(read_config(folder, "--vision_tower"))
    if name in KNOWN_TOWERS:
        return vision_config_of(KNOWN_TOWERS[name])
    if Path(name).is_dir():
        return vision_config_of(read_config(Path(name), "The vision tower that config.json names"))
    raise ValueError(
        f"The checkpoint's vision tower has unknown sizes: mm_vision_tower in its config.json is {name!r}. Set it to "
        f"a folder with the tower's config.json, or to one of {', '.join(KNOWN_TOWERS)}."
    )


def image_processor(vision_config: Mapping[str, Any], tower_folder: Path | None) -> LoGraMedImageProcessor:
    """An image processor with the tower's size, mean and deviation; pads images to squares instead of cropping."""
    path = None if tower_folder is None else tower_folder / "preprocessor_config.json"
    settings = read_json_object(path) if path is not None and path.is_file() else {}
    statistics = {name: settings[name] for name in ("image_mean", "image_std") if settings.get(name)}
    return LoGraMedImageProcessor(size=vision_config["image_size"], **statistics)


def adding_base(base: WeightFiles, source: str, base_name: str) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """
    Returns a function that adds the base's weights to a delta: to all but the projector, and only to the base's rows
    of embeddings and head. It raises `ValueError` if the base lacks a weight, or has another shape.
    """
    by_name, _ = rename_all(base.tensors)

    def added(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.startswith(("multi_modal_projector.", TOWER_PREFIX)):
            return tensor
        if name not in by_name:
            raise ValueError(f"--base {base_name} is not a LLaMA: it has no {name}, which the delta {source} needs.")
        other = base.read(by_name[name])
        rows_may_differ = name in (EMBEDDINGS, HEAD) and len(other) <= len(tensor)
        if other.shape[1:] != tensor.shape[1:] or (len(other) != len(tensor) and not rows_may_differ):
            raise ValueError(
                f"--base {base_name} has {name} of shape {list(other.shape)}, but {source} has {list(tensor.shape)}."
            )
        whole = tensor.float()
        whole[: len(other)] += other.float()
        return whole.to(tensor.dtype)

    return added
