"""
Conversion of checkpoints, measured: the largest difference of a logit between an original, computed by the tests'
reimplementation, and what becomes of it; and memory and time of converting a checkpoint of LLaVA-Med 7B's shapes.

    python -m tests.benchmarks.conversion
    python -m tests.benchmarks.conversion --seven_billion FOLDER   # 27 GB of disk, minutes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from logramed import LoGraMedForConditionalGeneration
from logramed.configuration_logramed import CLIP_VIT_L_14_224
from tests.trainer.conversion.original_tokenizer import sentencepiece_model
from tests.trainer.conversion.originals import ADDED_TOKENS, KINDS, PATCH_TOKEN_KINDS, write_clip, write_llama
from tests.trainer.conversion.test_convert import FOUR, LOGITS, TEXT, Case, logits_of


GIGABYTE = 1e9
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
NUM_BASE_TOKENS = 32000
# As in the files that were published: 9.98 and 3.51 GB.
FIRST_SHARD_BYTES = 9.98e9


def measure_logits(folder: Path) -> None:
    """Print, for each kind of checkpoint, the largest logit differences of ours and of stock LLaVA."""
    small, large = write_clip(folder / "clip"), write_clip(folder / "clip_large", image_size=48)
    base = write_llama(folder / "llama")
    cases = {kind: Case(kind, folder, small if kind in PATCH_TOKEN_KINDS else large, base) for kind in KINDS}
    found = {(kind, form): load_and_compare(case, form) for kind, case in cases.items() for form in ("ours", "stock")}
    four = compare_in_4(cases, folder) if FOUR else {}
    print("| checkpoint | LoGra-Med | stock LLaVA | LoGra-Med, 4.57 | stock LLaVA, 4.57 |\n" + "| --- " * 5 + "|")
    for kind in KINDS:
        figures = [found[kind, "ours"], found[kind, "stock"], *(four.get((kind, form)) for form in ("ours", "stock"))]
        print(f"| {kind} | " + " | ".join("-" if value is None else f"{value:.1e}" for value in figures) + " |")


def largest(logits: torch.Tensor, case: Case) -> float:
    return (logits[..., : case.expected.shape[-1]] - case.expected).abs().max().item()


def load_and_compare(case: Case, form: str) -> float:
    from transformers import LlavaForConditionalGeneration

    loader = LoGraMedForConditionalGeneration if form == "ours" else LlavaForConditionalGeneration
    return largest(logits_of(loader.from_pretrained(getattr(case, form)), case), case)


def compare_in_4(cases: dict[str, Case], folder: Path) -> dict[tuple[str, str], float]:
    places = {(kind, form): getattr(case, form) for kind, case in cases.items() for form in ("ours", "stock")}
    for (kind, _), place in places.items():
        inputs = {"input_ids": cases[kind].input_ids, "pixel_values": cases[kind].pixel_values, "text": TEXT}
        torch.save(inputs, f"{place}.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    subprocess.run([FOUR, "-c", LOGITS, *map(str, places.values())], check=True, env=environment, cwd=folder)
    return {key: largest(torch.load(f"{place}.out.pt")["logits"], cases[key[0]]) for key, place in places.items()}


# --- 7B ---


def shapes_of_7b() -> dict[str, tuple[int, ...]]:
    """Names and shapes of LLaVA-Med v1.0.0, old buffers included."""
    size, inner, num_rows = LLAMA_7B["hidden_size"], LLAMA_7B["intermediate_size"], NUM_BASE_TOKENS + len(ADDED_TOKENS)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (num_rows, size)}
    for layer in range(LLAMA_7B["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        shapes |= {f"{place}.self_attn.{name}_proj.weight": (size, size) for name in "qkvo"}
        shapes |= {f"{place}.mlp.{name}_proj.weight": (inner, size) for name in ("gate", "up")}
        shapes |= {f"{place}.mlp.down_proj.weight": (size, inner)}
        shapes |= {f"{place}.{name}_layernorm.weight": (size,) for name in ("input", "post_attention")}
        shapes |= {f"{place}.self_attn.rotary_emb.inv_freq": (64,)}
    shapes |= {"model.norm.weight": (size,), "lm_head.weight": (num_rows, size)}
    return shapes | {"model.mm_projector.weight": (size, 1024), "model.mm_projector.bias": (size,)}


def write_7b(folder: Path) -> None:
    """A checkpoint of these shapes in half precision, in two pickled shards with their index."""
    folder.mkdir(parents=True)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul(0.02).half()
    weight_map, shard, num_bytes, number = {}, {}, 0, 1
    names = list(shapes_of_7b().items())
    for place, (name, shape) in enumerate(names):
        count = torch.Size(shape).numel()
        shard[name] = block.repeat(-(-count // len(block)))[:count].clone().view(shape)
        num_bytes += 2 * count
        weight_map[name] = f"pytorch_model-{number:05d}-of-00002.bin"
        if place == len(names) - 1 or (number == 1 and num_bytes > FIRST_SHARD_BYTES):
            torch.save(shard, folder / weight_map[name])
            shard, number = {}, number + 1
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    write_json(
        folder / "config.json",
        {
            **LLAMA_7B,
            "model_type": "llava",
            "rms_norm_eps": 1e-6,
            "max_sequence_length": 2048,
            "vocab_size": NUM_BASE_TOKENS + len(ADDED_TOKENS),
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": -1,
            "mm_hidden_size": 1024,
            "mm_use_im_start_end": True,
            "mm_vision_select_layer": -2,
            "mm_vision_tower": "openai/clip-vit-large-patch14",
        },
    )
    model = sentencepiece_model()
    for number in range(len(model.pieces), NUM_BASE_TOKENS):
        piece = model.pieces.add()
        piece.piece, piece.score = f"▁w{number}", -float(number)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    write_json(folder / "added_tokens.json", {token: NUM_BASE_TOKENS + n for n, token in enumerate(ADDED_TOKENS)})


def write_vit_l(folder: Path) -> None:
    """CLIP ViT-L/14 with random weights, in single precision as it was published."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**CLIP_VIT_L_14_224)).save_pretrained(folder)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def measure_7b(folder: Path) -> None:
    """Print the peak of resident memory, which counts mapped pages of files too, and the time of a conversion."""
    source, tower, output = folder / "source", folder / "clip", folder / "converted"
    for write, place in ((write_7b, source), (write_vit_l, tower)):
        if not place.exists():
            in_process_of_its_own(write, place)
    largest_shard = max(path.stat().st_size for path in source.glob("*.bin"))
    command = [sys.executable, "-m", "logramed.trainer.convert", "--from", "llava-med-v1", str(source), str(output)]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--vision_tower", str(tower)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - start, usage.ru_maxrss * 1024
    if status:
        raise SystemExit("the conversion failed")
    output_shard = max(path.stat().st_size for path in output.glob("*.safetensors"))
    limit = 1.3 * largest_shard + output_shard
    print(
        f"largest shard {largest_shard / GIGABYTE:.2f} GB, output shard {output_shard / GIGABYTE:.2f} GB, "
        f"peak of memory {peak / GIGABYTE:.2f} GB ({peak / limit:.2f} of the limit), {seconds:.0f} s"
    )


def in_process_of_its_own(write, place: Path) -> None:
    """So that memory of making the files is not counted."""
    imports = f"from pathlib import Path; from tests.benchmarks.conversion import {write.__name__}"
    code = f"{imports}; {write.__name__}(Path({str(place)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def main(argv: list[str] | None = None) -> SimpleNamespace | None:
    parser = argparse.ArgumentParser(description="Conversion of checkpoints, measured.")
    parser.add_argument(
        "--seven_billion", type=Path, metavar="FOLDER", help="also convert a checkpoint of 7B's shapes"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        measure_logits(Path(folder))
    if arguments.seven_billion is not None:
        measure_7b(arguments.seven_billion)


if __name__ == "__main__":
    main()
