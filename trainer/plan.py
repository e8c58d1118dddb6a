"""
Memory that a training run will need a device. Computed, not measured.

    python trainer/plan.py --model_size 7b --method full --engine fsdp --devices 8

`--page` prints the tables of recipes/MEMORY.md, and of other families in recipes/README.md. A gigabyte is
10^9 bytes throughout.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, LlamaConfig

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration
from logramed.eval.command_line import ArgumentParser, run_command
from logramed.trainer.alignment.graph_network import GraphNetwork
from logramed.trainer.parts import complete_adapters, freeze_parts


def sizes(hidden: int, intermediate: int, layers: int, heads: int, **others) -> dict:
    """Arguments of a transformer's configuration."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **others,
    }


# Language models (Llama's: arXiv:2302.13971, Table 2) beside CLIP ViT-L/14 at 224 pixels.
MODEL_SIZES = {"7b": sizes(4096, 11008, 32, 32), "13b": sizes(5120, 13824, 40, 40)}
# Other families as their recipes train them: model type, published sizes, and whether through adapters.
FAMILIES = {
    "medgemma_4b_lora.yaml": (
        "gemma3",
        {
            "text_config": sizes(2560, 10240, 34, 8, num_key_value_heads=4, head_dim=256, vocab_size=262208),
            "vision_config": sizes(1152, 4304, 27, 16, image_size=896, patch_size=14),
        },
        True,
    ),
    "qwen2_5_vl_3b_lora.yaml": (
        "qwen2_5_vl",
        {
            "text_config": sizes(
                *(2048, 11008, 36, 16),
                num_key_value_heads=2,
                vocab_size=151936,
                rope_parameters={"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            ),
            "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
            "tie_word_embeddings": True,
        },
        True,
    ),
    "smolvlm_256m.yaml": (
        "smolvlm",
        {
            "text_config": sizes(
                *(576, 1536, 30, 9), model_type="llama", num_key_value_heads=3, vocab_size=49280, pad_token_id=2
            ),
            "vision_config": sizes(768, 3072, 12, 12, image_size=512, patch_size=16),
            "scale_factor": 4,
        },
        False,
    ),
}
TRAINED_PARTS = ("projector", "language")
METHODS = ("full", "lora", "qlora", "projector")
ENGINES = ("single", "ddp", "fsdp", "zero2", "zero3")
LORA_RANK = 16
NF4_BYTES = (4 + 0.127) / 8  # a weight and its share of the constants, quantized too (arXiv:2305.14314, section 3)
# Bytes that a Llama layer keeps for its backward pass, a token and value of the hidden state, by the bytes of such a
# value: 4 where autocast keeps float32 between layers. Counted on the layer (tests/trainer/test_plan.py); a GPT layer
# keeps 34 beside its attention scores (arXiv:2205.05198, section 4).
LAYER_BYTES = {2: 46, 4: 56}


class Workload(NamedTuple):
    """Assumed longest samples of a batch, in tokens."""

    longest: int
    longest_node: int  # answers and extended answers, encoded once more as graph nodes


WORKLOADS = {
    "captions": Workload(512, 0),
    "instruct": Workload(1024, 800),
}


class Counts(NamedTuple):
    """Weights by part, and the sizes that activations depend on."""

    vision: int
    projector: int
    graph: int
    embeddings: int
    layers: int
    head: int
    total: int
    lora: int
    num_layers: int
    hidden_size: int


@dataclass(frozen=True)
class Run:
    """
    A run to plan.

    Args:
        model_size (`str`): One of `MODEL_SIZES`.
        method (`str`): `"full"` trains all but the tower, `"lora"` and `"qlora"` adapters with projector and graph
            network in full, `"projector"` that alone.
        engine (`str`): `"single"` and `"ddp"` hold all on each device; `"fsdp"` and `"zero3"` split weights, gradients
            and optimizer states over all devices, `"zero2"` the last two.
        num_devices (`int`): In all.
        batch_size (`int`): Samples a device and step.
        workload (`str`): One of `WORKLOADS`.
    """

    model_size: str = "7b"
    method: str = "full"
    engine: str = "fsdp"
    num_devices: int = 4
    batch_size: int = 16
    workload: str = "instruct"

    def __post_init__(self):
        if self.num_devices < 1 or self.batch_size < 1:
            raise ValueError(f"`devices` and `batch_size` start at 1; got {self.num_devices} and {self.batch_size}.")
        if (self.engine == "single") != (self.num_devices == 1):
            raise ValueError(f"`engine` 'single' is one device, the others are several; got {self.num_devices}.")

    @property
    def counts(self) -> Counts:
        return count_weights(self.model_size)

    @property
    def num_shards(self) -> int:
        """Devices that the split parts are split over."""
        return 1 if self.engine in ("single", "ddp") else self.num_devices

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
    text = config.text_config
    with torch.device("meta"):
        model, graph_network = LoGraMedForConditionalGeneration(config), GraphNetwork(text.hidden_size)
    decoder = model.get_decoder()
    linears = [module for module in decoder.layers.modules() if isinstance(module, torch.nn.Linear)]
    modules = (model.model.vision_tower, model.model.multi_modal_projector, graph_network, decoder.embed_tokens)
    parts = [*map(count, modules), count(decoder.layers) + count(decoder.norm), count(model.lm_head)]
    lora = sum(LORA_RANK * (linear.in_features + linear.out_features) for linear in linears)
    return Counts(*parts, sum(parts), lora, text.num_hidden_layers, text.hidden_size)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def recipe_memory(recipe: str) -> dict[str, float]:
    """
    What a recipe of `FAMILIES` trains, in weights (`trained`, the graph network among them), and the bytes of its
    `weights`, `gradients`, `optimizer` states and `all` of them on one device. With adapters, frozen weights have 16
    bits; without, autocast keeps a 16-bit copy of what is trained.
    """
    model_type, sizes, uses_adapters = FAMILIES[recipe]
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        graph_size = count(GraphNetwork(config.text_config.hidden_size))
        model = AutoModelForImageTextToText.from_config(config)
        if uses_adapters:
            model = get_peft_model(model, complete_adapters(LoraConfig(r=LORA_RANK), model, TRAINED_PARTS))
        else:
            freeze_parts(model, TRAINED_PARTS)
    trained = graph_size + sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = count(model) + graph_size - trained
    weights = 4 * trained + 2 * frozen if uses_adapters else 6 * trained + 4 * frozen
    parts = {"weights": weights, "gradients": 4 * trained, "optimizer": 8 * trained}
    return {"trained": trained, **parts, "all": sum(parts.values())}


def state_bytes(engine: str, num_trained: float, num_frozen: float, num_shards: int) -> dict[str, float]:
    """
    Bytes a device holds of weights, gradients and AdamW's states under mixed precision, before anything is computed.

    `single` and `ddp`: float32 weights, of which autocast keeps a 16-bit copy of the trained ones, and float32
    gradients (4 + 2 + 4 + 8). `fsdp`: float32, split (4 + 4 + 8). `zero2`, `zero3`: 16-bit weights and
    gradients, float32 weights among the optimizer's states (2 + 2 + 12). Frozen weights are as wide as trained ones.

    Source: arXiv:1910.02054, section 5, for what each stage splits; the widths are those of the engines as used here.
    """
    if engine in ("single", "ddp"):
        weights, gradients, optimizer = 6 * num_trained + 4 * num_frozen, 4 * num_trained, 8 * num_trained
    elif engine == "fsdp":
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
    if run.engine not in ("fsdp", "zero3"):
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
}


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def weights_table() -> str:
    header = ["model", "tower", "projector", "graph network", "embeddings", "layers", "head", "all", "LoRA"]
    rows = [
        [size, *(f"{number / 1e6:,.0f}" for number in count_weights(size)[: len(header) - 1])] for size in MODEL_SIZES
    ]
    return write_table(header, rows)


def memory_table() -> str:
    header = ["run", "weights", "gradients", "optimizer", "activations", "all", "of 80 GB"]
    rows = []
    for name, run in PLANS.items():
        parts = memory(run)
        share = parts["total"] / 80e9
        verdict = f"{share:.0%}" if share <= 1 else f"{share:.0%}: does not fit"
        rows.append([name, *(f"{value / 1e9:.1f}" for value in parts.values()), verdict])
    return write_table(header, rows)


def families_table() -> str:
    header = ["recipe", "launch", "trained, millions", "weights", "gradients", "optimizer", "all"]
    rows = []
    for recipe in FAMILIES:
        trained, *parts = recipe_memory(recipe).values()
        launch = f"`logramed-train {recipe} --train_data DATA.json`"
        rows.append([f"`{recipe}`", launch, f"{trained / 1e6:.1f}", *(f"{value / 1e9:.1f}" for value in parts)])
    return write_table(header, rows)


TABLES = (weights_table, memory_table, families_table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(description="Compute the memory a device that a training run needs.")
    parser.add_argument("--model_size", default="7b", choices=MODEL_SIZES)
    parser.add_argument("--method", default="full", choices=METHODS)
    parser.add_argument("--engine", default="fsdp", choices=ENGINES)
    parser.add_argument("--devices", dest="num_devices", type=int, default=4, help="devices in all")
    parser.add_argument("--batch_size", type=int, default=16, help="samples a device and step")
    parser.add_argument("--workload", default="instruct", choices=WORKLOADS, help="how long samples are")
    parser.add_argument("--page", action="store_true", help="print the tables of the recipes' pages instead")
    values = vars(parser.parse_args(argv))
    if values.pop("page"):
        print("\n".join(table() for table in TABLES), end="")
        return 0
    try:
        parts = memory(Run(**values))
    except ValueError as error:
        parser.error(str(error))
    print(*(f"{name:<12}{value / 1e9:8.1f} GB a device" for name, value in parts.items()), sep="\n")
    print("Computed, not measured; recipes/MEMORY.md has the formulas and what is assumed.")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_command(main))
