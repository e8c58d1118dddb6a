"""
Memory of a training step and of generation over conversations of several images, by their length in tokens.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.long_inputs [--lengths 1024 2048 4096 8192 16384]

A tiny LoGra-Med with a vocabulary of 8,000, in float32. Half the tokens of a conversation are images of 64 tokens, a
quarter each questions and answers, in eight turns, each with images of its own. Each measurement is a process of its
own: what it has at most during the step, less what it had before. Beside it what the logits of all tokens would take,
which nothing here computes. Of the step with alignment, nodes are turns, matched with their answers.
"""

import argparse
import gc
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image

from logramed.eval.answering import answer_questions
from logramed.trainer.arguments import LoGraMedTrainingArguments
from logramed.trainer.trainer import LoGraMedTrainer
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


LENGTHS = (1024, 2048, 4096, 8192, 16384)
TOKENS_PER_IMAGE, NUM_TURNS, VOCAB_SIZE, NEW_TOKENS = 64, 8, 8_000, 16
MEGABYTE = 2**20
WORDS = ("lung", "liver", "heart", "mass", "left", "right", "upper", "lower")


def build_pair():
    text = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 32_768}
    model = tiny_model(text_sizes=text, vision_sizes={"image_size": 32})
    return model, tiny_processor(TOKENS_PER_IMAGE, image_size=32)


def write_text(num_words: int, seed: int) -> str:
    return " ".join(WORDS[(seed + place * (seed + 3)) % len(WORDS)] for place in range(num_words))


def write_image(folder: Path) -> None:
    Image.effect_noise((32, 32), 80).save(folder / "image.png")


def build_row(length: int, image: str) -> dict:
    """A training row of about `length` tokens: in each turn images with text between, a question, and an answer."""
    num_images = length // (2 * TOKENS_PER_IMAGE * NUM_TURNS)
    messages, answers = [], []
    for turn in range(NUM_TURNS):
        question = write_text(length // (4 * NUM_TURNS * num_images) - 2, turn)
        parts = [{"type": "image", "text": None}, {"type": "text", "text": question}] * num_images
        answers.append(write_text(length // (4 * NUM_TURNS) - 4, turn + 1))
        messages += [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]},
        ]
    return {
        "id": str(length),
        "images": [image] * (num_images * NUM_TURNS),
        "messages": messages,
        "extended_answers": answers,
    }


def prepare_training(length: int, folder: Path, **values):
    """A function that takes one step of a trainer on a row of `length` tokens, and the number of its tokens."""
    model, processor = build_pair()
    rows = Dataset.from_list([build_row(length, str(folder / "image.png"))])
    arguments = LoGraMedTrainingArguments(
        alignment_preset="paper",
        output_dir=str(folder / "run"),
        per_device_train_batch_size=1,
        max_length=None,
        report_to="none",
        **values,
    )
    trainer = LoGraMedTrainer(model, arguments, train_dataset=rows, processing_class=processor)
    trainer.data_collator.alignment = trainer.args.alignment_weight > 0
    batch = trainer.data_collator([rows[0]])
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        optimizer.step()

    return step, batch["input_ids"].shape[1]


def train_aligned(length, folder):
    nodes = {"alignment_granularity": "turn", "alignment_texts": "answer", "num_neighbors": 2}
    return prepare_training(length, folder, **nodes)


def train_plain(length, folder):
    return prepare_training(length, folder, alignment_weight=0.0)


def generate(length, folder):
    """A function that answers a question of as many tokens with `generate`."""
    model, processor = build_pair()
    row = build_row(length, str(folder / "image.png"))
    messages, images = row["messages"][:-1], [Image.open(image) for image in row["images"]]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=images, return_tensors="pt")

    def step():
        model.generate(**inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False)

    return step, inputs["input_ids"].shape[1]


def evaluate(length, folder):
    """A function that answers two questions about the same images as `logramed-eval` does."""
    model, processor = build_pair()
    num_images = length // (2 * TOKENS_PER_IMAGE)
    text = f"<image> {write_text(length // (2 * num_images), 1)} " * num_images
    images = [str(folder / "image.png")] * num_images
    rows = [{"question_id": str(n), "question": f"{text} {WORDS[n]}?", "images": images} for n in range(2)]

    def step():
        list(answer_questions(model, processor, rows, batch_size=2, max_new_tokens=NEW_TOKENS, progress=False))

    return step, length


KINDS = {
    "training, aligned": train_aligned,
    "training, plain": train_plain,
    "generate": generate,
    "evaluation": evaluate,
}


def read_memory(name: str) -> float:
    """A line of this process's memory, in MB: `VmRSS` as it is, `VmHWM` at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure_here(kind: str, length: int, connection) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder))
        KINDS[kind](LENGTHS[0], Path(folder))[0]()  # what the first step allocates for good
        step, num_tokens = KINDS[kind](length, Path(folder))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = read_memory("VmRSS")
        step()
        connection.send((num_tokens, read_memory("VmHWM") - before))


def measure(kind: str, length: int) -> tuple[int, float]:
    """The tokens of a step and the MB that it takes, in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_here, args=(kind, length, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{kind} over {length} tokens ended without a result.") from error
    finally:
        process.join()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="about so many tokens, 1,024 at least")
    arguments = parser.parse_args(argv)
    print("| tokens | images | " + " | ".join(KINDS) + " | all logits |\n" + "| ---: " * (len(KINDS) + 3) + "|")
    for length in arguments.lengths:
        found = [measure(kind, length) for kind in KINDS]
        num_images, logits = length // (2 * TOKENS_PER_IMAGE), found[0][0] * VOCAB_SIZE * 4 / MEGABYTE
        cells = [f"{found[0][0]:,}", f"{num_images}", *(f"{megabytes:,.0f}" for _, megabytes in found)]
        print("| " + " | ".join(cells) + f" | {logits:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
