"""Phantoms as images: their content, and how they are drawn."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np


MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")
ORGANS = ("chest", "head", "abdomen")
SHARE_OF_LESION_COUNTS = (0.25, 0.55, 0.1, 0.1)

# Lengths below are in half image widths: the image spans -1 to 1, x to the right and y downwards.
SMALL_RADIUS, LARGE_RADIUS = (0.11, 0.13), (0.24, 0.28)
LESION_CONTRAST = (0.42, 0.50)  # grey levels, of 1
SMALLEST_OFFSET = 0.16  # of a lesion's centre from both axes of the image, so that its side and half are clear
TUBE_HALF_WIDTH = 0.035

# Grey levels by modality.
LEVELS = {
    "CT": {"background": 0.02, "rim": 0.30, "soft": 0.44, "host": 0.52, "lung": 0.36, "fluid": 0.22, "bone": 0.95},
    "MRI": {"background": 0.03, "rim": 0.88, "soft": 0.46, "host": 0.56, "lung": 0.37, "fluid": 0.14, "bone": 0.08},
    "X-ray": {"background": 0.92, "rim": 0.72, "soft": 0.60, "host": 0.46, "lung": 0.42, "fluid": 0.66, "bone": 0.84},
    "ultrasound": {
        "background": 0.2,
        "rim": 0.62,
        "soft": 0.38,
        "host": 0.46,
        "lung": 0.48,
        "fluid": 0.12,
        "bone": 0.8,
    },
}
# (level, center x, center y, half width, half height), painted in this order in the coordinates of the body.
ELLIPSES = {
    "chest": (
        ("rim", 0.0, 0.08, 0.94, 0.90),
        ("soft", 0.0, 0.08, 0.87, 0.83),
        ("bone", 0.0, 0.10, 0.06, 0.74),
        ("lung", -0.42, 0.0, 0.33, 0.62),
        ("lung", 0.42, 0.0, 0.33, 0.62),
        ("soft", 0.08, 0.36, 0.26, 0.24),
    ),
    "head": (
        ("rim", 0.0, 0.0, 0.78, 0.93),
        ("bone", 0.0, 0.0, 0.73, 0.88),
        ("host", 0.0, 0.0, 0.63, 0.78),
        ("fluid", -0.09, -0.04, 0.05, 0.20),
        ("fluid", 0.09, -0.04, 0.05, 0.20),
    ),
    "abdomen": (
        ("rim", 0.0, 0.0, 0.96, 0.74),
        ("soft", 0.0, 0.0, 0.89, 0.67),
        ("host", -0.42, -0.08, 0.42, 0.44),
        ("host", 0.48, -0.12, 0.30, 0.36),
        ("host", -0.42, 0.32, 0.17, 0.16),
        ("host", 0.42, 0.32, 0.17, 0.16),
        ("bone", 0.0, 0.50, 0.24, 0.12),
        ("soft", 0.0, 0.49, 0.09, 0.05),
    ),
}
# Where lesions may lie on either side: smallest and largest |x|, then |y|, in the coordinates of the body.
LESION_ZONES = {
    "chest": (0.32, 0.52, 0.22, 0.40),
    "head": (0.28, 0.42, 0.22, 0.44),
    "abdomen": (0.28, 0.56, 0.20, 0.38),
}


@dataclass(frozen=True)
class Lesion:
    """A round lesion: center and radius in half image widths, contrast in grey levels (negative is darker)."""

    x: float
    y: float
    radius: float
    contrast: float

    @property
    def side(self) -> str:
        return "left" if self.x < 0 else "right"

    @property
    def half(self) -> str:
        return "upper" if self.y < 0 else "lower"

    @property
    def size(self) -> str:
        return "small" if self.radius <= SMALL_RADIUS[1] else "large"

    @property
    def brightness(self) -> str:
        return "bright" if self.contrast > 0 else "dark"


@dataclass(frozen=True)
class Phantom:
    """Content of one image; `shift`, `rotation` (radians), `scale` and `noise_seed` are nuisance parameters."""

    modality: str
    organ: str
    lesions: tuple[Lesion, ...]
    has_tube: bool
    shift: tuple[float, float]
    rotation: float
    scale: float
    noise_seed: int


def sample_phantom(generator: np.random.Generator) -> Phantom:
    """Samples a phantom, every attribute independently of the others; no two lesions share a quadrant."""
    phantom = Phantom(
        modality=MODALITIES[generator.integers(len(MODALITIES))],
        organ=ORGANS[generator.integers(len(ORGANS))],
        lesions=(),
        has_tube=bool(generator.integers(2)),
        shift=tuple(generator.uniform(-0.05, 0.05, size=2).tolist()),
        rotation=float(generator.uniform(-0.12, 0.12)),
        scale=float(generator.uniform(0.92, 1.04)),
        noise_seed=int(generator.integers(2**31)),
    )
    num_lesions = int(generator.choice(len(SHARE_OF_LESION_COUNTS), p=SHARE_OF_LESION_COUNTS))
    brightness_sign = generator.choice((-1.0, 1.0))
    quadrants = generator.permutation(((-1, -1), (-1, 1), (1, -1), (1, 1)))[:num_lesions]
    # Several lesions are all small: large ones in neighboring quadrants could touch and be counted as one.
    radii = LARGE_RADIUS if num_lesions == 1 and generator.random() < 0.5 else SMALL_RADIUS
    lesions = tuple(sample_lesion(phantom, quadrant, radii, brightness_sign, generator) for quadrant in quadrants)
    return dataclasses.replace(phantom, lesions=lesions)


def sample_lesion(
    phantom: Phantom,
    quadrant: np.ndarray,
    radii: tuple[float, float],
    brightness_sign: float,
    generator: np.random.Generator,
) -> Lesion:
    """Samples a lesion in a quadrant of both organ and image; resamples if it is too close to an axis."""
    x_low, x_high, y_low, y_high = LESION_ZONES[phantom.organ]
    cosine, sine = math.cos(phantom.rotation), math.sin(phantom.rotation)
    radius = generator.uniform(*radii)
    contrast = brightness_sign * generator.uniform(*LESION_CONTRAST)
    while True:
        body_x, body_y = quadrant * generator.uniform((x_low, y_low), (x_high, y_high))
        x = phantom.scale * (cosine * body_x - sine * body_y) + phantom.shift[0]
        y = phantom.scale * (sine * body_x + cosine * body_y) + phantom.shift[1]
        if min(x * quadrant[0], y * quadrant[1]) >= SMALLEST_OFFSET:
            return Lesion(x=float(x), y=float(y), radius=float(radius), contrast=float(contrast))


def draw_phantom(phantom: Phantom, image_size: int) -> np.ndarray:
    """
    Draw a phantom.

    Args:
        phantom (`Phantom`): What to draw. The same phantom always gives the same pixels.
        image_size (`int`): Width and height in pixels.

    Returns:
        `np.ndarray` of shape `(image_size, image_size)`, uint8: the grey levels, 255 is white.
    """
    generator = np.random.default_rng(phantom.noise_seed)
    pixel_size = 2.0 / image_size
    centers = (np.arange(image_size) + 0.5) * pixel_size - 1.0
    y, x = np.meshgrid(centers, centers, indexing="ij")
    body_x, body_y = _to_body_coordinates(phantom, x, y)

    levels = LEVELS[phantom.modality]
    image = np.full_like(x, levels["background"])
    for level, center_x, center_y, half_width, half_height in ELLIPSES[phantom.organ]:
        mask = _ellipse(body_x - center_x, body_y - center_y, half_width, half_height, pixel_size)
        image += mask * (levels[level] - image)
    image = _add_texture(image, phantom, body_x, body_y)
    if phantom.has_tube:
        image += _tube(body_x, body_y, pixel_size) * (1.0 - image)
    for lesion in phantom.lesions:
        image += lesion.contrast * _ellipse(x - lesion.x, y - lesion.y, lesion.radius, lesion.radius, pixel_size)
    image = _add_noise(np.clip(image, 0.0, 1.0), phantom, x, y, generator)
    return np.round(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)


def _to_body_coordinates(phantom: Phantom, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (x - phantom.shift[0]) / phantom.scale, (y - phantom.shift[1]) / phantom.scale
    cosine, sine = math.cos(phantom.rotation), math.sin(phantom.rotation)
    return cosine * x + sine * y, cosine * y - sine * x


def _ellipse(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float, edge_width: float) -> np.ndarray:
    """1 inside, 0 outside, with an edge about `edge_width` wide between."""
    distance = (1.0 - np.hypot(x / half_width, y / half_height)) * min(half_width, half_height)
    return np.clip(distance / edge_width + 0.5, 0.0, 1.0)


def _tube(x: np.ndarray, y: np.ndarray, edge_width: float) -> np.ndarray:
    """A line that enters at the top, bends a little, and ends just below the middle."""
    distance = TUBE_HALF_WIDTH - np.abs(x - 0.06 * np.sin(2.5 * y))
    return np.clip(distance / edge_width + 0.5, 0.0, 1.0) * (y < 0.15)


def _add_texture(image: np.ndarray, phantom: Phantom, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Adds the texture of a modality: ribs and seams, a table, an uneven field, rings."""
    if phantom.modality == "X-ray":
        inside = _ellipse(x, y, 0.85, 0.70, 0.1)
        return image + 0.09 * inside * np.maximum(np.cos(22.0 * (y + 0.35 * x**2)), 0.0)
    if phantom.modality == "CT":
        table = np.exp(-(((y - 0.99 + 0.10 * x**2) / 0.03) ** 2))
        return image + 0.5 * table + 0.02 * np.cos(40.0 * np.hypot(x, y))
    if phantom.modality == "MRI":
        return image * (1.0 + 0.22 * x - 0.12 * y)
    return image


def _add_noise(
    image: np.ndarray, phantom: Phantom, x: np.ndarray, y: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Adds grain, or for ultrasound speckle within the sector that the probe at the top sees."""
    noise = generator.standard_normal(image.shape)
    if phantom.modality != "ultrasound":
        return image + 0.02 * noise
    probe_y = -1.35
    angle, depth = np.arctan2(x, y - probe_y), np.hypot(x, y - probe_y)
    sector = (np.abs(angle) < 0.72) & (depth > 0.42) & (depth < 2.25)
    smooth_noise = (noise + np.roll(noise, 1, axis=1)) / math.sqrt(2)
    return image * (1.0 + 0.16 * smooth_noise) * sector
