"""Names of models as people type them: a folder or an id on the Hub. A mistyped folder is not looked up on the Hub."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig


ADAPTER_CONFIG = "adapter_config.json"
CONFIGURATIONS = ("config.json", ADAPTER_CONFIG)
# Model types of LLaVA's own code that transformers has no class for, and what `logramed-convert --from` calls them.
FOREIGN_TYPES = {"llava_mistral": "llava-med-v1.5", "llava_llama": "llava"}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def looks_like_path(name: str) -> bool:
    """
    Whether a name can only be meant as a folder: an id on the Hub is a name, or an owner and a name.

    Example:
        >>> looks_like_path("runs/quickstart/model"), looks_like_path("./model"), looks_like_path("org/model")
        (True, True, False)
    """
    first, *further = Path(name).parts or ("",)
    marked = name.startswith((".", "~")) or os.path.isabs(name) or name.endswith(("/", os.sep)) or "\\" in name
    return marked or len(further) > 1 or (len(further) == 1 and Path(first).is_dir())


def refuse_missing_path(name: str, argument: str) -> None:
    """Raise `ValueError` if `name` looks like a path and there is no such folder."""
    if not Path(name).is_dir() and looks_like_path(name):
        raise ValueError(f"{argument} {name}: there is no such folder in {Path.cwd()}.")


@contextmanager
def naming_model(name: str | Path, argument: str, foreign: bool = False) -> Iterator[None]:
    """
    Make one sentence, with the `argument` that a user gave, of a model that cannot be found when it is loaded inside.

    Raises `ValueError` if `name` looks like a path and there is no such folder, if a folder holds no model, or (unless
    it may be `foreign`) one that must be converted first, or if neither a folder nor the Hub has it.
    """
    name = str(name)
    refuse_missing_path(name, argument)
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in CONFIGURATIONS):
        raise ValueError(f"{argument} {name} is a folder without {' or '.join(CONFIGURATIONS)}: no model.")
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
    Raise `ValueError`, with the command that converts it, if a folder, or a repository of the Hub, holds a checkpoint
    of LLaVA's own code, which transformers does not know or, worse, takes for its own.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError):  # told when the model is loaded
        return
    kind = find_foreign_kind(config)
    if kind is not None:
        raise ValueError(
            f"{argument} {name} is a checkpoint of another code. Convert it first: logramed-convert --from {kind} "
            f"{name} OUTPUT"
        )


def find_foreign_kind(config: Mapping[str, Any]) -> str | None:
    """
    What `logramed-convert --from` calls the checkpoint with this config.json, or `None` if it needs no conversion.

    A delta has the configuration of the whole model, and is not told apart.

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
    # Configurations of LLaVA v0 give the length a name of their own.
    is_v0 = config.get("mm_use_im_start_end") or (
        "max_sequence_length" in config and "max_position_embeddings" not in config
    )
    return "llava-med-v1" if is_v0 else "llava"


def resolve_adapter(model: str, adapter: str | None = None) -> tuple[str, str | None]:
    """The base model and the adapter on it, where `model` may be an adapter itself."""
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
    """As `naming_model` for what `--model` gave: itself, or the base model of the adapter that it is."""
    return naming_model(base, "`--model`" if base == given else f"{given}: its base model (`base_model_name_or_path`)")


def processor_source(base: str, adapter: str | None) -> str:
    """Where the processor is: in the adapter's folder, if that has one, else with the base."""
    has_processor = adapter is not None and any((Path(adapter) / name).is_file() for name in PROCESSOR_FILES)
    return adapter if has_processor else base
