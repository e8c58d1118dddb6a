"""Model names given by users: a folder or a Hub id. A mistyped folder is not looked up on the Hub."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig


ADAPTER_CONFIG = "adapter_config.json"
CONFIGURATIONS = ("config.json", ADAPTER_CONFIG)
# Model types of the original LLaVA code that transformers does not know, and their names in `logramed-convert --from`.
FOREIGN_TYPES = {"llava_mistral": "llava-med-v1.5", "llava_llama": "llava"}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def looks_like_path(name: str) -> bool:
    """
    Whether a name can only be a folder. A Hub id is a name, or an owner and a name.

    Example:
        >>> looks_like_path("runs/quickstart/model"), looks_like_path("./model"), looks_like_path("org/model")
        (True, True, False)
    """
    first, *further = Path(name).parts or ("",)
    marked = name.startswith((".", "~")) or os.path.isabs(name) or name.endswith(("/", os.sep)) or "\\" in name
    return marked or len(further) > 1 or (len(further) == 1 and Path(first).is_dir())


def refuse_missing_path(name: str, argument: str) -> None:
    """Raise `ValueError` if `name` looks like a path to a folder that does not exist."""
    if not Path(name).is_dir() and looks_like_path(name):
        raise ValueError(f"{argument} {name}: there is no such folder in {Path.cwd()}.")


@contextmanager
def naming_model(name: str | Path, argument: str, foreign: bool = False) -> Iterator[None]:
    """
    Turn errors about a missing model, raised while it is loaded inside, into one sentence that names the `argument`.

    Raises `ValueError` if `name` looks like a path to a folder that does not exist, if the folder has no model or
    (unless `foreign`) one that must be converted first, or if the model is neither a folder nor on the Hub.
    """
    name = str(name)
    refuse_missing_path(name, argument)
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in CONFIGURATIONS):
        raise ValueError(f"{argument} {name} is a folder without {' or '.join(CONFIGURATIONS)}: not a model.")
    if not foreign:
        refuse_foreign(name, argument)
    try:
        yield
    except OSError as error:
        if Path(name).exists():
            raise
        raise ValueError(
            f"{argument} {name}: there is no such folder here, and no such model on the Hub, or it cannot be reached "
            "or read from here."
        ) from error


def refuse_foreign(name: str, argument: str, revision: str | None = None) -> None:
    """
    Raise `ValueError`, with the conversion command, if a folder or Hub repository holds a checkpoint of the original
    LLaVA code, which transformers does not know or, worse, mistakes for its own format.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError):  # reported when the model is loaded
        return
    kind = find_foreign_kind(config)
    if kind is not None:
        raise ValueError(
            f"{argument} {name} is a checkpoint in another format. Convert it first: logramed-convert --from {kind} "
            f"{name} OUTPUT"
        )


def find_foreign_kind(config: Mapping[str, Any]) -> str | None:
    """
    The `logramed-convert --from` name of the checkpoint with this config.json, or `None` if it needs no conversion.

    A delta cannot be detected: it has the configuration of the whole model.

    Example:
        >>> find_foreign_kind({"model_type": "llava_mistral"})
        'llava-med-v1.5'
    """
    model_type = config.get("model_type")
    if model_type in FOREIGN_TYPES:
        return FOREIGN_TYPES[model_type]
    if model_type != "llava" or "text_config" in config:
        return None
    if "multi_graph" in config or "graph_num_features" in config:
        return "exgra-med"
    # Configurations of LLaVA v0 name the length differently.
    is_v0 = config.get("mm_use_im_start_end") or (
        "max_sequence_length" in config and "max_position_embeddings" not in config
    )
    return "llava-med-v1" if is_v0 else "llava"


def resolve_adapter(model: str, adapter: str | None = None) -> tuple[str, str | None]:
    """The base model and its adapter; `model` may be an adapter itself."""
    if not (Path(model) / ADAPTER_CONFIG).is_file():
        return model, adapter
    if adapter is not None:
        raise ValueError(f"`model` {model} is an adapter itself, so `adapter` {adapter} has no base model. Name that.")
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(model).base_model_name_or_path
    if not base:
        raise ValueError(
            f"{model}/{ADAPTER_CONFIG} names no base model (`base_model_name_or_path`). Pass the base as `model` and "
            "this folder as `adapter`."
        )
    return base, model


def naming_base_model(given: str, base: str) -> AbstractContextManager[None]:
    """Like `naming_model` for the value of `--model`, or the base model if that is an adapter."""
    return naming_model(base, "`--model`" if base == given else f"{given}: its base model (`base_model_name_or_path`)")


def processor_source(base: str, adapter: str | None) -> str:
    """Where to load the processor from: the adapter's folder if it has one, otherwise the base model."""
    has_processor = adapter is not None and any((Path(adapter) / name).is_file() for name in PROCESSOR_FILES)
    return adapter if has_processor else base
