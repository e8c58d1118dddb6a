"""
Phantoms as volumes: a lesion near the feet, another near the head, and a question about both that no slice answers.

Volumes come in families of four that differ only in the sides of the two lesions: all four combinations. No slice
shows both lesions, so each slice of a family is in as many volumes with one answer as with the other. From a single
slice, the best possible accuracy is one half.
"""

import dataclasses
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from logramed.eval.volumes.errors import import_optional
from logramed.trainer.data.phantom_images import (
    LARGE_RADIUS,
    Lesion,
    Phantom,
    draw_phantom,
    sample_lesion,
    sample_phantom,
)
from logramed.trainer.data.phantom_questions import Turn


FAMILY_SIZE = 4
NUM_SLICES = 8  # the lower half may show one lesion, the upper half the other
SLICE_SPACING = 0.16  # half image widths: a lesion appears in three slices
TAPERING = 0.015  # of the body, per slice away from the middle
# If half of the lesions were dark, the mean grey level of a side would say nothing: a tiny model from scratch had not
# learned their sides after 390 steps (all eight slices); with bright ones it took 110 (four). One run each.
BRIGHT = 1.0
FIELD_OF_VIEW = 360.0  # millimetres
LOWEST_HU, HU_RANGE = -150, 400  # value of black, and distance to white: the window `soft_tissue`
SIDES = ("left", "right")


@dataclass(frozen=True)
class PhantomVolume:
    """Axial slices from the feet to the head, and the sides of both lesions, the one nearer the feet first."""

    slices: tuple[Phantom, ...]
    sides: tuple[str, str]

    @property
    def organ(self) -> str:
        return self.slices[0].organ

    @property
    def relation(self) -> str:
        return "same" if self.sides[0] == self.sides[1] else "opposite"


def sample_volumes(num_volumes: int, generator: np.random.Generator) -> list[PhantomVolume]:
    """Volumes in random order; `num_volumes` is a multiple of `FAMILY_SIZE`."""
    volumes = [volume for _ in range(num_volumes // FAMILY_SIZE) for volume in _sample_family(generator)]
    return [volumes[place] for place in generator.permutation(num_volumes)]


def _sample_family(generator: np.random.Generator) -> list[PhantomVolume]:
    body = dataclasses.replace(sample_phantom(generator), modality="CT", lesions=(), has_tube=False)
    feet, head = (_sample_half(body, first, generator) for first in (0, NUM_SLICES // 2))
    return [PhantomVolume(feet[lower] + head[upper], (lower, upper)) for lower, upper in product(SIDES, SIDES)]


def _sample_half(body: Phantom, first: int, generator: np.random.Generator) -> dict[str, tuple[Phantom, ...]]:
    """Half of the slices with one lesion, for each side that it may be on."""
    quadrant = np.array((1, generator.choice((-1, 1))))
    right = sample_lesion(body, quadrant, LARGE_RADIUS, BRIGHT, generator)
    center = first + generator.integers(1, NUM_SLICES // 2 - 1)
    slices = [
        dataclasses.replace(
            body,
            scale=body.scale * (1.0 - TAPERING * abs(number - (NUM_SLICES - 1) / 2)),
            noise_seed=int(generator.integers(2**31)),
        )
        for number in range(first, first + NUM_SLICES // 2)
    ]
    lesions = {"left": dataclasses.replace(right, x=-right.x), "right": right}
    return {
        side: tuple(
            dataclasses.replace(slice_, lesions=_cut(lesion, (number - center) * SLICE_SPACING))
            for number, slice_ in enumerate(slices, start=first)
        )
        for side, lesion in lesions.items()
    }


def _cut(lesion: Lesion, distance: float) -> tuple[Lesion, ...]:
    """The cross-section of a ball in a slice at a distance from its centre."""
    squared_radius = lesion.radius**2 - distance**2
    return (dataclasses.replace(lesion, radius=float(np.sqrt(squared_radius))),) if squared_radius > 0 else ()


def write_volume(path: Path, volume: PhantomVolume, image_size: int) -> None:
    """
    Draw a volume and write it as NIfTI, in Hounsfield units.

    Raises:
        ImportError: If nibabel is missing; the message names the extra to install.
    """
    nibabel = import_optional("nibabel")
    grey = np.stack([draw_phantom(slice_, image_size) for slice_ in volume.slices])
    values = np.round(grey * (HU_RANGE / 255) + LOWEST_HU).astype(np.int16)
    pixel_size = FIELD_OF_VIEW / image_size
    # Columns run to the patient's left, rows to the back, slices to the head.
    affine = np.diag((-pixel_size, -pixel_size, SLICE_SPACING * FIELD_OF_VIEW / 2, 1.0))
    image = nibabel.Nifti1Image(values.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def ask_about_volumes(volumes: list[PhantomVolume], generator: np.random.Generator) -> list[list[Turn]]:
    """One conversation for each volume, its three questions in random order."""
    return [[turns[place] for place in generator.permutation(len(turns))] for turns in map(_write_turns, volumes)]


def _write_turns(volume: PhantomVolume) -> list[Turn]:
    lower, upper = volume.sides
    both = f"the lesion nearer the feet lies {lower} and the one nearer the head {upper}: {volume.relation}"
    told = [
        ("FEET", "On which side is the lesion nearer the feet?", lower, _place("feet", lower)),
        ("HEAD", "On which side is the lesion nearer the head?", upper, _place("head", upper)),
        ("BOTH", "Are the two lesions on the same side or on opposite sides?", volume.relation, both),
    ]
    return [
        Turn(question, answer, f"In this volume of the {volume.organ}, {fact}.", "CLOSED", question_type)
        for question_type, question, answer, fact in told
    ]


def _place(end: str, side: str) -> str:
    return f"the lesion nearer the {end} lies on the {side} side"


def describe_volumes(volumes: list[PhantomVolume]) -> list[Turn]:
    """One description of each volume, for a first stage of training (see `phantom_questions.describe_phantoms`)."""
    return [
        Turn("Describe the volume.", text, f"In this volume the findings are: {text}.", "OPEN", "OTHER")
        for text in map(_describe, volumes)
    ]


def _describe(volume: PhantomVolume) -> str:
    # The relation comes after the sides: a model that first learns only the sides from images may never learn to
    # compare them.
    lower, upper = volume.sides
    return f"{volume.organ}, near the feet {lower}, near the head {upper}, {volume.relation}"
