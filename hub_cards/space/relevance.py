"""
Draw which parts of the images matter: for the last answer by gradient times input of its probability, and for each
question by the weights that alignment trains.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from conversation import Assistant, Turn
from PIL import Image


try:
    from logramed.eval.grounding.boxes import find_window
    from logramed.eval.grounding.region_weights import weigh_by_cosine
    from logramed.eval.grounding.tints import tint
except ImportError:  # in a Space, which has copies in this folder
    from boxes import find_window
    from region_weights import weigh_by_cosine
    from tints import tint

Drawn = list[tuple[Image.Image, str]]


def image_relevance(assistant: Assistant, turns: Sequence[Turn]) -> list[np.ndarray]:
    """
    Relevance of each image region for the last answer: one square float array per image in the order of the
    conversation, rows from the top, as the model sees the image (padded to a square if its processor does that).

    The relevance of an image token is the absolute value of its projected features times the gradient of the answer's
    log-probability with respect to them. It is a first-order measure of what changes the answer's probability, not an
    explanation: a model can be right for reasons that this does not show. Raises `ValueError` if the model has no
    projector between images and language, or its image tokens do not form a square.
    """
    prompt = assistant.encode(turns)
    inputs = assistant.encode(turns, with_last_answer=True)
    num_prompt_tokens = prompt["input_ids"].shape[1]
    with torch.enable_grad(), ProjectedFeatures(assistant.model) as projected:
        answer = inputs["input_ids"][0, num_prompt_tokens:]
        logits = assistant.model(**inputs, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        probability = logits.log_softmax(-1).gather(-1, answer[:, None]).sum()
        (gradient,) = torch.autograd.grad(probability, projected.features)
    relevance = (gradient * projected.features).sum(-1).abs().float()
    num_images = sum(len(turn.images) for turn in turns)
    return [lay_on_grid(values) for values in relevance.detach().reshape(num_images, -1).cpu().numpy()]


def matched_regions(assistant: Assistant, turns: Sequence[Turn]) -> list[list[np.ndarray]]:
    """
    Weights of the regions of all images so far for each question, on one scale: from the cosines of the state before
    its answer with the projected regions (see `weigh_by_cosine`), as in alignment with answer states. For each turn,
    one square float array per image so far, summing to 1 over the turn. Raises the errors of `image_relevance`.
    """
    inputs = assistant.encode(turns)
    ends = [assistant.encode(turns[: number + 1])["input_ids"].shape[1] for number in range(len(turns))]
    with torch.no_grad(), ProjectedFeatures(assistant.model) as projected:
        states = assistant.model.model(**inputs).last_hidden_state[:, [end - 1 for end in ends]]
    counts = list(accumulate(len(turn.images) for turn in turns))
    regions = projected.features.detach().reshape(1, -1, projected.features.shape[-1])
    image_of_region = torch.arange(regions.shape[1], device=states.device) * counts[-1] // regions.shape[1]
    is_seen = image_of_region < torch.tensor(counts, device=states.device).unsqueeze(1)
    weights = weigh_by_cosine(states, regions, is_seen.unsqueeze(0))[0].cpu().numpy()
    matched = []
    for count, of_turn in zip(counts, weights, strict=True):
        grids = [lay_on_grid(values) for values in of_turn.reshape(counts[-1], -1)[:count]]
        total = sum(values.sum() for values in grids)
        matched.append([values / total for values in grids])
    return matched


class ProjectedFeatures:
    """Context manager that keeps the projector's output and makes it a leaf for gradients."""

    def __init__(self, model: torch.nn.Module):
        found = [module for name, module in model.named_modules() if name.endswith("multi_modal_projector")]
        if not found:
            raise ValueError("This model has no projector (`multi_modal_projector`), where relevance is measured.")
        self.projector, self.features = found[0], None

    def __enter__(self) -> "ProjectedFeatures":
        self._handle = self.projector.register_forward_hook(self._keep)
        return self

    def __exit__(self, *exception) -> None:
        self._handle.remove()

    def _keep(self, module, arguments, output):
        self.features = output.detach().requires_grad_()
        return self.features


def lay_on_grid(values: np.ndarray) -> np.ndarray:
    """
    Reshape the relevance of an image's tokens to a square, leaving out a class token before them.

    Example:
        >>> lay_on_grid(np.array([9.0, 1.0, 2.0, 3.0, 4.0]))
        array([[1., 2.],
               [3., 4.]])
    """
    side = int(len(values) ** 0.5)
    if side * side not in (len(values), len(values) - 1):
        raise ValueError(f"The {len(values)} tokens of an image do not form a square.")
    return values[-side * side :].reshape(side, side)


def draw_relevance(assistant: Assistant, turns: Sequence[Turn]) -> Drawn:
    """The images of a conversation tinted by their relevance for the last answer, with titles."""
    relevance = image_relevance(assistant, turns)
    return draw_images(assistant, turns, relevance, [f"Image {number + 1}" for number in range(len(relevance))])


def draw_matched_regions(assistant: Assistant, turns: Sequence[Turn]) -> Drawn:
    """For each question, the images so far tinted by the regions that it matches, titled with their weights."""
    drawn = []
    for number, grids in enumerate(matched_regions(assistant, turns), start=1):
        shares = [f"image {place}: {100 * values.sum():.0f}%" for place, values in enumerate(grids, start=1)]
        drawn += draw_images(assistant, turns, grids, [f"Q{number}, {share}" for share in shares])
    return drawn


def draw_images(
    assistant: Assistant, turns: Sequence[Turn], grids: Sequence[np.ndarray], titles: Sequence[str]
) -> Drawn:
    """Tint the first images of a conversation, one grid per image; the largest value of all gets most tint."""
    paths = [path for turn in turns for path in turn.images]
    largest = max(values.max() for values in grids)
    drawn = []
    for path, values, title in zip(paths, grids, titles, strict=False):
        with Image.open(path) as image:
            window = find_window(image.size, assistant.processor.image_processor)
            drawn.append((tint(image, values, window, largest), title))
    return drawn
