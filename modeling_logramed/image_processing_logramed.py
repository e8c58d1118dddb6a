"""Convert medical images of any kind to the `pixel_values` of LoGra-Med."""

import base64
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ImagesKwargs

from .image_files_logramed import open_pixels, read_pixels, scale_range_to_8_bits, scale_to_8_bits
from .remote_code_logramed import PROCESSOR_AUTO_MAP


# Interpolated images in 0..1 overshoot by rounding.
UNIT_RANGE_TOLERANCE = 1e-3
DOWNLOAD_TIMEOUT_SECONDS = 30


def _scale_unit_range_to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    # NaN fails this check too.
    if not (low >= -UNIT_RANGE_TOLERANCE and high <= 1 + UNIT_RANGE_TOLERANCE):
        raise ValueError(
            f"{name} holds floating point numbers from {low:g} to {high:g}, but they must lie in 0..1. Divide them by "
            "their largest possible value, or pass whole numbers (`uint8`, `uint16`)."
        )
    return scale_range_to_8_bits(values.clip(0, 1), 0, 1)


def _channels_last(values: np.ndarray, name: str, data_formats: tuple[str, ...]) -> np.ndarray:
    """Reshape to `(height, width)` or `(height, width, num_channels)`, by the first of `data_formats` that fits."""
    if values.ndim == 2:
        return values
    if values.ndim == 3:
        # 4 channels come last: next to a dimension of 1 or 3, one of 4 is more likely the side of a small image.
        for num_channels in ((1, 3), (4,)):
            for data_format in data_formats:
                if values.shape[{"channels_first": 0, "channels_last": -1}[data_format]] in num_channels:
                    values = values if data_format == "channels_last" else values.transpose(1, 2, 0)
                    return values[:, :, 0] if values.shape[-1] == 1 else values
    raise ValueError(
        f"{name} must have the shape (height, width), (height, width, channels) or (channels, height, width) with 1, "
        f"3 or 4 channels, got {tuple(values.shape)}."
    )


def image_from_array(values: np.ndarray | torch.Tensor, name: str, data_format: str | None = None) -> Image.Image:
    """
    Convert an array to an 8-bit `PIL.Image.Image` of mode L, RGB or RGBA.

    Integers are scaled by `scale_to_8_bits`, floating point numbers must lie in 0..1, and `True` is white. Without
    `data_format`, the channel dimension is the one of size 1 or 3, else the one of size 4; if both ends fit, the last
    one of a NumPy array and the first one of a `torch.Tensor`.
    """
    data_formats = ("channels_last", "channels_first")
    if isinstance(values, torch.Tensor):
        data_formats = data_formats[::-1]
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = _channels_last(values, name, data_formats if data_format is None else (data_format,))
    if values.size == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(values.shape)}.")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif np.issubdtype(values.dtype, np.floating):
        values = _scale_unit_range_to_8_bits(values, name)
    elif np.issubdtype(values.dtype, np.integer):
        # Most images have 8 bits and need no scaling.
        values = values if values.dtype == np.uint8 else scale_to_8_bits(values)
    else:
        raise TypeError(f"{name} must hold whole or floating point numbers, got {values.dtype}.")
    return Image.fromarray(np.ascontiguousarray(values))


def convert_to_rgb(image: Image.Image, background_color: tuple[int, ...], name: str = "The image") -> Image.Image:
    """
    Convert an image of any PIL mode to RGB as a viewer would show it.

    The EXIF orientation is applied, deep pixels are scaled by `scale_to_8_bits` (floating point outside 0..1 by its
    own range), and transparent pixels become `background_color`. If there are several frames, the current one is used.

    Raises:
        ValueError: If its pixels cannot be read, or are not finite.
    """
    try:
        image = read_pixels(image)
    except Exception as error:  # what PIL raises for a damaged file depends on its format and on the damage
        raise ValueError(f"{name} cannot be read: {error}") from error
    if image.mode.startswith("I"):
        image = Image.fromarray(scale_to_8_bits(np.asarray(image)))
    elif image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name} holds values that are infinite or not a number.")
        low, high = (0, 1) if low >= 0 and high <= 1 else (low, high)
        image = Image.fromarray(scale_range_to_8_bits(values, low, high))
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = _with_alpha(image)
        background = Image.new("RGBA", image.size, (*background_color, 255))
        background.alpha_composite(image)
        image = background
    return image if image.mode == "RGB" else image.convert("RGB")


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("LA") if image.mode == "La" else image
    try:
        return image.convert("RGBA")
    except Exception:  # the transparency in the file's metadata does not fit its pixels
        image = image.copy()
        image.info.pop("transparency", None)
        return image.convert("RGBA")


