"""Which parts of a model are trained: in full, frozen, or with adapters. Parts are found by the model's structure."""

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel


PARTS = ("projector", "language", "vision")  # `language` includes the head
ALL_LINEAR = "all-linear"


def parse_parts(text: str | None, use_peft: bool = False) -> tuple[str, ...]:
    """
    The parts in `--train`, separated by commas; for None all parts, or with adapters (`use_peft`) all but `vision`.

    Raises:
        ValueError: For an unknown part, no part at all, or parts that do not work with adapters.

    Example:
        >>> parse_parts("projector,language")
        ('projector', 'language')
    """
    if text is None:
        return tuple(part for part in PARTS if not (use_peft and part == "vision"))
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"`train` must name some of {', '.join(PARTS)}, separated by commas; got {text!r}.")
    if use_peft and ("language" not in parts or "vision" in parts):
        raise ValueError(
            "`use_peft` trains the language model with adapters, the projector in full, and the vision tower not at "
            f"all, so `train` must name `language` and not `vision`; got {text!r}."
        )
    return parts


def unwrap_model(model: nn.Module) -> PreTrainedModel:
    """The model itself, without adapters and without the trainer's wrappers."""
    while not isinstance(model, PreTrainedModel):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.model
    return model


def find_weights(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """
    The weights of each part.

    `language` is the decoder and the head, `vision` the image encoder, and `projector` everything else. If there is
    nothing else (Qwen2-VL and similar models), the projector is what comes after the encoder's layers.
    """
    model = unwrap_model(model)
    head = model.get_output_embeddings()
    language = [*model.get_decoder().parameters(), *(head.parameters() if head is not None else ())]
    projector = {id(weight) for module in find_projectors(model) for weight in module.parameters()}
    tower = {id(weight) for weight in find_tower(model).parameters()} - projector
    in_language = {id(weight) for weight in language}
    named = [(name, weight) for name, weight in model.named_parameters() if ".original_module." not in name]  # PEFT's
    others = [weight for _, weight in named if id(weight) not in in_language]
    return {
        "projector": [weight for weight in others if id(weight) not in tower],
        "language": [weight for weight in model.parameters() if id(weight) in in_language],
        "vision": [weight for weight in others if id(weight) in tower],
    }


def find_tower(model: PreTrainedModel) -> nn.Module:
    """The image encoder of a model; `ValueError` if it has none."""
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        raise ValueError(f"{type(model).__name__} has no vision tower: give an image-text-to-text model.")
    return tower


def find_projectors(model: PreTrainedModel) -> list[nn.Module]:
    """The modules between vision tower and language model (see `find_weights`)."""
    decoder, head, tower = model.get_decoder(), model.get_output_embeddings(), find_tower(model)
    outside = [
        module
        for module in model.base_model.children()
        if module not in (decoder, head, tower) and next(module.parameters(), None) is not None
    ]
    if outside:
        return outside
    children = list(tower.children())
    layers = next((place for place, child in enumerate(children) if isinstance(child, nn.ModuleList)), len(children))
    return [child for child in children[layers + 1 :] if next(child.parameters(), None) is not None]


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Freeze all weights outside `parts`; a frozen vision tower always stays in evaluation mode."""
    for part, weights in find_weights(model).items():
        for weight in weights if part not in parts else ():
            weight.requires_grad_(False)
    if "vision" not in parts:
        keep_tower_in_evaluation_mode(model)


def keep_tower_in_evaluation_mode(model: nn.Module) -> None:
    """Keep the vision tower in evaluation mode, even if the model is set to training mode."""
    tower = find_tower(unwrap_model(model))
    tower.eval()
    tower.train = lambda mode=True: tower


def complete_adapters(config: LoraConfig, model: PreTrainedModel, parts: Sequence[str]) -> LoraConfig:
    """
    Adapters (arXiv:2106.09685) only for linear layers of the language model, by default all of them. The projector, if
    `parts` names it, is trained in full and saved with them, unless the configuration names other modules. Raises
    `ValueError` if the language model has no linear layer of a given name.
    """
    config.target_modules = find_layers(model, config.target_modules or ALL_LINEAR)
    if "projector" in parts and config.modules_to_save is None:
        config.modules_to_save = names_of(model, find_projectors(model))
    return config


def find_layers(model: PreTrainedModel, target_modules: str | Sequence[str]) -> str:
    """A pattern for the full names of the language model's linear layers that get adapters."""
    [prefix] = names_of(model, [model.get_decoder()])
    linear = [name for name, module in model.get_decoder().named_modules() if isinstance(module, nn.Linear)]
    names = {name.rpartition(".")[2] for name in linear}
    wanted = {target_modules} if isinstance(target_modules, str) else set(target_modules)
    wanted = names if wanted == {ALL_LINEAR} else wanted
    if not wanted or wanted - names:
        raise ValueError(
            f"`lora_target_modules` names {', '.join(sorted(wanted - names)) or 'nothing'}, but the language model "
            f"has the linear layers {', '.join(sorted(names))}. `{ALL_LINEAR}` selects them all."
        )
    return rf"{re.escape(prefix)}\.(.*\.)?({'|'.join(sorted(map(re.escape, wanted)))})"


def names_of(model: nn.Module, modules: Sequence[nn.Module]) -> list[str]:
    """The names that `modules` have in `model`."""
    return [name for name, module in model.named_modules() if any(module is wanted for wanted in modules)]


def unquantized_modules(model: PreTrainedModel) -> list[str]:
    """Modules that keep their dtype when a model is loaded in 4 or 8 bits: all but the language model's layers."""
    kept = [find_tower(model), *find_projectors(model), model.get_output_embeddings()]
    return names_of(model, kept)


def count_trained(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Numbers of trained weights and of all weights in each part (in 4 bits as stored: two in one)."""
    return {
        part: (sum(weight.numel() for weight in weights if weight.requires_grad), sum(map(torch.numel, weights)))
        for part, weights in find_weights(model).items()
    }


def describe_trained(model: nn.Module) -> str:
    """A one-line summary: "Trained: projector 1,024 of 1,024, language 0 of 50,000, ..."."""
    counts = ", ".join(f"{part} {trained:,} of {total:,}" for part, (trained, total) in count_trained(model).items())
    return f"Trained: {counts} weights."
