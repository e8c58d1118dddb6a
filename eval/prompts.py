"""Model inputs for a question: its prompt and its images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from logramed.eval.question_images import list_images, question_content
from logramed.eval.volumes import open_if_volume
from logramed.image_processing_logramed import convert_to_rgb, load_image


# Used if the image processor has no mean colour.
MIDDLE_GREY = (0.5, 0.5, 0.5)


def build_prompt(processor: Any, question: Mapping[str, Any]) -> str:
    """
    The chat template's prompt for a question row and its images, up to where the answer begins.

    Raises:
        ValueError: If the processor has no chat template, or the question's placeholders do not match its images.
    """
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"{type(processor).__name__} of this model has no chat template, so no prompt can be built. Save one "
            "with it: `processor.chat_template = ...; processor.save_pretrained(folder)`."
        )
    return processor.apply_chat_template([ask(question)], add_generation_prompt=True, tokenize=False)


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """The user message for a question row, as chat templates expect it; the processor takes the images."""
    parts = question_content(question)
    content = [{"type": "image"} if part["type"] == "image" else part for part in parts]
    return {"role": "user", "content": content}


def list_options(question: str, options: Sequence[str]) -> str:
    """
    A question followed by its lettered options.

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
    """Whether the chat template wrote the BOS token, so that the tokenizer must not add it."""
    bos_token = get_tokenizer(processor).bos_token
    return bool(bos_token) and prompt.startswith(bos_token)


def get_tokenizer(processor: Any) -> Any:
    """The tokenizer of a processor; a tokenizer is returned as it is."""
    return getattr(processor, "tokenizer", processor)


def load_question_image(path: str, processor: Any, blank: bool = False) -> Image.Image:
    """
    The image of a question, or with `blank` an image of its size in the mean colour of the image processor.

    The mean colour is zero after normalization: it carries no information and is not an unusual input.
    """
    image_processor = getattr(processor, "image_processor", processor)
    mean = getattr(image_processor, "image_mean", None) or MIDDLE_GREY
    background_color = tuple(round(255 * channel) for channel in mean)
    image = convert_to_rgb(open_if_volume(path) or load_image(path), background_color, f"The image {path}")
    return Image.new("RGB", image.size, background_color) if blank else image


def load_question_images(
    questions: Sequence[Mapping[str, Any]], processor: Any, blank: bool = False
) -> list[list[Image.Image]]:
    """The images of each question (see `load_question_image`); an image of several questions is opened once."""
    opened: dict[str, Image.Image] = {}
    for question in questions:
        for path in list_images(question):
            if path not in opened:
                opened[path] = load_question_image(path, processor, blank)
    return [[opened[path] for path in list_images(question)] for question in questions]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the mode of each module is restored (a frozen tower's may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def encode_prompts(processor: Any, prompts: Sequence[str], images: Sequence[list[Image.Image]]) -> Any:
    """Process a batch of prompts with their images, with the current padding side of the tokenizer."""
    return processor(
        text=prompts,
        # One list per prompt: some processors take a flat list for the images of a single prompt.
        images=images,
        return_tensors="pt",
        padding=True,
        add_special_tokens=not template_begins(processor, prompts[0]),
    )


@contextmanager
def padding_on_the_left(tokenizer: Any) -> Iterator[None]:
    """
    Set left padding for `tokenizer` inside: a decoder continues the last token of each row.

    A tokenizer without a padding token uses its end token: padding is masked, so any token works.
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
