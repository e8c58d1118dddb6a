"""
Questions a second of `eval/run.py` and of the research release's loop: the same model, machine, prompts and answers.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.throughput --data ../shared/data/vqa_rad

asks two LLaVA models with random weights about VQA-RAD's test images: a tiny one, and one whose language model has
106 million weights (the shape of SmolLM2-135M without its vocabulary) and whose vision transformer has 22 million,
with 196 tokens an image. Answers have `--max_new_tokens` tokens; with `--end_share` that share of the vocabulary ends
an answer, so that answers differ in length, as a trained model's do. Both ways answer the same questions in turn,
several times; the least time of each counts. Without `--data`, about generated noise with as many questions an image.

A random model finds many tokens almost equally likely, so that the rounding of a batch may decide between two: how
many answers are equal is printed beside.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from logramed.eval.answering import answer_questions
from logramed.eval.benchmarks.vqa_rad import load_questions
from tests.benchmarks.release_loop import ask_one_at_a_time
from tests.eval.conftest import CHAT_TEMPLATE


VOCABULARY_SIZE = 8192
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "user", "assistant")
END_TOKEN_ID, PAD_TOKEN_ID, IMAGE_TOKEN_ID = 2, 3, 4
SIZES = {
    "tiny": {
        "vision": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "image_size": 32,
        "text": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    },
    "100M": {
        "vision": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6},
        "image_size": 224,
        "text": {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    },
}
PATCH_SIZE = {"tiny": 8, "100M": 16}
NUM_IMAGES = {"tiny": 203, "100M": 40}  # asked about; VQA-RAD has 203, and the larger model needs its time for each


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder of VQA-RAD")
    parser.add_argument("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--num_images", type=int, help=f"images asked about (default {NUM_IMAGES})")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, nargs="+", default=[32])
    parser.add_argument("--end_share", type=float, nargs="+", default=[0.0, 0.1], help="of tokens that end an answer")
    parser.add_argument("--num_repeats", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    with tempfile.TemporaryDirectory() as folder:
        questions = load_questions(arguments.data) if arguments.data else draw_questions(Path(folder))
        print("| model | tokens | ending | questions | images | one at a time | batched | ratio | equal answers |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name in arguments.models:
            model, processor = build_model(name, questions)
            asked = choose_images(questions, arguments.num_images or NUM_IMAGES[name])
            for max_new_tokens in arguments.max_new_tokens:
                for end_share in arguments.end_share:
                    set_end_tokens(model, end_share)
                    measured = measure(model, processor, asked, max_new_tokens, arguments)
                    print(
                        f"| {name} | {max_new_tokens} | {end_share:g} | {describe(asked)} | {measured} |", flush=True
                    )


def measure(model: torch.nn.Module, processor: Any, questions: list[dict], max_new_tokens: int, arguments) -> str:
    """Questions a second of both ways, their ratio, and how many answers are equal, as cells of a table."""

    def ask_in_batches() -> list[tuple[dict, str]]:
        options = {"batch_size": arguments.batch_size, "max_new_tokens": max_new_tokens, "progress": False}
        return list(answer_questions(model, processor, questions, **options))

    ways = [lambda: ask_one_at_a_time(model, processor, questions, max_new_tokens), ask_in_batches]
    timed = [[time_of(way) for way in ways] for _ in range(arguments.num_repeats)]
    one, batched = (len(questions) / min(repeat[way][0] for repeat in timed) for way in (0, 1))
    answers = [{row["question_id"]: answer for row, answer in timed[0][way][1]} for way in (0, 1)]
    num_equal = sum(answers[0][number] == answers[1][number] for number in answers[0])
    return f"{one:.2f} | {batched:.2f} | {batched / one:.1f} | {num_equal} of {len(questions)}"


def time_of(way: Callable[[], list]) -> tuple[float, list]:
    start = time.perf_counter()
    answers = way()
    return time.perf_counter() - start, answers


def describe(questions: Sequence[dict]) -> str:
    return f"{len(questions)} | {len({row['image'] for row in questions})}"


def choose_images(questions: Sequence[dict], num_images: int) -> list[dict]:
    """All questions about some of the images."""
    images = sorted({question["image"] for question in questions})
    chosen = set(random.Random(0).sample(images, min(num_images, len(images))))
    return [question for question in questions if question["image"] in chosen]


def draw_questions(folder: Path, num_images: int = 203, num_questions: int = 451) -> list[dict]:
    """Questions of a few words about noise, as many an image as VQA-RAD's test split has."""
    generator = np.random.default_rng(0)
    words = ["is", "there", "a", "mass", "in", "the", "left", "lung", "where"]
    for number in range(num_images):
        pixels = generator.integers(0, 256, (600, 600, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return [
        {
            "question_id": str(number),
            "image": str(folder / f"{number % num_images}.jpg"),
            "question": " ".join(generator.choice(words, size=generator.integers(3, 16))),
        }
        for number in range(num_questions)
    ]


def build_model(name: str, questions: Sequence[dict]) -> tuple[torch.nn.Module, Any]:
    """A LLaVA with random weights, and a processor whose words are those of the questions, and others."""
    words = sorted({word for question in questions for word in question["question"].split()})
    words = list(dict.fromkeys([*SPECIAL, *words]))
    words += [f"word{number}" for number in range(VOCABULARY_SIZE - len(words))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes, patch_size = SIZES[name], PATCH_SIZE[name]
    side = {"height": sizes["image_size"], "width": sizes["image_size"]}
    image_processor = LlavaImageProcessorPil(size={"shortest_edge": sizes["image_size"]}, crop_size=side, do_pad=False)
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=sizes["image_size"], patch_size=patch_size, **sizes["vision"]),
        text_config=LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, pad_token_id=PAD_TOKEN_ID, **sizes["text"]),
        image_token_index=IMAGE_TOKEN_ID,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # weights as small as a new model's give every question one answer
            parameter.data.mul_(4)
    return model, processor


def set_end_tokens(model: torch.nn.Module, share: float) -> None:
    """Let a share of the vocabulary end an answer; 0 for none, so that every answer has its full length."""
    tokens = random.Random(0).sample(range(len(SPECIAL), VOCABULARY_SIZE), round(share * VOCABULARY_SIZE))
    model.generation_config.eos_token_id = sorted(tokens) or [END_TOKEN_ID]


if __name__ == "__main__":
    main()
