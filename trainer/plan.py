"""
What a training run will need: memory a device, time a step, bytes sent. Computed, not measured.

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


# Language models (Llama's: arXiv:2302.13971, Table 2) beside CLIP ViT-L/14 at 224 pixels.
MODEL_SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
METHODS = ("full", "lora", "qlora", "projector")
ENGINES = ("single", "ddp", "fsdp", "hsdp", "zero2", "zero3")
LORA_RANK = 16
NF4_BYTES = (4 + 0.127) / 8  # a weight and its share of the constants, quantized too (arXiv:2305.14314, section 3)
IMAGE_TOWER_TOKENS = 257
# Bytes that a Llama layer keeps for its backward pass, a token and value of the hidden state, by the bytes of such a
# value: 4 where autocast keeps float32 between layers. Counted on the layer (tests/trainer/test_plan.py); a GPT layer
# keeps 34 beside its attention scores (arXiv:2205.05198, section 4).
LAYER_BYTES = {2: 46, 4: 56}


class Device(NamedTuple):
    """A kind of device: its data sheet, per device and direction."""

    memory: float  # bytes
    peak: float  # 16-bit products and sums a second, dense
    node_bandwidth: float  # bytes a second inside a node
    network_bandwidth: float  # bytes a second to other nodes


DEVICES = {
    "a100": Device(80e9, 312e12, 300e9, 25e9),
    "h100": Device(80e9, 989e12, 450e9, 50e9),
}

# Assumptions: none is measured here.
UTILIZATION = 0.3  # share of the peak that the model's own products reach (MFU); recomputation is not counted as such
HOP_SECONDS = 5e-6  # of one step of a ring, beside the bytes sent


class Workload(NamedTuple):
    """Tokens of a sample: assumed means for time, and assumed longest of a batch for memory."""

    tokens: int
    node_tokens: int  # answers and extended answers, encoded once more as graph nodes
    longest: int
    longest_node: int


WORKLOADS = {
    "captions": Workload(350, 0, 512, 0),
    "instruct": Workload(600, 500, 1024, 800),
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
        device (`str`): One of `DEVICES`.
        devices_per_node (`int`): In one machine.
    """

    model_size: str = "7b"
    method: str = "full"
    engine: str = "fsdp"
    num_devices: int = 4
    batch_size: int = 16
    workload: str = "instruct"
    device: str = "a100"
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
    def num_nodes(self) -> int:
        return -(-self.num_devices // self.devices_per_node)

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

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    text, language = config.text_config, model.model.language_model
    linears = [module for module in language.layers.modules() if isinstance(module, torch.nn.Linear)]
    return Counts(
        vision=count(model.model.vision_tower),
        projector=count(model.model.multi_modal_projector),
        graph=count(model.model.graph_network),
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


def sample_flops(run: Run) -> float:
    """
    Floating-point operations of one sample: 6 for each weight and token where weights are trained, 4 where gradients
    only pass through them, 2 without gradient (the tower). Attention scores (about 4% at 1,024 tokens) and the graph
    network on its few nodes are left out; so is recomputation, which is no progress.

    Source: arXiv:2001.08361, section 2.1.
    """
    counts, workload = run.counts, WORKLOADS[run.workload]
    factor = 6 if run.method == "full" else 4
    language = factor * (workload.tokens * (counts.layers + counts.head) + workload.node_tokens * counts.layers)
    return language + 2 * counts.vision * IMAGE_TOWER_TOKENS


def alignment_share(run: Run) -> float:
    """Operations of the passes over node texts, as a share of all."""
    counts, workload = run.counts, WORKLOADS[run.workload]
    factor = 6 if run.method == "full" else 4
    return factor * workload.node_tokens * counts.layers / sample_flops(run)


def compute_seconds(run: Run) -> float:
    return run.batch_size * sample_flops(run) / (UTILIZATION * DEVICES[run.device].peak)


def communication(run: Run) -> tuple[float, float]:
    """
    Bytes a device sends in a step without accumulation, and the seconds that takes at the assumed bandwidths.

    All-gathers of 16-bit weights before forward and backward pass and a reduce-scatter of 16-bit gradients (`fsdp`,
    `zero3`; arXiv:1910.02054, section 7); an all-reduce of float32 gradients (`ddp`); a reduce-scatter of gradients
    and an all-gather of weights (`zero2`); `hsdp` does the first inside a node and an all-reduce of its share of the
    gradients between nodes. A ring between nodes uses all network cards of a node. Each layer is a collective of its
    own, and each takes as many hops as its ring has devices.
    """
    counts, trained, device = run.counts, run.num_trained, DEVICES[run.device]
    in_node = min(run.devices_per_node, run.num_devices)
    across = device.network_bandwidth * in_node if run.num_nodes > 1 else device.node_bandwidth
    if run.engine == "single":
        return 0.0, 0.0
    if run.engine == "ddp":
        parts = [(8 * trained, 2, run.num_devices, across)]
    elif run.engine == "zero2":
        parts = [(4 * trained, 2, run.num_devices, across)]
    elif run.engine == "hsdp":
        parts = [
            (4 * counts.total + 2 * trained, 3 * counts.num_layers, in_node, device.node_bandwidth),
            (4 * trained / in_node, 2 * counts.num_layers, run.num_nodes, device.network_bandwidth),
        ]
    else:
        parts = [(4 * counts.total + 2 * trained, 3 * counts.num_layers, run.num_devices, across)]
    sent = [volume * (ring - 1) / ring for volume, _, ring, _ in parts]
    seconds = [
        volume / bandwidth + collectives * (ring - 1) * HOP_SECONDS
        for volume, (_, collectives, ring, bandwidth) in zip(sent, parts, strict=True)
    ]
    return sum(sent), sum(seconds)


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


class LoggedRun(NamedTuple):
    """A run of the paper's: how many samples a device took in how many seconds."""

    run: Run
    samples: float
    seconds: float


LOGGED = {
    "stage 1, 40%, 2 devices x 16 x 2 (log, 8.4 s a step)": LoggedRun(
        Run(method="projector", num_devices=2, workload="captions"), 32, 8.4
    ),
    "stage 2, 40%, 4 devices x 8 (log, 5.9 s a step)": LoggedRun(Run(batch_size=8), 8, 5.9),
    "stage 1, all, 4 devices (paper, 6.5 h)": LoggedRun(
        Run(method="projector", workload="captions"), 467_000 / 4, 6.5 * 3600
    ),
    "stage 2, all, 3 epochs, 4 devices (paper, 7.5 h)": LoggedRun(Run(), 3 * 56_700 / 4, 7.5 * 3600),
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
        share = parts["total"] / DEVICES[run.device].memory
        verdict = f"{share:.0%}" if share <= 1 else f"{share:.0%}: does not fit"
        rows.append([name, *(f"{value / 1e9:.1f}" for value in parts.values()), verdict])
    return write_table(header, rows)


def speed_table() -> str:
    header = ["run", "computing, s", "sent, GB", "sending, s", "samples/s", "of it alignment"]
    rows = []
    for name, run in PLANS.items():
        (sent, sending), computing = communication(run), compute_seconds(run)
        samples = run.batch_size * run.num_devices / max(computing, sending)
        row = [
            f"{computing:.1f}",
            f"{sent / 1e9:.1f}",
            f"{sending:.2f}",
            f"{samples:,.1f}",
            f"{alignment_share(run):.0%}",
        ]
        rows.append([name, *row])
    return write_table(header, rows)


def logged_table() -> str:
    header = ["run", "samples/s a device", "computed", "utilization it implies"]
    rows = []
    for name, (run, samples, seconds) in LOGGED.items():
        computed = run.batch_size / compute_seconds(run)
        implied = samples * sample_flops(run) / seconds / DEVICES[run.device].peak
        rows.append([name, f"{samples / seconds:.1f}", f"{computed:.1f}", f"{implied:.2f}"])
    return write_table(header, rows)


TABLES = (weights_table, memory_table, speed_table, logged_table)


def describe(run: Run) -> str:
    parts, (sent, sending), computing = memory(run), communication(run), compute_seconds(run)
    lines = [f"{run.model_size}, {run.method}, {run.engine}, {run.num_devices} x {run.device}, batch {run.batch_size}"]
    lines += [f"  {name:<12}{value / 1e9:8.1f} GB a device" for name, value in parts.items()]
    lines += [
        f"  {'computing':<12}{computing:8.2f} s a step at an assumed utilization of {UTILIZATION}",
        f"  {'sending':<12}{sending:8.2f} s a step for {sent / 1e9:.1f} GB a device, beside the computing",
        f"  {'samples':<12}{run.batch_size * run.num_devices / max(computing, sending):8.1f} a second in all",
        "Computed, not measured; recipes/MEMORY.md has the formulas and what is assumed.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compute memory, time and bytes sent of a training run.")
    parser.add_argument("--model_size", default="7b", choices=MODEL_SIZES)
    parser.add_argument("--method", default="full", choices=METHODS)
    parser.add_argument("--engine", default="fsdp", choices=ENGINES)
    parser.add_argument("--devices", type=int, default=4, help="devices in all")
    parser.add_argument("--devices_per_node", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16, help="samples a device and step")
    parser.add_argument("--workload", default="instruct", choices=WORKLOADS, help="how long samples are")
    parser.add_argument("--device", default="a100", choices=DEVICES)
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
