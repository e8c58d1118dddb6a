"""Which parts of an image an answer draws on: gradient times input of its probability, laid over the image."""

from collections.abc import Sequence

import numpy as np
import torch
from conversation import Assistant, Turn
from PIL import Image


COLOR = (255, 110, 20)  # of what counts most
STRENGTH = 0.75  # of the colour there, 0 to 1
# Below this share of the largest relevance nothing is coloured, so that the image stays readable.
FLOOR = 0.15


def image_relevance(assistant: Assistant, turns: Sequence[Turn]) -> list[np.ndarray]:
    """
    How much each region of each image counts for the last answer.

    The relevance of an image token is the absolute value of its projected features times the gradient of the answer's
    log-probability with respect to them. It is a first-order measure of what changes the answer's probability, no
    explanation of it: a model can be right for reasons that this does not show.

    Args:
        assistant (`Assistant`): Model and processor.
        turns: The conversation; the last turn has an answer.

    Returns:
        `list[np.ndarray]`: a square float array for each image in the order of the conversation, rows from the top, as
        the model sees the image (padded to a square, if its processor does that).

    Raises:
        ValueError: If the model has no projector between images and language, or its image tokens form no square.
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


class ProjectedFeatures:
    """While this holds, what the model's projector returns is kept, as the start of all gradients."""

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
    The relevance of an image's tokens as a square; a class token before them is left out.

    Example:
        >>> lay_on_grid(np.array([9.0, 1.0, 2.0, 3.0, 4.0]))
        array([[1., 2.],
               [3., 4.]])
    """
    side = int(len(values) ** 0.5)
    if side * side not in (len(values), len(values) - 1):
        raise ValueError(f"The {len(values)} tokens of an image form no square.")
    return values[-side * side :].reshape(side, side)


def draw_relevance(
    image: Image.Image, relevance: np.ndarray, is_padded: bool, largest: float | None = None
) -> Image.Image:
    """
    Lay relevance over an image.

    Args:
        image (`PIL.Image.Image`): As it was shown to the processor.
        relevance (`np.ndarray` of shape `(side, side)`): Not negative.
        is_padded (`bool`): The processor centred the image on a square of its longer side; otherwise it distorted it.
        largest (`float`, *optional*): Relevance that is coloured most, such as the largest in all images of a
            conversation; by default that of this image.

    Returns:
        `PIL.Image.Image`: RGB, of the image's size.
    """
    side = max(image.size)
    square = (side, side) if is_padded else image.size
    largest = relevance.max() if largest is None else largest
    share = relevance / largest if largest > 0 else relevance
    share = np.clip((share - FLOOR) / (1 - FLOOR), 0, 1)
    heat = Image.fromarray(np.round(share * 255 * STRENGTH).astype(np.uint8)).resize(square, Image.Resampling.BICUBIC)
    if is_padded:
        left, top = (side - image.width) // 2, (side - image.height) // 2
        heat = heat.crop((left, top, left + image.width, top + image.height))
    return Image.composite(Image.new("RGB", image.size, COLOR), image.convert("RGB"), heat)
