"""What training on several devices needs beside what Trainer and accelerate do."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from logramed.trainer.arguments import LoGraMedTrainingArguments


def check_engine(args: LoGraMedTrainingArguments, accelerator: Accelerator) -> None:
    """Refuse what an engine for several devices cannot do."""
    if args.rows_without_image == "language_only" and args.alignment_weight > 0:
        several = {"several processes": accelerator.num_processes > 1, "`accumulate_graph`": args.accumulate_graph}
        for name in (name for name, is_so in several.items() if is_so):
            raise ValueError(
                f"`rows_without_image` is 'language_only', which does not go with {name}: a batch without any image "
                "has no graph, and others would wait for it. Leave such rows out (`on_bad_row skip`)."
            )
    if args.accumulate_graph and accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "`accumulate_graph` does not work with DeepSpeed, which sends gradients after every micro-batch. Use DDP "
            "or FSDP2."
        )
    sizes = {
        name: getattr(accelerator.parallelism_config, name, None) or 1 for name in ("tp_size", "cp_size", "sp_size")
    }
    if args.gather_graph and max(sizes.values()) > 1:
        found = ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise ValueError(
            f"`gather_graph` takes every process to have samples of its own, but with {found} several have the same: "
            "their nodes would be in the graph several times. Use data parallelism alone (DDP, FSDP2)."
        )


def name_units(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """
    Name the units in which FSDP2 splits an `AlignedModel`: what accelerate takes by default or was told, as far as the
    model has such modules (transformers names those of text towers too, and accelerate refuses what is missing), the
    graph network, which is called after the model's own pass, and the head, since all weights of a unit are of one
    dtype.
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
    Under FSDP2, have the language model's head gathered for the forward pass at hand.

    accelerate makes the head a unit of its own, but TRL's fused head reads its weights without calling it, gathers
    them by itself, and each process then keeps its own gradient of its shard: no mean over the processes is taken
    (accelerate 1.15, TRL 1.16). A head that is gathered already is used as it is, and FSDP reduces its gradient.
    """
    head = model.get_output_embeddings()
    if isinstance(head, FSDPModule):
        head.unshard()


def gather_own_weights(model: torch.nn.Module) -> None:
    """
    Under FSDP2, gather what belongs to no part of an `AlignedModel` but to the whole, for code that calls its parts
    one by one: the parts gather their weights themselves.
    """
    if isinstance(model, FSDPModule):
        model.unshard()
        gather_language_head(model.base)
