"""How volumes are shown in prompts: which slices, how many, and in which window."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from .references import count_slices, expand_volume, parse_reference
from .volume import SLABS, UNIFORM, parse_slices
from .windows import AUTO, parse_window


FEWEST_TOKENS = 32
# Tokens per image if there is no processor: the default `volume_tokens` then hold eight images.
USUAL_IMAGE_TOKENS = 32
USUAL_SIDE = 512  # pixels of a slice
WINDOW_HELP = (
    "How DICOM and NIfTI values become grey levels: `auto` (the file's own window, else `range`), `range` (the value "
    "range of the volume), `lung`, `bone`, `brain`, `soft_tissue`, `mediastinum`, or `center,width`."
)
SLICES_HELP = (
    "Slices of a volume to show: `uniform` (evenly spaced), `slabs` (means of neighbours), or numbers and ranges "
    "from 1 such as `3,10-12`, each one image."
)
TOKENS_HELP = (
    "Image tokens for all slices of a volume together, at least 32; as many slices are shown as fit, at least one."
)


@dataclass(frozen=True)
class VolumeOptions:
    """
    The command-line arguments `window`, `slices` and `volume_tokens`.

    Args:
        slices (`str`), window (`str`): See `expand_volume`.
        volume_tokens (`int`): Most image tokens of a volume.
        tokens_per_image (`Callable[[], int]`, *optional*): Returns the tokens per image; called at the first volume.

    Raises:
        ValueError: If a value is invalid.
    """

    slices: str = UNIFORM
    window: str = AUTO
    volume_tokens: int = 256
    tokens_per_image: Callable[[], int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        parse_window(self.window)
        if self.slices not in (UNIFORM, SLABS):
            parse_slices(self.slices)
        if self.volume_tokens < FEWEST_TOKENS:
            raise ValueError(f"`volume_tokens` must be {FEWEST_TOKENS} or more, got {self.volume_tokens}.")

    @cached_property
    def count(self) -> int:
        """Most images of a volume: as many as fit in `volume_tokens`, at least one."""
        tokens = USUAL_IMAGE_TOKENS if self.tokens_per_image is None else self.tokens_per_image()
        return max(1, self.volume_tokens // tokens)

    def show(self, path: str) -> tuple[list[str], list[dict]]:
        """
        The images of a volume (see `expand_volume`) and their content parts for a message: each image part before its
        text part. The last text ends with a line break, since chat templates do not add one before what follows.
        """
        is_one = parse_reference(path).selection is not None or count_slices(path) == 1
        images, content = [], []
        for reference, text in expand_volume(path, 1 if is_one else self.count, self.slices, self.window):
            images.append(reference)
            content.append({"type": "image"})
            if text:
                content.append({"type": "text", "text": text})
        if content[-1]["type"] == "text":
            content[-1]["text"] += "\n"
        return images, content


def count_image_tokens(processor: Any) -> int:
    """Number of tokens that the processor of an image-text-to-text model uses per slice."""
    number = getattr(processor, "num_image_tokens", None)
    if isinstance(number, int) and number > 0:
        return number
    image = Image.new("RGB", (USUAL_SIDE, USUAL_SIDE))
    ids = processor(text=[processor.image_token], images=[[image]], return_tensors="pt")["input_ids"]
    return max(1, int((ids == processor.tokenizer.convert_tokens_to_ids(processor.image_token)).sum()))
