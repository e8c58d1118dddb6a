"""What a model is shown: the prompt of a question, and its image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from logramed.eval.question_images import list_images, question_content
from logramed.eval.volumes import open_if_volume
from logramed.image_processing_logramed import convert_to_rgb, load_image


# Shown where an image processor names no mean colour of its own.
MIDDLE_GREY = (0.5, 0.5, 0.5)


def build_prompt(processor: Any, question: Mapping[str, Any]) -> str:
    """
    The chat template's text of a question row and its images, up to where the answer begins.

    Raises:
        ValueError: If the processor has no chat template, or the question's placeholders do not fit its images.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"{type(processor).__name__} of this model has no chat template, so how to ask is not known. Save one "
            "with it: `processor.chat_template = ...; processor.save_pretrained(folder)`."
        )
    return processor.apply_chat_template([ask(question)], add_generation_prompt=True, tokenize=False)


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """The user's message about a question row, as chat templates take it; its images are given to the processor."""
    parts = question_content(question)
    content = [{"type": "image"} if part["type"] == "image" else part for part in parts]
    return {"role": "user", "content": content}


def list_options(question: str, options: Sequence[str]) -> str:
    """
    A question with its options, lettered.

    Example:
        >>> print(list_options("Which modality is this?", ["CT", "MRI"]))
        Which modality is this?
        A. CT
        B. MRI
        Answer with one of these.
    """
    lines = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(options)]
    return "\n".join([question, *lines, "Answer with one of these."])


def template_begins(processor: Any, prompt: str) -> bool:
    """Whether the chat template wrote the first token of a sequence itself, so that the tokenizer must not."""
    bos_token = get_tokenizer(processor).bos_token
    return bool(bos_token) and prompt.startswith(bos_token)


def get_tokenizer(processor: Any) -> Any:
    """The tokenizer of a processor, or what was given if that is one."""
    return getattr(processor, "tokenizer", processor)


def load_question_image(path: str, processor: Any, blank: bool = False) -> Image.Image:
    """
    The image of a question, or with `blank` one of its size in the mean colour of the processor's images.

    The mean colour is zero after normalization: it carries no sight and is no unusual input.
    """
    image_processor = getattr(processor, "image_processor", processor)
    mean = getattr(image_processor, "image_mean", None) or MIDDLE_GREY
    background_color = tuple(round(255 * channel) for channel in mean)
    image = convert_to_rgb(open_if_volume(path) or load_image(path), background_color, f"The image {path}")
    return Image.new("RGB", image.size, background_color) if blank else image


def load_question_images(
    questions: Sequence[Mapping[str, Any]], processor: Any, blank: bool = False
) -> list[list[Image.Image]]:
    """The images of each question (see `load_question_image`), those of several questions opened once."""
    opened: dict[str, Image.Image] = {}
    for question in questions:
        for path in list_images(question):
            if path not in opened:
                opened[path] = load_question_image(path, processor, blank)
    return [[opened[path] for path in list_images(question)] for question in questions]


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


def encode_prompts(processor: Any, prompts: Sequence[str], images: Sequence[list[Image.Image]]) -> Any:
    """What the processor makes of a batch of prompts with their images, on whichever side its tokenizer pads."""
    return processor(
        text=prompts,
        # One list a prompt: some processors cannot tell a flat list of images apart from one prompt's.
        images=images,
        return_tensors="pt",
        padding=True,
        add_special_tokens=not template_begins(processor, prompts[0]),
    )


@contextmanager
def padding_on_the_left(tokenizer: Any) -> Iterator[None]:
    """
    `tokenizer` pads on the left inside: a decoder continues the last token of each row.

    One without a padding token pads with its end token: padding is masked, so any token will do.
    """
    side, pad_token = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = "left"
    if pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        yield
    finally:
        tokenizer.padding_side = side
        if pad_token is None:
            tokenizer.pad_token = None
