"""Which parts of a model are trained: in full, frozen, or through adapters, on weights that may be in 4 bits."""

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig


# What each part's weights have in their names; `language` includes the head.
PART_NAMES = {
    "projector": ("multi_modal_projector.",),
    "graph": ("graph_network.",),
    "language": ("language_model.", "lm_head."),
    "vision": ("vision_tower.",),
}
PARTS = tuple(PART_NAMES)
MODULES_IN_FULL = {"projector": "multi_modal_projector", "graph": "graph_network"}
# What stays as it is where the language model's layers are put into 4 bits.
UNQUANTIZED_MODULES = ("lm_head", "model.multi_modal_projector", "model.graph_network", "model.vision_tower")


def parse_parts(text: str | None, use_peft: bool = False) -> tuple[str, ...]:
    """
    The parts that `--train` names.

    Args:
        text (`str`, *optional*): Parts, separated by commas; None for all, and with adapters all but the vision tower.
        use_peft (`bool`, *optional*, defaults to `False`): Whether the language model is trained through adapters.

    Raises:
        ValueError: For a part that there is not, none at all, or parts that adapters do not go with.

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
            "`use_peft` trains the language model through adapters, the projector and graph network in full and the "
            f"vision tower not at all, so `train` must name `language` and not `vision`; got {text!r}."
        )
    return parts


def find_part(name: str) -> str | None:
    """The part that the weight of this name belongs to, or None."""
    return next((part for part, marks in PART_NAMES.items() if any(mark in name for mark in marks)), None)


def freeze_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Let only the weights of `parts` be trained; a frozen vision tower stays in evaluation mode throughout."""
    for name, weight in model.named_parameters():
        if find_part(name) not in parts:
            weight.requires_grad_(False)
    if "vision" not in parts:
        keep_in_evaluation_mode(model.get_submodule("model.vision_tower"))


def keep_in_evaluation_mode(module: nn.Module) -> None:
    """Leave `module` in evaluation mode whatever mode the model around it is put in."""
    module.eval()
    module.train = lambda mode=True: module


def add_adapters(
    model: nn.Module,
    parts: Sequence[str],
    rank: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str] = ("all-linear",),
) -> PeftModel:
    """
    LoRA on linear layers of the language model; projector and graph network, where `parts` names them, are trained in
    full and saved with the adapter. All else is frozen.

    Args:
        model (`LoGraMedForConditionalGeneration`): May be in 4 bits (see `quantization`).
        parts (`Sequence[str]`): As `parse_parts` returns them.
        rank, alpha, dropout: Of the adapters.
        target_modules (`Sequence[str]`): Last names of the layers to adapt, such as `q_proj`, or `all-linear`.

    Returns:
        `PeftModel`: Its `save_pretrained` writes what is trained and nothing else.

    Raises:
        ValueError: If the language model has no linear layer of a name.

    Source: arXiv:2106.09685; in 4 bits arXiv:2305.14314.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=find_layers(model, target_modules),
        modules_to_save=[MODULES_IN_FULL[part] for part in parts if part in MODULES_IN_FULL],
    )
    adapted = get_peft_model(model, config)
    keep_in_evaluation_mode(model.get_submodule("model.vision_tower"))
    return adapted


def find_layers(model: nn.Module, target_modules: Sequence[str]) -> str:
    """A pattern of the full names of the language model's linear layers that `add_adapters` is to adapt."""
    prefix = "model.language_model."
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    wanted = names if list(target_modules) == ["all-linear"] else set(target_modules)
    if not wanted or wanted - names:
        raise ValueError(
            f"`lora_target_modules` names {', '.join(sorted(wanted - names)) or 'nothing'}, but the language model "
            f"has the linear layers {', '.join(sorted(names))}. `all-linear` takes them all."
        )
    return rf"{re.escape(prefix)}.*\.({'|'.join(sorted(map(re.escape, wanted)))})"


def quantization(dtype: torch.dtype) -> BitsAndBytesConfig:
    """
    The language model's layers in 4 bits (NormalFloat, doubly quantized), computed in `dtype`; all else as it is.

    Source: arXiv:2305.14314, section 3.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED_MODULES),
    )


def unwrap_adapters(model: nn.Module) -> nn.Module:
    """The model itself, whose modules have their own names, also where adapters are on it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def keep_dtypes(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """
    Give weights the dtypes they had. TRL puts those that are trained beside weights in 4 bits into bfloat16, where
    most steps of an optimizer are too small to change them.
    """
    for name, weight in model.named_parameters():
        if name in dtypes and weight.dtype != dtypes[name]:
            weight.data = weight.data.to(dtypes[name])


def count_trained(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each part how many weights are trained and how many there are (4 bits: as stored, two in one)."""
    counts = dict.fromkeys(PARTS, (0, 0))
    for name, weight in model.named_parameters():
        part = find_part(name)
        if part is not None:
            trained, total = counts[part]
            counts[part] = (trained + weight.numel() * weight.requires_grad, total + weight.numel())
    return counts


def describe_trained(model: nn.Module) -> str:
    """
    What is trained, in one line.

    Example:
        `"Trained: projector 1,024 of 1,024, graph 0 of 2,048, language 0 of 50,000, vision 0 of 9,000 weights."`
    """
    counts = ", ".join(f"{part} {trained:,} of {total:,}" for part, (trained, total) in count_trained(model).items())
    return f"Trained: {counts} weights."
