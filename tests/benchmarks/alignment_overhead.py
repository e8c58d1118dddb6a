"""
What the alignment loss costs in a training step, in time and in operations, beside plain supervised fine-tuning.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.alignment_overhead [--models tiny 135M qwen2_5_vl] [--data FOLDER]

Steps (loss, gradients, AdamW) of `LoGraMedTrainer` on the same batches with alignment, without it, with it but each
text modality in a padded pass of its own, and with answer states as nodes and texts embedded before, in turn; the
median of each counts. On a CPU time is that of the process, which other programs disturb less, so use one thread.
Operations are those of matrix products and convolutions, forward and backward, as PyTorch counts them; attention
scores are left out of both. The aim is a ratio of times of at most 1.10 times the ratio of operations, and for answer
states of at most 1.10. Without `--data`, on generated phantoms.

`7B` is a language model of Llama's size in bfloat16 with LoRA and batches of 16; it needs a GPU.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.build_model import new_model, training_texts
from logramed.trainer.data import load_training_rows
from logramed.trainer.engines.parts import complete_adapters
from logramed.trainer.phantoms import generate_phantoms
from logramed.trainer.trainer import LoGraMedTrainer
from tests.vlm_processors import tiny_qwen2_5_vl_processor


TOLERANCE = 1.10
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}  # of the tokenizer of `tests.vlm_processors`
TEXT_SIZES = {  # of SmolLM2-135M
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
VISION_TRANSFORMER = {
    "model_type": "clip_vision_model",
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
}
ANSWER_STATES = {
    "alignment_granularity": "turn",
    "alignment_image_node": "answer_state",
    "alignment_text_encoder": "stand-in",
}
MODELS = {
    "tiny": {  # as in `quickstart.yaml`
        "vision": {
            "model_type": "clip_vision_model",
            "image_size": 64,
            "patch_size": 16,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "text": {
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        "vocab_size": 512,
    },
    "135M": {  # the language model of SmolLM2-135M
        "vision": VISION_TRANSFORMER,
        "text": TEXT_SIZES,
        "vocab_size": 49152,
    },
    "qwen2_5_vl": {"text": TEXT_SIZES},  # Qwen2.5-VL with that language model
    "7B": {  # Vicuna 7B with CLIP ViT-L/14
        "vision": {
            **VISION_TRANSFORMER,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "text": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
        "vocab_size": 32000,
    },
}


class StandInEncoder:
    """Random unit vectors of a common size in place of a frozen encoder's embeddings, which no step computes."""

    size = 384

    def __init__(self, *args):
        pass

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(len(texts), self.size), dim=-1)

    def prepare(self, texts) -> int:
        return len(list(texts))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "135M", "qwen2_5_vl"], choices=list(MODELS))
    parser.add_argument("--data", help="training data with extended answers, such as VQA-RAD's folder")
    parser.add_argument("--alignment_loss", default="multi_graph", help="objective, by its name in `AlignmentConfig`")
    parser.add_argument("--batch_size", type=int, default=8, help="samples a step; the model 7B has 16")
    parser.add_argument("--num_repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if "7B" in arguments.models and not torch.cuda.is_available():
        parser.error("the model 7B needs a CUDA device, and there is none: leave it out of `--models`")
    with tempfile.TemporaryDirectory() as folder:
        rows = load_rows(arguments.data, Path(folder))
        print(
            "| model | seconds without | with | padded passes | answer states | ratio of times | of operations | "
            "time / operations | answer states / without |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in arguments.models:
            print(f"| {name} | {measure(name, rows, Path(folder), arguments)} |", flush=True)


def load_rows(data: str | None, folder: Path) -> Dataset:
    if data is None:
        data = generate_phantoms(folder / "phantoms", num_train=100, num_validation=2, num_test=2) / "train.json"
    return load_training_rows(str(data)).dataset


def measure(name: str, rows: Dataset, folder: Path, arguments: argparse.Namespace) -> str:
    """Seconds of a step four ways, and the ratios with alignment to without, as cells of a table."""
    model, processor = build_model(name, rows)
    objective = {"alignment_loss": arguments.alignment_loss}
    plain, aligned = (build_trainer(model, processor, rows, weight, folder, **objective) for weight in (0.0, 1.0))
    with mock.patch("logramed.trainer.trainer.TextEncoder", StandInEncoder):
        states = build_trainer(model, processor, rows, 1.0, folder, **objective, **ANSWER_STATES)
    batch_rows = [rows[number] for number in range(16 if name == "7B" else arguments.batch_size)]
    batches = {
        trainer: send_to_device(trainer.data_collator(batch_rows), model.device)
        for trainer in (plain, aligned, states)
    }
    weights = dict.fromkeys([*aligned.model.parameters(), *states.model.parameters()])
    optimizer = torch.optim.AdamW([weight for weight in weights if weight.requires_grad], lr=1e-5)
    ways = {
        "without": lambda: take_step(plain, batches[plain], optimizer),
        "with": lambda: take_step(aligned, batches[aligned], optimizer),
        "padded": lambda: take_padded_step(aligned, batches[aligned], optimizer),
        "states": lambda: take_step(states, batches[states], optimizer),
    }
    operations = {way: count_operations(ways[way]) for way in ("without", "with", "states")}  # first steps, not timed
    seconds = {way: [] for way in ways}
    for _ in range(arguments.num_repeats):
        for way, take in ways.items():
            seconds[way].append(time_of(take))
    without, with_alignment, padded, with_states = (statistics.median(seconds[way]) for way in ways)
    ratio, expected = with_alignment / without, operations["with"] / operations["without"]
    return (
        f"{without:.4f} | {with_alignment:.4f} | {padded:.4f} | {with_states:.4f} | {ratio:.3f} | {expected:.3f} | "
        f"{judge(ratio / expected)} | {judge(with_states / without)}"
    )


def judge(ratio: float) -> str:
    return f"{ratio:.3f} {'met' if ratio <= TOLERANCE else 'missed'}"


def build_model(name: str, rows: Dataset):
    """A model of the shape `MODELS[name]` with random weights, in training mode, and its processor."""
    if name == "qwen2_5_vl":
        return build_qwen2_5_vl(MODELS[name]["text"]), tiny_qwen2_5_vl_processor()
    shape = MODELS[name]
    dtype = torch.bfloat16 if name == "7B" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        text_config = {"model_type": "llama", "max_position_embeddings": 4096, **shape["text"]}
        model, processor = new_model(
            shape["vision"], text_config, training_texts(rows), min(shape["vocab_size"], 2000)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    model.resize_token_embeddings(shape["vocab_size"])
    if name == "7B":
        config = complete_adapters(LoraConfig(r=16, lora_alpha=32), model, ("projector", "language"))
        model = get_peft_model(model.cuda(), config)
    return model.train(), processor


def build_qwen2_5_vl(text: dict) -> Qwen2_5_VLForConditionalGeneration:
    """A stock model with random weights in training mode, for the processor of `tests.vlm_processors`."""
    vision = {
        **{"depth": 12, "hidden_size": 384, "out_hidden_size": text["hidden_size"], "num_heads": 6},
        **{"intermediate_size": 1536, "patch_size": 4, "spatial_merge_size": 2, "window_size": 16},
        "fullatt_block_indexes": [11],
    }
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**text, "vocab_size": 49152, "rope_parameters": rope, **TOKEN_IDS},
        **{"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7},
    )
    return Qwen2_5_VLForConditionalGeneration(config).train()


def build_trainer(model, processor, rows: Dataset, alignment_weight: float, folder: Path, **values) -> LoGraMedTrainer:
    arguments = LoGraMedTrainingArguments(
        alignment_preset="paper",
        output_dir=str(folder / "run"),
        alignment_weight=alignment_weight,
        report_to="none",
        **values,
    )
    trainer = LoGraMedTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    if alignment_weight == 0:
        trainer.data_collator.alignment = False
    return trainer


def take_step(trainer: LoGraMedTrainer, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    optimizer.step()
    optimizer.zero_grad()


def take_padded_step(trainer, batch, optimizer) -> None:
    """As `take_step`, but with each text of a node in a row of its own, padded."""
    with mock.patch.object(trainer.model, "_text_layout", "padded"):
        take_step(trainer, batch, optimizer)


def count_operations(take: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        take()
    return counter.get_total_flops()


def time_of(take: Callable[[], None]) -> float:
    if not torch.cuda.is_available():
        start = time.process_time()
        take()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    take()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
