"""Maps of a model: the weights that it gives to the regions of an image for a question."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from logramed.eval.answering import in_batches
from logramed.eval.grounding.region_weights import weigh_by_cosine
from logramed.eval.likelihood import build_answer_context
from logramed.eval.prompts import (
    encode_prompts,
    evaluation_mode,
    get_tokenizer,
    load_question_images,
    padding_on_the_left,
)
from logramed.eval.question_images import IMAGE_PLACEHOLDER, list_images


# The kinds of maps, with descriptions.
KINDS = {
    "answer_state": "image regions weighted by the state from which the answer is decoded",
    "question": "image regions weighted by the question, encoded on its own",
    "attention": "attention from the answer's position to the image",
}
# Attention is averaged over heads and over the last layers, this fraction of all.
SHARE_OF_LAYERS = 0.5


def read_maps(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    blank_images: bool = False,
    progress: bool = True,
) -> Iterator[tuple[dict, dict[str, np.ndarray]]]:
    """
    The weights of the regions of each question's image, at the position where the model would begin to answer.

    `answer_state` has the weights of alignment with answer states (`alignment_regions`), and of alignment of turns
    with a text encoder; `question` those of alignment of turns and spans without one. Both are cosines with the
    projected image over a temperature (see `weigh_by_cosine`), and exist for any model, however it was trained.
    `attention` is the mean over heads and the last half of the layers.

    The model is a LoGra-Med or LLaVA, with or without adapters; raises `ValueError` unless its image tokens are a
    square grid. A question with several images is a batch of its own: memory of attention is quadratic in tokens.

    Yields each question row and, for each of `KINDS`, the weights `(num_images, num_rows, num_columns)`, float64,
    which sum to 1 over all images of the question.
    """
    if any(len(list_images(question)) > 1 for question in questions):
        batch_size = 1
    base = unwrap(model)
    side, first = find_grid(base.config)
    for batch in in_batches(questions, batch_size, "Reading maps", progress):
        with torch.no_grad(), evaluation_mode(model), eager_attention(base):
            weights = weigh_regions(base, processor, batch, blank_images)
        for place, question in enumerate(batch):
            num_images = len(list_images(question))
            yield (
                question,
                {kind: cut_grids(values[place], side, first, num_images) for kind, values in weights.items()},
            )


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model without its PEFT wrapper; adapters stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_grid(config: Any) -> tuple[int, int]:
    """
    Number of rows (and columns) of a model's image tokens, and number of tokens of an image before them. Raises
    `ValueError` if they are not a square grid.
    """
    vision = getattr(config, "vision_config", None)
    image_size, patch_size = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if config.model_type not in ("logramed", "llava") or not isinstance(image_size, int) or not patch_size:
        raise ValueError(
            "`grounding` needs a model whose image becomes one square grid of tokens, LoGra-Med or LLaVA; got "
            f"{config.model_type}."
        )
    has_others = getattr(config, "vision_feature_select_strategy", "default") == "full"
    first = getattr(config, "num_prefix_tokens", 1) if has_others else 0
    return getattr(config, "image_token_pooling", None) or image_size // patch_size, first


def cut_grids(weights: torch.Tensor, side: int, first: int, num_images: int) -> np.ndarray:
    """From the weights of all tokens of the images, those of patches `(num_images, side, side)`, summing to 1."""
    of_images = weights.unflatten(0, (num_images, -1))
    patches = of_images[:, first : first + side**2]
    if patches.shape[1] < side**2:
        made = of_images.shape[1]
        raise ValueError(f"`grounding` expected {side}² tokens per image, but the model made {made}.")
    values = patches.double().cpu().numpy().reshape(num_images, side, side)
    return values / values.sum()


@contextmanager
def eager_attention(model: torch.nn.Module) -> Iterator[None]:
    """Switches the language model to eager attention, which returns weights, and back afterwards."""
    decoder = model.model.language_model
    former = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(former)


def weigh_regions(
    model: torch.nn.Module, processor: Any, batch: Sequence[dict], blank_images: bool = False
) -> dict[str, torch.Tensor]:
    """
    Weights of all image tokens of each question, `(batch_size, num_image_tokens)`, by kind of map. All questions must
    have the same number of images.
    """
    prompts = [build_answer_context(processor, question)[0] for question in batch]
    images = load_question_images(batch, processor, blank_images)
    with padding_on_the_left(get_tokenizer(processor)):
        inputs = encode_prompts(processor, prompts, images).to(model.device, model.dtype)
    image_outputs = model.model.get_image_features(pixel_values=inputs.pop("pixel_values"))
    regions = torch.stack(list(image_outputs.pooler_output)).unflatten(0, (len(batch), -1)).flatten(1, 2)
    # Only families without such a grid have other image inputs, such as sizes.
    outputs = model.model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        position_ids=positions(inputs["attention_mask"]),
        mm_encoder_outputs={"image": image_outputs},
        use_cache=False,
        output_attentions=True,
    )
    is_region = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    questions = encode_questions(
        model, processor, [question["question"].replace(IMAGE_PLACEHOLDER, "") for question in batch]
    )
    return {
        "answer_state": weigh_by_cosine(outputs.last_hidden_state[:, -1:], regions, is_region)[:, 0],
        "question": weigh_by_cosine(questions.unsqueeze(1), regions, is_region)[:, 0],
        "attention": read_attention(outputs.attentions, inputs["input_ids"] == model.config.image_token_id),
    }


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Position of each token among the attended tokens of its row, from 0, as `generate` counts them.

    Example:
        >>> positions(torch.tensor([[0, 1, 1, 0, 1]]))
        tensor([[0, 0, 1, 1, 2]])
    """
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


def read_attention(attentions: Sequence[torch.Tensor], is_image: torch.Tensor) -> torch.Tensor:
    """
    Attention of the last token to the image tokens (`is_image`, the same number per row), averaged over heads and the
    last layers: `(batch_size, num_image_tokens)`, float32. `attentions` has one tensor `(batch_size, num_heads,
    sequence_length, sequence_length)` per layer.
    """
    num_layers = -int(-len(attentions) * SHARE_OF_LAYERS // 1)
    mean = torch.stack([layer[:, :, -1].float().mean(dim=1) for layer in attentions[-num_layers:]]).mean(dim=0)
    return mean[is_image].unflatten(0, (len(mean), -1))


def encode_questions(model: torch.nn.Module, processor: Any, questions: Sequence[str]) -> torch.Tensor:
    """
    Mean of the last hidden states of each question's tokens, without image or template, as alignment encodes the
    texts of nodes: `(num_questions, hidden_size)`.
    """
    tokenizer = get_tokenizer(processor)
    encoded = [tokenizer(question, return_special_tokens_mask=True) for question in questions]
    lengths = torch.tensor([len(text["input_ids"]) for text in encoded])
    ids, special = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(text[name]) for text in encoded], True, value).to(model.device)
        for name, value in (("input_ids", tokenizer.pad_token_id or 0), ("special_tokens_mask", 1))
    )
    mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).to(model.device)
    states = model.model.language_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    is_content = ((special == 0) & mask).unsqueeze(-1)
    return (states.float() * is_content).sum(dim=1) / is_content.sum(dim=1).clamp(min=1)
