"""Additions to Trainer and accelerate for training on several devices."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from logramed.trainer.arguments import LoGraMedTrainingArguments


def check_engine(args: LoGraMedTrainingArguments, accelerator: Accelerator) -> None:
    """Raises `ValueError` for settings that an engine for several devices does not support."""
    if args.rows_without_image == "language_only" and args.alignment_weight > 0:
        several = {"several processes": accelerator.num_processes > 1, "`accumulate_graph`": args.accumulate_graph}
        for name in (name for name, is_so in several.items() if is_so):
            raise ValueError(
                f"`rows_without_image` is 'language_only', which does not work with {name}: a batch without any image "
                "has no graph, and others would wait for it. Leave such rows out (`on_bad_row skip`)."
            )
    if args.accumulate_graph and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "`accumulate_graph` does not work with DeepSpeed, which reduces gradients after every micro-batch. Use "
            "DDP or FSDP2."
        )
    sizes = {
        name: getattr(accelerator.parallelism_config, name, None) or 1 for name in ("tp_size", "cp_size", "sp_size")
    }
    if args.gather_graph and max(sizes.values()) > 1:
        found = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise ValueError(
            f"`gather_graph` needs different samples on every process, but with {found} several have the same: "
            "their nodes would be in the graph several times. Use only data parallelism (DDP, FSDP2)."
        )


def name_units(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """
    Set the module classes that FSDP2 wraps as units in an `AlignedModel`: accelerate's default or configured ones, if
    the model has them (transformers also names those of text towers, and accelerate raises for missing ones); the
    graph network, because it is called after the model's own pass; and the head, because all weights of a unit must
    have one dtype.
    """
    present = {type(module).__name__ for module in model.modules()}
    for module in model.modules():
        names = vars(module).get("_no_split_modules")
        if names is not None:
            module._no_split_modules = type(names)(name for name in names if name in present)
    own = {"GraphNetwork", "AlignmentHead"} & present
    model._no_split_modules = [*(getattr(model.base, "_no_split_modules", None) or ()), *own]
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is not None:
        plugin.transformer_cls_names_to_wrap = [*{*plugin.transformer_cls_names_to_wrap, *own}]


def gather_language_head(model: torch.nn.Module) -> None:
    """
    Under FSDP2, gather the language model's head for the current forward pass.

    accelerate makes the head a separate unit, but TRL's fused head reads its weights without calling it and gathers
    them itself. Each process then keeps its own gradient of its shard, which is not averaged over the processes
    (accelerate 1.15, TRL 1.16). A head that is already gathered is used as it is, and FSDP reduces its gradient.
    """
    head = model.get_output_embeddings()
    if isinstance(head, FSDPModule):
        head.unshard()


def gather_own_weights(model: torch.nn.Module) -> None:
    """
    Under FSDP2, gather the weights that belong to the root of an `AlignedModel`, for code that calls its parts one by
    one: the parts gather their own weights themselves.
    """
    if isinstance(model, FSDPModule):
        model.unshard()
        gather_language_head(model.base)
