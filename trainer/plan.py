"""
What a training run will need of a device's memory. Computed, not measured.

    python trainer/plan.py --model_size 7b --method full --engine fsdp --devices 8

`--page` prints the tables of recipes/MEMORY.md. Gigabytes are 10^9 bytes throughout.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import LlamaConfig

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration
from logramed.trainer.alignment import GraphNetwork


# Language models (Llama's: arXiv:2302.13971, Table 2) beside CLIP ViT-L/14 at 224 pixels.
MODEL_SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
METHODS = ("full", "lora", "qlora", "projector")
ENGINES = ("single", "ddp", "fsdp", "hsdp", "zero2", "zero3")
LORA_RANK = 16
NF4_BYTES = (4 + 0.127) / 8  # a weight and its share of the constants, quantized too (arXiv:2305.14314, section 3)
# Bytes that a Llama layer keeps for its backward pass, a token and value of the hidden state, by the bytes of such a
# value: 4 where autocast keeps float32 between layers. Counted on the layer (tests/trainer/test_plan.py); a GPT layer
# keeps 34 beside its attention scores (arXiv:2205.05198, section 4).
LAYER_BYTES = {2: 46, 4: 56}


DEVICE_BYTES = 80e9  # an A100 or H100


class Workload(NamedTuple):
    """Assumed tokens of the longest sample of a batch, and of its answers and extended answers as graph nodes."""

    longest: int
    longest_node: int


WORKLOADS = {
    "captions": Workload(512, 0),
    "instruct": Workload(1024, 800),
}


@dataclass(frozen=True)
class Counts:
    """Weights by part, and the sizes that activations depend on."""

    vision: int
    projector: int
    graph: int
    embeddings: int
    head: int
    layers: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    lora: int

    @property
    def total(self) -> int:
        return self.vision + self.projector + self.graph + self.embeddings + self.head + self.layers


@dataclass(frozen=True)
class Run:
    """
    A run to plan.

    Args:
        model_size (`str`): One of `MODEL_SIZES`.
        method (`str`): `"full"` trains all but the tower, `"lora"` and `"qlora"` adapters with projector and graph
            network in full, `"projector"` that alone.
        engine (`str`): `"single"` and `"ddp"` hold all on each device; `"fsdp"` and `"zero3"` split weights, gradients
            and optimizer states over all devices, `"zero2"` the last two; `"hsdp"` splits inside each node only.
        num_devices (`int`): In all.
        batch_size (`int`): Samples a device and step.
        workload (`str`): One of `WORKLOADS`.
        devices_per_node (`int`): In one machine.
    """

    model_size: str = "7b"
    method: str = "full"
    engine: str = "fsdp"
    num_devices: int = 4
    batch_size: int = 16
    workload: str = "instruct"
    devices_per_node: int = 8

    def __post_init__(self):
        for name, choices in (("method", METHODS), ("engine", ENGINES), ("model_size", MODEL_SIZES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        if self.num_devices < 1 or self.batch_size < 1:
            raise ValueError(f"`devices` and `batch_size` start at 1; got {self.num_devices} and {self.batch_size}.")
        if (self.engine == "single") != (self.num_devices == 1):
            raise ValueError(f"`engine` 'single' is one device, the others are several; got {self.num_devices}.")

    @property
    def num_shards(self) -> int:
        """Devices that the split parts are split over."""
        if self.engine == "hsdp":
            return min(self.devices_per_node, self.num_devices)
        return 1 if self.engine in ("single", "ddp") else self.num_devices

    @property
    def counts(self) -> Counts:
        return count_weights(self.model_size)

    @property
    def num_trained(self) -> int:
        counts = self.counts
        if self.method == "full":
            return counts.total - counts.vision
        return counts.projector + (0 if self.method == "projector" else counts.graph + counts.lora)


@lru_cache
def count_weights(model_size: str) -> Counts:
    """Weights of a model of that size, counted on the model itself, made without memory."""
    config = LoGraMedConfig(text_config=LlamaConfig(**MODEL_SIZES[model_size]))
    with torch.device("meta"):
        model = LoGraMedForConditionalGeneration(config)
        network = GraphNetwork(config.text_config.hidden_size)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    text, language = config.text_config, model.model.language_model
    linears = [module for module in language.layers.modules() if isinstance(module, torch.nn.Linear)]
    return Counts(
        vision=count(model.model.vision_tower),
        projector=count(model.model.multi_modal_projector),
        graph=count(network),
        embeddings=count(language.embed_tokens),
        head=count(model.lm_head),
        layers=count(language.layers) + count(language.norm),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        lora=sum(LORA_RANK * (linear.in_features + linear.out_features) for linear in linears),
    )


def state_bytes(engine: str, num_trained: float, num_frozen: float, num_shards: int) -> dict[str, float]:
    """
    Bytes a device holds of weights, gradients and AdamW's states under mixed precision, before anything is computed.

    `single` and `ddp`: float32 weights, of which autocast keeps a 16-bit copy of the trained ones, and float32
    gradients (4 + 2 + 4 + 8). `fsdp`, `hsdp`: float32, split (4 + 4 + 8). `zero2`, `zero3`: 16-bit weights and
    gradients, float32 weights among the optimizer's states (2 + 2 + 12). Frozen weights are as wide as trained ones.

    Source: arXiv:1910.02054, section 5, for what each stage splits; the widths are those of the engines as used here.
    """
    if engine in ("single", "ddp"):
        weights, gradients, optimizer = 6 * num_trained + 4 * num_frozen, 4 * num_trained, 8 * num_trained
    elif engine in ("fsdp", "hsdp"):
        weights = 4 * (num_trained + num_frozen) / num_shards
        gradients, optimizer = 4 * num_trained / num_shards, 8 * num_trained / num_shards
    else:
        weights = 2 * (num_trained + num_frozen) / (num_shards if engine == "zero3" else 1)
        gradients, optimizer = 2 * num_trained / num_shards, 12 * num_trained / num_shards
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer}


def activation_bytes(run: Run) -> float:
    """
    Bytes of activations with checkpointing: the inputs of all layers, and all of the one layer that is being
    recomputed. Attention keeps no scores, and the loss no logits (TRL takes it in chunks).

    Source: arXiv:2205.05198, section 5, for what is kept; `LAYER_BYTES` for how much.
    """
    counts, workload = run.counts, WORKLOADS[run.workload]
    value = 4 if run.method in ("full", "projector") and run.engine in ("single", "ddp") else 2
    main, nodes = run.batch_size * workload.longest, run.batch_size * workload.longest_node
    inputs = value * (main + nodes) * counts.num_layers
    return counts.hidden_size * (inputs + LAYER_BYTES[value] * max(main, nodes))


def gathered_bytes(run: Run) -> float:
    """
    Bytes of split weights while they are whole: two layers (one used, the next on its way) and what is in no layer
    (embeddings, head, projector, graph network), 16 bits each.
    """
    counts = run.counts
    if run.engine not in ("fsdp", "hsdp", "zero3"):
        return 0
    outside = counts.total - counts.layers - counts.vision
    return 2 * (2 * counts.layers / counts.num_layers + outside)


def memory(run: Run) -> dict[str, float]:
    """Bytes a device needs: `weights`, `gradients`, `optimizer`, `activations` and their `total`."""
    counts, trained = run.counts, run.num_trained
    if run.method in ("full", "projector"):
        frozen = counts.vision if run.method == "full" else counts.total - trained
        parts = state_bytes(run.engine, trained, frozen, run.num_shards)
    else:  # frozen weights in 16 or 4 bits, adapters and the parts trained in full in float32
        shards = 1 if run.engine == "zero2" else run.num_shards
        sixteen_bit = counts.vision + counts.embeddings + counts.head
        layers = counts.layers * (NF4_BYTES if run.method == "qlora" else 2)
        parts = {"weights": (2 * sixteen_bit + layers + 4 * trained) / shards}
        parts |= {"gradients": 4 * trained / run.num_shards, "optimizer": 8 * trained / run.num_shards}
    parts["weights"] += gathered_bytes(run)
    parts["activations"] = activation_bytes(run)
    return {**parts, "total": sum(parts.values())}


# What MEMORY.md shows.
PLANS = {
    "1 device, QLoRA": Run(method="qlora", engine="single", num_devices=1),
    "1 device, LoRA": Run(method="lora", engine="single", num_devices=1),
    "1 device, stage 1": Run(method="projector", engine="single", num_devices=1, workload="captions"),
    "1 device, full": Run(engine="single", num_devices=1),
    "4 devices, stage 1, FSDP": Run(method="projector", num_devices=4, workload="captions"),
    "4 devices, full, FSDP": Run(num_devices=4),
    "4 devices, full, ZeRO-2": Run(engine="zero2", num_devices=4),
    "8 devices, LoRA, DDP": Run(method="lora", engine="ddp", num_devices=8),
    "8 devices, full, FSDP": Run(num_devices=8),
    "8 devices, full, ZeRO-2": Run(engine="zero2", num_devices=8),
    "8 devices, full, ZeRO-3": Run(engine="zero3", num_devices=8),
    "128 nodes of 8, full, FSDP": Run(num_devices=1024),
    "128 nodes of 8, full, HSDP": Run(engine="hsdp", num_devices=1024),
}


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def weights_table() -> str:
    header = ["model", "tower", "projector", "graph network", "embeddings", "layers", "head", "all", "LoRA"]
    rows = []
    for size in MODEL_SIZES:
        counts = count_weights(size)
        parts = [counts.vision, counts.projector, counts.graph, counts.embeddings, counts.layers, counts.head]
        rows.append([size, *(f"{count / 1e6:,.0f}" for count in [*parts, counts.total, counts.lora])])
    return write_table(header, rows)


def memory_table() -> str:
    header = ["run", "weights", "gradients", "optimizer", "activations", "all", "of 80 GB"]
    rows = []
    for name, run in PLANS.items():
        parts = memory(run)
        share = parts["total"] / DEVICE_BYTES
        verdict = f"{share:.0%}" if share <= 1 else f"{share:.0%}: does not fit"
        rows.append([name, *(f"{value / 1e9:.1f}" for value in parts.values()), verdict])
    return write_table(header, rows)


TABLES = (weights_table, memory_table)


def describe(run: Run) -> str:
    lines = [f"{run.model_size}, {run.method}, {run.engine}, {run.num_devices} devices, batch {run.batch_size}"]
    lines += [f"  {name:<12}{value / 1e9:8.1f} GB a device" for name, value in memory(run).items()]
    return "\n".join([*lines, "Computed, not measured; recipes/MEMORY.md has the formulas and what is assumed."])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compute the memory of a training run.")
    parser.add_argument("--model_size", default="7b", choices=MODEL_SIZES)
    parser.add_argument("--method", default="full", choices=METHODS)
    parser.add_argument("--engine", default="fsdp", choices=ENGINES)
    parser.add_argument("--devices", type=int, default=4, help="devices in all")
    parser.add_argument("--devices_per_node", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16, help="samples a device and step")
    parser.add_argument("--workload", default="instruct", choices=WORKLOADS, help="how long samples are")
    parser.add_argument("--page", action="store_true", help="print the tables of recipes/MEMORY.md instead")
    arguments = parser.parse_args(argv)
    if arguments.page:
        print("\n".join(table() for table in TABLES), end="")
        return 0
    values = vars(arguments)
    del values["page"]
    try:
        run = Run(num_devices=values.pop("devices"), **values)
    except ValueError as error:
        parser.error(str(error))
    print(describe(run))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
