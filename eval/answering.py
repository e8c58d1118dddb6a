"""Ask a model questions about images, in batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from logramed.image_processing_logramed import convert_to_rgb, load_image


# Shown where an image processor names no mean colour of its own.
MIDDLE_GREY = (0.5, 0.5, 0.5)


def answer_questions(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    max_new_tokens: int,
    blank_images: bool = False,
    progress: bool = True,
) -> Iterator[tuple[dict, str]]:
    """
    Answer each question about its image by greedy decoding.

    Questions are asked longest first, so that a batch holds prompts of like length, padded on the left; answers equal
    those of asking one by one, up to the rounding of the model's dtype. Between batches the model is in the state
    (training or evaluation, module by module) it was given in, and so is the tokenizer's padding side.

    Args:
        model: Any image-text-to-text model of transformers, on the device to run on. Runs without gradients.
        processor: Its processor, with a chat template.
        questions: Question rows (see `eval/benchmarks`): `question` and `image` are read.
        batch_size, max_new_tokens (`int`): Questions in a batch, tokens of an answer at most.
        blank_images (`bool`): Show an evenly grey image of the same size instead of each image.
        progress (`bool`): Show a progress bar.

    Yields:
        `tuple[dict, str]`: a question row as it was given, and the answer without blanks around it.

    Raises:
        ValueError: If `batch_size` or `max_new_tokens` is below 1.
        FileNotFoundError: If an image is missing.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(
            f"`batch_size` and `max_new_tokens` must be at least 1, got {batch_size} and {max_new_tokens}."
        )
    longest_first = sorted(questions, key=lambda question: -len(question["question"]))
    with tqdm(total=len(questions), desc="Answering", unit="question", disable=not progress) as bar:
        for start in range(0, len(longest_first), batch_size):
            batch = longest_first[start : start + batch_size]
            answers = answer_batch(model, processor, batch, max_new_tokens, blank_images)
            for question, answer in zip(batch, answers, strict=True):
                yield question, answer
                bar.update()


@torch.no_grad()
def answer_batch(
    model: torch.nn.Module, processor: Any, batch: Sequence[dict], max_new_tokens: int, blank_images: bool = False
) -> list[str]:
    """The answers to `batch`, in its order (see `answer_questions`)."""
    tokenizer = getattr(processor, "tokenizer", processor)
    images = [load_question_image(question["image"], processor, blank_images) for question in batch]
    prompts = [build_prompt(processor, question["question"]) for question in batch]
    # Some chat templates write the first token themselves; the tokenizer must not add a second one.
    template_begins = bool(tokenizer.bos_token) and prompts[0].startswith(tokenizer.bos_token)
    with padding_on_the_left(tokenizer):
        inputs = processor(
            text=prompts, images=images, return_tensors="pt", padding=True, add_special_tokens=not template_begins
        )
    inputs = inputs.to(model.device, model.dtype)
    with evaluation_mode(model):
        sequences = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            # Sampling settings of the model's own generation config would each give a warning.
            temperature=None,
            top_p=None,
            top_k=None,
            # Training with gradient checkpointing turns the cache off in the model's config.
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            tokenizer=tokenizer,
        )
    answers = sequences[:, inputs["input_ids"].shape[1] :]
    return [answer.strip() for answer in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def build_prompt(processor: Any, question: str) -> str:
    """The chat template's text of one question about one image, up to where the answer begins."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def load_question_image(path: str, processor: Any, blank: bool = False) -> Image.Image:
    """
    The image of a question, or with `blank` one of its size in the mean colour of the processor's images.

    The mean colour is zero after normalization: it carries no sight and is no unusual input.
    """
    image_processor = getattr(processor, "image_processor", processor)
    mean = getattr(image_processor, "image_mean", None) or MIDDLE_GREY
    background_color = tuple(round(255 * channel) for channel in mean)
    image = convert_to_rgb(load_image(path), background_color, f"The image {path}")
    return Image.new("RGB", image.size, background_color) if blank else image


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is in its own mode again (a frozen tower may have another)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def padding_on_the_left(tokenizer: Any) -> Iterator[None]:
    """`tokenizer` pads on the left inside: a decoder continues the last token of each row."""
    side = tokenizer.padding_side
    tokenizer.padding_side = "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side
