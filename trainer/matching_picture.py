"""A picture of a matching: which image, seen with which question, went to which answer, and what was looked at."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from logramed.trainer.aligned_model import AlignedModel
from logramed.trainer.alignment import decode_matching
from logramed.trainer.alignment_head import AlignmentHead
from logramed.trainer.collator import (
    LoGraMedDataCollator,
    join_answers,
    open_image,
    read_extended_answers,
    read_turns,
    split_sentences,
)
from logramed.trainer.data.answer_spans import clean_messages
from logramed.trainer.node_inputs import images_of_turns


# Lengths in inches.
WIDTH, ROW_HEIGHT, HEADER_HEIGHT, FOOTER_HEIGHT = 9.6, 1.02, 0.42, 0.36
IMAGE_SIZE, IMAGES_RIGHT, ANSWERS_LEFT = 0.94, 3.4, 5.3
QUESTION_WIDTH, ANSWER_WIDTH, SPAN_WIDTH = 30, 46, 62  # in characters
RIGHT_COLOR, WRONG_COLOR, ATTENTION_COLOR = "#1a7f37", "#c62828", "#ff8c00"
STRONGEST_TINT = 0.6  # of the region that weighs most; the others in proportion
LONGEST_TEXT = 150  # characters of a span or answer that are shown


@dataclass
class MatchedNodes:
    """
    Nodes of a batch, and which image was matched to which text.

    Attributes:
        images (`list[list[PIL.Image.Image]]`): The images that each node is about: one where nodes are samples.
        questions, answers (`list[str]`): Of each node.
        spans (`list[list[str]]`): The sentences of each node's extended answer; empty without one.
        matching (`torch.Tensor` of shape `(num_nodes,)`, int64): The node whose text each node's image went to.
        is_right (`torch.Tensor` of shape `(num_nodes,)`, bool): Whether that is its own, or one equal to it.
        patches_per_side (`int`): Rows, and columns, of an image's patches, or of the tokens that they are pooled to.
        region_weights (`torch.Tensor` of shape `(num_nodes, num_regions)`, *optional*): Attention on image regions.
        span_weights (`torch.Tensor` of shape `(num_nodes, num_spans)`, *optional*): Attention on `spans`.
    """

    images: list[list[Image.Image]]
    questions: list[str]
    answers: list[str]
    spans: list[list[str]]
    matching: torch.Tensor
    is_right: torch.Tensor
    patches_per_side: int
    region_weights: torch.Tensor | None = None
    span_weights: torch.Tensor | None = None


def match_nodes(
    model: torch.nn.Module,
    collator: LoGraMedDataCollator,
    rows: list[dict],
    target: str = "answer",
    edge_weight: float = 0.0,
    head: AlignmentHead | None = None,
) -> MatchedNodes:
    """
    Match the images of `rows` to their answers, or extended answers, at the largest sum of cosines.

    Args:
        model (`LoGraMedForConditionalGeneration`): In evaluation mode.
        collator (`LoGraMedDataCollator`): Of granularity `"sample"` or `"turn"`, for this model.
        rows (`list[dict]`): Training rows; all their turns are nodes, or all their images.
        target (`str`, *optional*, defaults to `"answer"`): `"answer"` or `"extended"`.
        edge_weight (`float`, *optional*, defaults to 0.0): Above 0, second order: how nodes lie to their neighbours
            counts as well (`decode_matching`).
        head (`AlignmentHead`, *optional*): That of the training, where it had one.

    Raises:
        ValueError: If the nodes of `collator` are spans, or there is no such `target`.
    """
    if collator.config.alignment_granularity == "span":
        raise ValueError("Spans share images and answers, so there is no matching to draw: use turns or samples.")
    batch = send_to_device(collator(rows), model.device)
    with torch.no_grad():
        outputs = AlignedModel(model, config=collator.config, head=head)(**batch)
    nodes = outputs.node_features
    if target not in ("answer", "extended") or target not in nodes:
        raise ValueError(f"`target` must be a text modality of the nodes, {', '.join(nodes)}; got {target!r}.")
    matching = decode_matching(nodes["image"], nodes[target], edge_weight=edge_weight).cpu()
    keys = batch["nodes"]["answer_keys" if target == "answer" else "groups"].cpu()
    attention = {name: weights.cpu() for name, weights in outputs.attention.items()}
    vision = model.config.vision_config
    pooled_size = getattr(model.config, "image_token_pooling", None)
    return MatchedNodes(
        *_describe_nodes(rows, collator),
        matching=matching,
        is_right=keys[matching] == keys,
        patches_per_side=pooled_size or vision.image_size // vision.patch_size,
        region_weights=attention.get("regions"),
        span_weights=attention.get("spans"),
    )


def _describe_nodes(rows, collator):
    """Images, questions, answers and spans of each node."""
    images, questions, answers, spans = [], [], [], []
    for row in rows:
        messages = clean_messages(row["messages"])
        turns, ranges = read_turns(row, messages), images_of_turns(messages)
        extended = read_extended_answers(row) if collator.config.uses_extended_answers else []
        row_images = [open_image(image, row["id"]) for image in row["images"]]
        if collator.config.alignment_granularity == "sample":
            turns = [("", join_answers([answer for _, answer in turns]))] * len(row_images)
            extended = [join_answers(extended)] * len(row_images) if extended else []
            ranges = [(place, place + 1) for place in range(len(row_images))]
        texts = extended or [""] * len(turns)
        for (question, answer), (start, end), text in zip(turns, ranges, texts, strict=True):
            images.append(row_images[start:end])
            questions.append(question)
            answers.append(answer)
            text = join_answers([text])
            spans.append([text[start:end] for start, end in split_sentences(text)])
    return images, questions, answers, spans


def draw_matching(nodes: MatchedNodes, path: str | Path, title: str = "") -> Path:
    """
    Draw a matching as PNG: images with their questions on the left, tinted where the attention lies; answers on the
    right; a line from each image to the answer it was matched to, solid where that is right, dashed where it is wrong.

    Args:
        nodes ([`MatchedNodes`]): Best not more than a dozen.
        path (`str` or `Path`): Where to write the picture.
        title (`str`, *optional*): Stands above it.

    Returns:
        `Path`: `path`.
    """
    num_nodes = len(nodes.questions)
    header = HEADER_HEIGHT + (0.3 if title else 0)
    height = header + num_nodes * ROW_HEIGHT + FOOTER_HEIGHT
    figure = Figure(figsize=(WIDTH, height))
    axis = figure.add_axes((0, 0, 1, 1))  # one unit is one inch
    axis.set_axis_off()
    middles = [header + (number + 0.5) * ROW_HEIGHT for number in range(num_nodes)]
    for number, middle in enumerate(middles):
        _draw_images(axis, nodes, number, middle)
        _draw_answer(axis, nodes, number, middle)
        _draw_line(axis, nodes, number, middles)
    _draw_captions(axis, nodes, title, header, height)
    axis.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="equal")
    figure.savefig(path, dpi=110, facecolor="white")
    return Path(path)


def _draw_images(axis, nodes, number, middle):
    images = nodes.images[number]
    left = IMAGES_RIGHT - IMAGE_SIZE * len(images)
    axis.text(left - 0.12, middle, _wrap(nodes.questions[number], QUESTION_WIDTH), ha="right", va="center", fontsize=9)
    for place, image in enumerate(images):
        weights = None
        if nodes.region_weights is not None:
            weights = _weights_of_image(nodes.region_weights[number], place, len(images), nodes.patches_per_side)
        center, half = left + (place + 0.5) * IMAGE_SIZE, 0.48 * IMAGE_SIZE
        extent = (center - half, center + half, middle + half, middle - half)
        axis.imshow(_tint(image, weights), extent=extent, interpolation="nearest")


def _weights_of_image(weights, place, num_images, patches_per_side):
    """The weights of one image's patches `(rows, columns)`; tokens that a dense connector adds come after these."""
    weights = weights[weights > 0]  # all regions of a node's own images have some weight; padding and others have none
    first = place * len(weights) // num_images
    return weights[first : first + patches_per_side**2].reshape(patches_per_side, patches_per_side)