def _read_bytes(source: str | Path) -> bytes:
    if str(source).startswith(("http://", "https://")):
        request = urllib.request.Request(str(source), headers={"User-Agent": "logramed"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            return response.read()
    if str(source).startswith("data:"):
        return base64.b64decode(str(source).partition("base64,")[2])
    return Path(source).read_bytes()


def _read_image(source: str | Path) -> Image.Image:
    """
    Read an upright image from a path, an `http(s)` URL or a base64 `data:` URL; only the first of several frames.
    """
    shown = str(source) if len(str(source)) <= 200 else str(source)[:197] + "..."
    try:
        return open_pixels(_read_bytes(source))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no image file {shown}") from error
    except Exception as error:  # what PIL raises for a damaged file depends on its format and on the damage
        raise ValueError(f"The image {shown} cannot be read: {error}") from error


def load_image(source: Any, name: str = "The image", data_format: str | None = None) -> Image.Image:
    """
    Load an image as a `PIL.Image.Image` of its own mode.

    Args:
        source (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, `str` or `Path`):
            The image, or the path or URL of its file.
        name (`str`, *optional*):
            Name of the image in error messages; for a path, the path itself is shown.
        data_format (`str`, *optional*):
            `channels_first` or `channels_last`, for arrays that could be either (see `image_from_array`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or the image is empty or has an impossible shape or range.
        TypeError: If `source` has another type.
    """
    if isinstance(source, (str, Path)):
        return _read_image(source)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return image_from_array(source, name, data_format)
    if not isinstance(source, Image.Image):
        raise TypeError(
            f"{name} must be a `PIL.Image.Image`, an array, a tensor or the path of a file, got "
            f"{type(source).__name__}."
        )
    if 0 in source.size:
        raise ValueError(f"{name} is empty: it is {source.width} pixels wide and {source.height} high.")
    return source


def pad_to_square(image: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Center an RGB image on a square as wide as its longer side; nothing is cropped."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), background_color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def flatten_images(images: Any) -> list:
    """Flatten an image, a batch array (four dimensions) or (nested) lists of these into one list of images."""
    if isinstance(images, (list, tuple)):
        return [image for entry in images if entry is not None for image in flatten_images(entry)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def _square_size(size: int | dict[str, int]) -> dict[str, int]:
    side: int | None
    if isinstance(size, int):
        side = size
    else:
        size = dict(size)
        sides = {size.get(key) for key in ("height", "width", "shortest_edge") if size.get(key)}
        side = sides.pop() if len(sides) == 1 else None
    if not side or side < 1:
        raise ValueError(f'`size` must be one side of a square or {{"height": side, "width": side}}, got {size}.')
    return {"height": side, "width": side}


class LoGraMedImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    do_pad_to_square: bool


class LoGraMedImageProcessor(BaseImageProcessor):
    """
    Turn images into `pixel_values`: RGB, padded to a square, resized, rescaled, normalized. Needs no torchvision.

    Takes `PIL.Image.Image`, NumPy arrays, tensors, paths, URLs, and (nested) lists of these; see `convert_to_rgb` and
    `image_from_array` for how each kind is read.

    Args:
        size (`int` or `dict`, defaults to 224):
            Side of the square image that the model sees, in pixels, or `{"height": side, "width": side}`.
        do_pad_to_square (`bool`, defaults to `True`):
            Pad the shorter side with `image_mean` before resizing. Otherwise the image is stretched to a square. It is
            never cropped, which would cut anatomy.
        resample (`int`, defaults to `PIL.Image.Resampling.BICUBIC`):
            Resampling filter for resizing.
        do_rescale (`bool`, defaults to `True`), rescale_factor (`float`, defaults to 1/255):
            Multiply the pixel values, 0 to 255, by this factor.
        do_normalize (`bool`, defaults to `True`), image_mean, image_std (`list[float]`, default to CLIP's):
            Subtract the mean and divide by the standard deviation, per channel.
        do_convert_rgb (`bool`, defaults to `True`):
            Convert images of other modes to RGB. Otherwise they raise `ValueError`.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012
    valid_kwargs = LoGraMedImagesKwargs
    _auto_class = "AutoImageProcessor"

    def __init__(
        self,
        size: int | dict[str, int] = 224,
        do_pad_to_square: bool = True,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        do_convert_rgb: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.size = _square_size(size)
        self.do_pad_to_square = do_pad_to_square
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(OPENAI_CLIP_MEAN if image_mean is None else image_mean)
        self.image_std = list(OPENAI_CLIP_STD if image_std is None else image_std)
        self.do_convert_rgb = do_convert_rgb

    def preprocess(
        self,
        images: Any,
        size: int | dict[str, int] | None = None,
        do_pad_to_square: bool | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Prepare images for the model; arguments left out default to the settings of the image processor.

        Args:
            images:
                One image or (nested) lists of them; a four-dimensional array or tensor is a list of images.
            input_data_format (`str`, *optional*):
                `channels_first` or `channels_last`, for arrays that could be either.
            return_tensors (`str`, *optional*):
                `"pt"` for a `torch.Tensor`; otherwise a NumPy array.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(num_images, 3, height, width)`, float32.

        Raises:
            ValueError: If there is no image, or one is unreadable, empty, or has an impossible shape or range.
        """
        settings: dict[str, Any] = {
            "size": _square_size(self.size if size is None else size),
            "do_pad_to_square": self.do_pad_to_square if do_pad_to_square is None else do_pad_to_square,
            "resample": self.resample if resample is None else resample,
            "rescale_factor": self.rescale_factor if rescale_factor is None else rescale_factor,
            "image_mean": self.image_mean if image_mean is None else image_mean,
            "image_std": self.image_std if image_std is None else image_std,
            "do_convert_rgb": self.do_convert_rgb if do_convert_rgb is None else do_convert_rgb,
            "input_data_format": input_data_format,
        }
        if not (self.do_rescale if do_rescale is None else do_rescale):
            settings["rescale_factor"] = None
        if not (self.do_normalize if do_normalize is None else do_normalize):
            settings["image_std"] = None
        flat_images = flatten_images(images)
        if not flat_images:
            raise ValueError("`images` holds no image.")
        pixel_values = [
            self._preprocess_one(image, f"`images[{index}]`", **settings) for index, image in enumerate(flat_images)
        ]
        return BatchFeature({"pixel_values": np.stack(pixel_values)}, tensor_type=return_tensors)

    def _preprocess_one(
        self,
        image: Any,
        name: str,
        size: dict[str, int],
        do_pad_to_square: bool,
        resample: int,
        rescale_factor: float | None,
        image_mean: list[float],
        image_std: list[float] | None,
        do_convert_rgb: bool,
        input_data_format: str | None,
    ) -> np.ndarray:
        """`(3, height, width)` float32; `rescale_factor=None` skips rescaling, `image_std=None` skips normalizing."""
        # Rounded down, as LLaVA does. Close to zero after normalizing: carries no information.
        background_color = tuple(int(255 * mean) for mean in image_mean)
        image = load_image(image, name, input_data_format)
        if do_convert_rgb:
            image = convert_to_rgb(image, background_color, name)
        elif image.mode != "RGB":
            raise ValueError(f"{name} must be RGB with `do_convert_rgb=False`, got mode {image.mode}.")
        if do_pad_to_square:
            image = pad_to_square(image, background_color)
        image = image.resize((size["width"], size["height"]), resample=resample)
        pixels = np.asarray(image, dtype=np.float32)
        if rescale_factor is not None:
            pixels = pixels * np.float32(rescale_factor)
        if image_std is not None:
            pixels = (pixels - np.asarray(image_mean, np.float32)) / np.asarray(image_std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def to_dict(self) -> dict[str, Any]:
        """The settings to save, with the `auto_map` that loads this class as remote code."""
        return {**super().to_dict(), "auto_map": dict(PROCESSOR_AUTO_MAP)}


__all__ = ["LoGraMedImageProcessor"]
