"""A picture of a matching: which image, seen with which question, went to which answer, and what was looked at."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from logramed.eval.grounding.tints import tint
from logramed.trainer.alignment import decode_matching
from logramed.trainer.alignment.aligned_model import AlignedModel
from logramed.trainer.alignment.alignment_head import AlignmentHead
from logramed.trainer.alignment.node_inputs import images_of_turns, number_volumes
from logramed.trainer.data.answer_spans import clean_messages
from logramed.trainer.data.collator import (
    LoGraMedDataCollator,
    join_answers,
    open_image,
    read_extended_answers,
    read_turns,
    split_sentences,
)


# Lengths in inches.
WIDTH, ROW_HEIGHT, HEADER_HEIGHT, FOOTER_HEIGHT = 10.6, 1.02, 0.42, 0.36
IMAGE_SIZE, IMAGES_RIGHT, ANSWERS_LEFT = 0.94, 4.4, 6.0
MOST_IMAGES = 2  # of full size, beside their question
QUESTION_WIDTH, ANSWER_WIDTH, SPAN_WIDTH = 30, 46, 62  # in characters
RIGHT_COLOR, WRONG_COLOR = "#1a7f37", "#c62828"
QUESTION_LINES, ANSWER_LINES, SPAN_LINES = 5, 2, 3  # at most, so that a row's texts stay in it


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
        rows (`list[dict]`): Training rows; all their turns are nodes, or all their images and volumes.
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
            numbers = number_volumes(messages)
            ranges = [(numbers.index(node), numbers.index(node) + numbers.count(node)) for node in sorted({*numbers})]
            turns = [("", join_answers([answer for _, answer in turns]))] * len(ranges)
            extended = [join_answers(extended)] * len(ranges) if extended else []
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
    """The images of a node, as many in a row as there is room for, and smaller where they need several rows."""
    images, weights = nodes.images[number], [None] * len(nodes.images[number])
    if nodes.region_weights is not None:
        own = nodes.region_weights[number]
        weights = [
            _weights_of_image(own, place, len(images), nodes.patches_per_side).numpy() for place in range(len(images))
        ]
    num_rows = next(rows for rows in range(1, len(images) + 1) if rows**2 * MOST_IMAGES >= len(images))
    num_columns, size = -(-len(images) // num_rows), IMAGE_SIZE / num_rows
    left, top = IMAGES_RIGHT - size * num_columns, middle - IMAGE_SIZE / 2
    question = "\n".join(_wrap(nodes.questions[number], QUESTION_WIDTH, QUESTION_LINES))
    axis.text(left - 0.12, middle, question, ha="right", va="center", fontsize=9, parse_math=False)
    for place, (image, of_image) in enumerate(zip(images, weights, strict=True)):
        row, column = divmod(place, num_columns)
        side, half = max(image.size), 0.48 * size
        shown = ImageOps.pad(image.convert("RGB"), (side, side))
        if of_image is not None:
            shown = tint(shown, of_image, largest=max(values.max() for values in weights))
        x, y = left + (column + 0.5) * size, top + (row + 0.5) * size
        axis.imshow(shown, extent=(x - half, x + half, y + half, y - half))


def _weights_of_image(weights, place, num_images, patches_per_side):
    """The weights of one image's patches `(rows, columns)`; tokens that a dense connector adds come after these."""
    weights = weights[weights > 0]  # all regions of a node's own images have some weight; padding and others have none
    first = place * len(weights) // num_images
    return weights[first : first + patches_per_side**2].reshape(patches_per_side, patches_per_side)


def _draw_answer(axis, nodes, number, middle):
    left, spans = ANSWERS_LEFT + 0.12, nodes.spans[number]
    if len(spans) > 1 and nodes.span_weights is not None:
        weights = nodes.span_weights[number, : len(spans)]
        spans = spans[: len(weights)]  # `max_length` may have cut the rest
        spans = [f"{100 * weight:.0f}%  {span}" for weight, span in zip(weights, spans, strict=True)]
    answer = {"fontsize": 10, "weight": "bold", "va": "bottom" if spans else "center", "parse_math": False}
    lines = _wrap(nodes.answers[number], ANSWER_WIDTH, ANSWER_LINES)
    axis.text(left, middle - (0.06 if spans else 0), "\n".join(lines), **answer)
    lines = [line for span in spans for line in _wrap(span, SPAN_WIDTH, SPAN_LINES)]
    if len(lines) > SPAN_LINES:
        lines[SPAN_LINES - 1 :] = [lines[SPAN_LINES - 1] + " …"]
    axis.text(left, middle - 0.02, "\n".join(lines), va="top", fontsize=8, color="#444444", parse_math=False)


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


def _wrap(text, width, most_lines):
    return textwrap.wrap(text, width, max_lines=most_lines, placeholder=" …")