def _tint(image, weights):
    """The image as a square of RGB in 0 to 1, as the model sees it, tinted by the weights of its patches."""
    size = max(image.size)
    pixels = np.asarray(ImageOps.pad(image.convert("RGB"), (size, size)), dtype=np.float64) / 255
    if weights is None:
        return pixels
    strength = STRONGEST_TINT * (weights / weights.max()).double()
    tint = torch.nn.functional.interpolate(strength[None, None], size=(size, size))[0, 0].unsqueeze(-1).numpy()
    return (1 - tint) * pixels + tint * np.array(to_rgb(ATTENTION_COLOR))


def _draw_answer(axis, nodes, number, middle):
    left, spans = ANSWERS_LEFT + 0.12, nodes.spans[number]
    if len(spans) > 1 and nodes.span_weights is not None:
        weights = nodes.span_weights[number, : len(spans)]
        spans = spans[: len(weights)]  # `max_length` may have cut the rest
        spans = [f"{100 * weight:.0f}%  {span}" for weight, span in zip(weights, spans, strict=True)]
    answer = {"fontsize": 10, "weight": "bold", "va": "bottom" if spans else "center"}
    axis.text(left, middle - (0.06 if spans else 0), _wrap(nodes.answers[number], ANSWER_WIDTH), **answer)
    text = "\n".join(_wrap(span, SPAN_WIDTH) for span in spans)
    axis.text(left, middle - 0.02, text, va="top", fontsize=8, color="#444444")


def _draw_line(axis, nodes, number, middles):
    right = bool(nodes.is_right[number])
    ends = [IMAGES_RIGHT + 0.06, ANSWERS_LEFT], [middles[number], middles[int(nodes.matching[number])]]
    color, style = (RIGHT_COLOR, "-") if right else (WRONG_COLOR, "--")
    axis.plot(*ends, style, color=color, linewidth=1.8, marker="o", markersize=4, alpha=0.9)


def _draw_captions(axis, nodes, title, header, height):
    caption = {"va": "center", "fontsize": 10, "color": "#444444"}
    left = "image" if nodes.region_weights is None else "question, and its attention in the images"
    right = "answer, and extended answer" if any(nodes.spans) else "answer"
    num_right, num_nodes = int(nodes.is_right.sum()), len(nodes.is_right)
    counts = f"{num_right} of {num_nodes} matched rightly (solid), {num_nodes - num_right} wrongly (dashed)"
    axis.text(WIDTH / 2, 0.24, title, ha="center", va="center", fontsize=12, weight="bold")
    axis.text(IMAGES_RIGHT, header - 0.18, left, ha="right", **caption)
    axis.text(ANSWERS_LEFT + 0.12, header - 0.18, right, **caption)
    axis.text(WIDTH / 2, height - 0.18, counts, ha="center", **caption)


def _wrap(text, width):
    return textwrap.fill(textwrap.shorten(text, LONGEST_TEXT, placeholder=" …"), width)
