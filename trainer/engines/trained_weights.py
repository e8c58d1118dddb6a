"""Chooses which weights a run trains and in which dtype, and loads them from its own checkpoints."""

from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments


def freeze_unused_weights(model: nn.Module) -> None:
    """
    Turn `requires_grad` off for weights of a LLaVA vision tower that never get a gradient: those after the last
    hidden state that its projector reads.

    This changes no result, but FSDP2 cannot resume from a checkpoint whose optimizer has no state for such a weight.
    """
    if not hasattr(model.config, "vision_feature_layer"):
        return
    for name, module in model.named_modules():
        if name.endswith("vision_tower"):
            for part in unused_tower_parts(module, model.config):
                part.requires_grad_(False)


def layers_read(config) -> list[int]:
    """The indices, ascending, of the vision tower's hidden states that the projector of a LLaVA reads."""
    selected = config.vision_feature_layer
    selected = selected if isinstance(selected, list | tuple) else [selected]
    num_states = config.vision_config.num_hidden_layers + 1
    return sorted({layer % num_states for layer in (*selected, *(getattr(config, "connected_layers", None) or ()))})


def unused_tower_parts(tower: nn.Module, config) -> list[nn.Module | nn.Parameter]:
    """Layers after the last hidden state that `config` reads, what follows them, and embeddings of masked patches."""
    num_layers, num_used = config.vision_config.num_hidden_layers, max(layers_read(config))
    parts = [value for name, value in tower.named_parameters() if name.endswith("mask_token")]
    for module in tower.modules():
        children = [name for name, _ in module.named_children()]
        if "encoder" in children:  # modules after it pool the image into one vector, which is not read
            parts += [module.get_submodule(name) for name in children[children.index("encoder") + 1 :]]
        elif isinstance(module, nn.ModuleList) and len(module) == num_layers:
            parts += module[num_used:]
    return parts


def train_in_float32(model: nn.Module, args: TrainingArguments) -> None:
    """
    Convert the trained weights on top of a frozen 16-bit or quantized base (adapters and parts saved with them) to
    float32: in 16 bits, most optimizer steps would be lost. TRL converts them to bfloat16 on a quantized base. Raises
    `ValueError` if a part other than an adapter would then get 16-bit inputs without autocast (`bf16`, `fp16`).
    """
    if not isinstance(model, PeftModel):
        return
    sixteen_bits = (torch.float16, torch.bfloat16)
    meets_16_bits = any(weight.dtype in sixteen_bits for weight in model.parameters() if not weight.requires_grad)
    in_full = []
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.dtype in sixteen_bits:
            weight.data = weight.data.float()
            in_full += [name] if "lora_" not in name else []
    if in_full and meets_16_bits and not (args.bf16 or args.fp16):
        raise ValueError(
            f"{len(in_full)} weights are trained in full on a 16-bit base, such as {in_full[0]}: they are kept in "
            "float32, which needs mixed precision. Set `bf16` (or `fp16`) to true, or load the base in float32."
        )


@torch.no_grad()
def load_weights(model: nn.Module, folder: str | Path) -> None:
    """
    Load the weights that `save_pretrained` wrote into an existing model, which keeps its dtypes. Uses
    `from_pretrained`, which maps the names in files. Raises `ValueError` for missing or unknown weights: otherwise a
    run would go on with random ones, or keep them as the best.
    """
    loaded, found = type(model).from_pretrained(folder, output_loading_info=True)
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing or unknown:
        raise ValueError(
            f"The checkpoint {folder} lacks {len(missing)} weights of the model ({', '.join(missing[:3])}) and has "
            f"{len(unknown)} unknown ones ({', '.join(unknown[:3])})."
        )
    model.load_state_dict(loaded.state_dict())
