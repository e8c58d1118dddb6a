"""
The embedded data: simple medical-looking phantoms with questions about them, drawn from a seed.

    python trainer/phantoms.py --output phantoms

Every image shows one organ in the look of one modality, with up to three lesions and perhaps a tube. Sides are those
of the image as it is displayed: "left" is the left half of the picture, not of a patient. Every closed question is
asked in pairs, of one image for each of its two answers, so that within a split its text says nothing of its answer.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm


GENERATOR_VERSION = 1  # raised when the same arguments give other files
ARGUMENTS_FILE = "phantoms.json"
MINIMUM_IMAGE_SIZE = 32  # below it, a small lesion is a single pixel

MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")
ORGANS = ("chest", "head", "abdomen")
ORGAN_GROUPS = {"chest": "CHEST", "head": "HEAD", "abdomen": "ABD"}  # as VQA-RAD names them
NUMBER_WORDS = ("none", "one", "two", "three")
SHARE_OF_LESION_COUNTS = (0.25, 0.55, 0.1, 0.1)

# Lengths below are in half image widths: the image spans -1 to 1, x to the right and y downwards.
SMALL_RADIUS, LARGE_RADIUS = (0.11, 0.13), (0.24, 0.28)
LESION_CONTRAST = (0.42, 0.50)  # grey levels, of 1
SMALLEST_OFFSET = 0.16  # of a lesion's centre from both axes of the image, so that its side and half are plain
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
    """All that is drawn in one image; `shift`, `rotation` (radians), `scale` and `noise_seed` are nuisances."""

    modality: str
    organ: str
    lesions: tuple[Lesion, ...]
    has_tube: bool
    shift: tuple[float, float]
    rotation: float
    scale: float
    noise_seed: int


# Drawing


def sample_phantom(generator: np.random.Generator) -> Phantom:
    """A phantom with every attribute drawn independently of the others; no two lesions share a quadrant."""
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
    # Several lesions are all small: large ones of neighboring quadrants could touch and be counted as one.
    radii = LARGE_RADIUS if num_lesions == 1 and generator.random() < 0.5 else SMALL_RADIUS
    lesions = tuple(_sample_lesion(phantom, quadrant, radii, brightness_sign, generator) for quadrant in quadrants)
    return dataclasses.replace(phantom, lesions=lesions)


def _sample_lesion(
    phantom: Phantom,
    quadrant: np.ndarray,
    radii: tuple[float, float],
    brightness_sign: float,
    generator: np.random.Generator,
) -> Lesion:
    """A lesion in a quadrant of the organ, and of the image: one too close to an axis is drawn again."""
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
    """What a modality shows of every body: ribs and seams, a table, an uneven field, rings."""
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
    """Grain, or for ultrasound speckle within the sector that the probe at the top sees."""
    noise = generator.standard_normal(image.shape)
    if phantom.modality != "ultrasound":
        return image + 0.02 * noise
    probe_y = -1.35
    angle, depth = np.arctan2(x, y - probe_y), np.hypot(x, y - probe_y)
    sector = (np.abs(angle) < 0.72) & (depth > 0.42) & (depth < 2.25)
    smooth_noise = (noise + np.roll(noise, 1, axis=1)) / math.sqrt(2)
    return image * (1.0 + 0.16 * smooth_noise) * sector


# Questions


@dataclass(frozen=True)
class Attribute:
    """
    One thing to ask about a phantom, in closed and open forms.

    `closed` maps each question to a function of the phantom giving one of its two answers; `fact` is the clause that
    the extended answer is built on.
    """

    question_type: str
    applies: Callable[[Phantom], bool]
    closed: dict[str, Callable[[Phantom], str]]
    open_questions: tuple[str, ...]
    open_answer: Callable[[Phantom], str]
    fact: Callable[[Phantom], str]
    is_about_the_lesion: bool = False


@dataclass(frozen=True)
class Turn:
    """One question about one phantom, with its short and its extended answer."""

    question: str
    answer: str
    extended_answer: str
    answer_type: str
    question_type: str


def _always(phantom: Phantom) -> bool:
    return True


def _has_one_lesion(phantom: Phantom) -> bool:
    return len(phantom.lesions) == 1


def _yes_if(condition: Callable[[Phantom], bool]) -> Callable[[Phantom], str]:
    return lambda phantom: "yes" if condition(phantom) else "no"


def _with_article(modality: str) -> str:
    return f"an {modality}" if modality in ("MRI", "X-ray", "ultrasound") else f"a {modality}"


def _is_question(values: Iterable[str], field: str, templates: tuple[str, ...]) -> dict[str, Callable[[Phantom], str]]:
    """Closed questions of the form "is it this one?", for every value of a field of the phantom."""
    return {
        template.format(value=value, an_image=f"{_with_article(value)} image"): _yes_if(
            lambda phantom, value=value: getattr(phantom, field) == value
        )
        for value in values
        for template in templates
    }


def _lesion_attribute(
    question_type: str,
    field: str,
    closed: dict[str, str | None],
    open_questions: tuple[str, ...],
    fact: Callable[[Lesion], str],
) -> Attribute:
    """An attribute of a single lesion; `closed` maps a question to the value it names, or `None` for both."""

    def value(phantom: Phantom) -> str:
        return getattr(phantom.lesions[0], field)

    return Attribute(
        question_type=question_type,
        applies=_has_one_lesion,
        closed={
            question: value if asked is None else _yes_if(lambda phantom, asked=asked: value(phantom) == asked)
            for question, asked in closed.items()
        },
        open_questions=open_questions,
        open_answer=value,
        fact=lambda phantom: fact(phantom.lesions[0]),
        is_about_the_lesion=True,
    )


def _count_fact(phantom: Phantom) -> str:
    num_lesions = len(phantom.lesions)
    if num_lesions == 0:
        return "there is no lesion"
    brightness = phantom.lesions[0].brightness
    if num_lesions == 1:
        return f"there is one {phantom.lesions[0].size} {brightness} lesion"
    return f"there are {NUMBER_WORDS[num_lesions]} {brightness} lesions"


def _describe(phantom: Phantom) -> str:
    if not phantom.lesions:
        finding = "no lesion"
    elif len(phantom.lesions) == 1:
        lesion = phantom.lesions[0]
        finding = f"one {lesion.size} {lesion.brightness} lesion {lesion.half} {lesion.side}"
    else:
        finding = f"{NUMBER_WORDS[len(phantom.lesions)]} {phantom.lesions[0].brightness} lesions"
    return f"{phantom.modality} of the {phantom.organ}, {finding}, {'a' if phantom.has_tube else 'no'} tube"


ATTRIBUTES = {
    "modality": Attribute(
        "MODALITY",
        _always,
        _is_question(MODALITIES, "modality", ("Is this {an_image}?",)),
        ("Which modality is this?", "How was this image taken?"),
        lambda phantom: phantom.modality,
        lambda phantom: f"the modality is {phantom.modality}",
    ),
    "organ": Attribute(
        "ORGAN",
        _always,
        _is_question(ORGANS, "organ", ("Does this image show the {value}?",)),
        ("Which part of the body is shown?", "What body part is this?"),
        lambda phantom: phantom.organ,
        lambda phantom: f"the part of the body shown is the {phantom.organ}",
    ),
    "lesions": Attribute(
        "PRES",
        _always,
        {
            "Is there a lesion?": _yes_if(lambda phantom: len(phantom.lesions) > 0),
            "Is any lesion visible?": _yes_if(lambda phantom: len(phantom.lesions) > 0),
            "Does the image show a lesion?": _yes_if(lambda phantom: len(phantom.lesions) > 0),
            "Is there more than one lesion?": _yes_if(lambda phantom: len(phantom.lesions) > 1),
        },
        ("How many lesions are there?", "What is the number of lesions?"),
        lambda phantom: NUMBER_WORDS[len(phantom.lesions)],
        _count_fact,
    ),
    "tube": Attribute(
        "PRES",
        _always,
        {
            "Is there a tube?": _yes_if(lambda phantom: phantom.has_tube),
            "Is a tube visible?": _yes_if(lambda phantom: phantom.has_tube),
        },
        ("Which device is visible?", "What device does the image show?"),
        lambda phantom: "a tube" if phantom.has_tube else "no device",
        lambda phantom: "a tube is visible" if phantom.has_tube else "no tube is visible",
    ),
    "side": _lesion_attribute(
        "POS",
        "side",
        {
            "Is the lesion on the left side of the image?": "left",
            "Is the lesion on the right side of the image?": "right",
            "Is the lesion on the left or on the right side?": None,
        },
        ("On which side of the image is the lesion?", "Which side is the lesion on?"),
        lambda lesion: f"the {lesion.size} {lesion.brightness} lesion lies on the {lesion.side} side",
    ),
    "half": _lesion_attribute(
        "POS",
        "half",
        {
            "Is the lesion in the upper half of the image?": "upper",
            "Is the lesion in the lower half of the image?": "lower",
            "Is the lesion in the upper or in the lower half?": None,
        },
        ("In which half of the image is the lesion?", "Which half is the lesion in?"),
        lambda lesion: f"the {lesion.size} {lesion.brightness} lesion lies in the {lesion.half} half",
    ),
    "size": _lesion_attribute(
        "SIZE",
        "size",
        {
            "Is the lesion large?": "large",
            "Is the lesion small?": "small",
            "Is the lesion small or large?": None,
        },
        ("How big is the lesion?", "What is the size of the lesion?"),
        lambda lesion: f"the lesion at the {lesion.half} {lesion.side} is {lesion.size}",
    ),
    "brightness": _lesion_attribute(
        "ATTRIB",
        "brightness",
        {
            "Is the lesion bright?": "bright",
            "Is the lesion dark?": "dark",
            "Is the lesion bright or dark?": None,
        },
        ("How does the lesion look?", "What is the brightness of the lesion?"),
        lambda lesion: f"the lesion at the {lesion.half} {lesion.side} looks {lesion.brightness}",
    ),
    "description": Attribute(
        "OTHER",
        _always,
        {},
        ("Describe the image.", "What does the image show?"),
        _describe,
        lambda phantom: f"the findings are: {_describe(phantom)}",
    ),
}
DESCRIBED_SHARE = 0.25  # of the conversations begin with a description
CLOSED_SHARE = 0.8  # of the questions that have a closed form, as far as both answers can be paired
EXTENDED_TEMPLATES = (
    "in this {modality} image of the {organ}, {fact}.",
    "{fact}, as the {modality} image of the {organ} shows.",
    "looking at the {organ} in this {modality} image, {fact}.",
)


def ask_questions(phantoms: list[Phantom], generator: np.random.Generator) -> list[list[Turn]]:
    """
    Write one conversation for each phantom, four to seven turns long.

    Args:
        phantoms (`list[Phantom]`): The phantoms of one split.
        generator (`np.random.Generator`): Draws questions, their forms and their order.

    Returns:
        `list[list[Turn]]`: the conversations, in the order of `phantoms`. Every closed question has each of its two
        answers equally often.
    """
    asked = [_choose_attributes(phantom, generator) for phantom in phantoms]
    questions: dict[tuple[int, str], str] = {}
    for name, attribute in ATTRIBUTES.items():
        indices = [index for index, names in enumerate(asked) if name in names]
        closed = _pair_closed_questions(attribute, phantoms, indices, generator)
        for index in indices:
            open_question = attribute.open_questions[generator.integers(len(attribute.open_questions))]
            questions[index, name] = closed.get(index, open_question)
    return [
        [_write_turn(ATTRIBUTES[name], questions[index, name], phantom, generator) for name in asked[index]]
        for index, phantom in enumerate(phantoms)
    ]


def describe_phantoms(phantoms: list[Phantom], generator: np.random.Generator) -> list[Turn]:
    """
    Ask for one description of each phantom.

    A model from scratch learns to see from descriptions in a minute, and only slowly from yes and no: they are meant
    for a first stage of training.
    """
    attribute = ATTRIBUTES["description"]
    return [
        _write_turn(attribute, generator.choice(attribute.open_questions).item(), phantom, generator)
        for phantom in phantoms
    ]


def _choose_attributes(phantom: Phantom, generator: np.random.Generator) -> list[str]:
    """
    The attributes to ask about, in their order.

    Only a description gives away what is asked later, so few turns follow it: their answers need no look at the image.
    """
    names = [name for name, attribute in ATTRIBUTES.items() if attribute.applies(phantom) and name != "description"]
    if _has_one_lesion(phantom):
        # "The lesion" in a question tells how many there are, so the count is often left out, and else asked first.
        dropped = {"lesions"} if generator.random() < 0.4 else set()
        dropped.update(generator.permutation(("modality", "organ", "tube"))[: generator.integers(1, 3)].tolist())
        names = [name for name in names if name not in dropped]
    names = generator.permutation(names).tolist()
    about_the_lesion = [place for place, name in enumerate(names) if ATTRIBUTES[name].is_about_the_lesion]
    if "lesions" in names and about_the_lesion and about_the_lesion[0] < names.index("lesions"):
        first, count = about_the_lesion[0], names.index("lesions")
        names[first], names[count] = names[count], names[first]
    return ["description", *names[:3]] if generator.random() < DESCRIBED_SHARE else names


def _pair_closed_questions(
    attribute: Attribute, phantoms: list[Phantom], indices: list[int], generator: np.random.Generator
) -> dict[int, str]:
    """Give closed questions to about `CLOSED_SHARE` of the phantoms, always to two that answer it differently."""
    waiting = generator.permutation(indices)[: round(CLOSED_SHARE * len(indices))].tolist()
    texts = generator.permutation(list(attribute.closed)).tolist()
    chosen: dict[int, str] = {}
    while texts:
        for text in list(texts):
            first_with_answer: dict[str, int] = {}
            for index in waiting:
                first_with_answer.setdefault(attribute.closed[text](phantoms[index]), index)
            if len(first_with_answer) < 2:
                texts.remove(text)
                continue
            for index in first_with_answer.values():
                chosen[index] = text
                waiting.remove(index)
    return chosen


def _write_turn(attribute: Attribute, question: str, phantom: Phantom, generator: np.random.Generator) -> Turn:
    is_closed = question in attribute.closed
    answer = attribute.closed[question](phantom) if is_closed else attribute.open_answer(phantom)
    template = EXTENDED_TEMPLATES[generator.integers(len(EXTENDED_TEMPLATES))]
    sentence = template.format(modality=phantom.modality, organ=phantom.organ, fact=attribute.fact(phantom))
    extended = f"{answer}, {sentence}" if answer in ("yes", "no") else sentence
    return Turn(
        question=question,
        answer=answer,
        extended_answer=extended[0].upper() + extended[1:],
        answer_type="CLOSED" if is_closed else "OPEN",
        question_type=attribute.question_type,
    )


# Files


def generate_phantoms(
    output_folder: str | Path,
    num_train: int = 4000,
    num_validation: int = 100,
    num_test: int = 200,
    image_size: int = 64,
    seed: int = 0,
) -> Path:
    """
    Draw phantoms, ask about them and write both in the formats of LLaVA-Med. Deterministic.

    Writes `images/*.png` (grey), `train.json` and `validation.json` (conversations with short and extended answers),
    `train_descriptions.json` (one description a training image, for a first stage that learns to see),
    `validation_questions.json` and `test_questions.json` (one row a question, with `organ` and `question_type`), and
    `phantoms.json` with the arguments. No image is in two splits. A folder that already holds the phantoms of the same
    arguments is left as it is; other phantoms in it are replaced.

    Args:
        output_folder (`str` or `Path`): Folder to write; new, empty, or written by this function before.
        num_train, num_validation, num_test (`int`): Images of each split, at least 2.
        image_size (`int`): Width and height in pixels, at least 32.
        seed (`int`): Not negative. Draws everything.

    Returns:
        `Path`: `output_folder`.

    Raises:
        ValueError: If an argument is out of range, or the folder holds other files.
    """
    arguments = {
        "num_train": num_train,
        "num_validation": num_validation,
        "num_test": num_test,
        "image_size": image_size,
        "seed": seed,
    }
    _check_arguments(arguments)
    folder = Path(output_folder)
    record = {"generator_version": GENERATOR_VERSION, "arguments": arguments}
    if not _prepare_folder(folder, record):
        return folder
    # Written first and completed last: a folder left by an interrupted run is known as ours and drawn anew.
    _write_json(folder / ARGUMENTS_FILE, {**record, "finished": False})
    splits = ("train", "validation", "test")
    with tqdm(total=num_train + num_validation + num_test, desc="Drawing phantoms", unit="image") as progress:
        for split, stream in zip(splits, np.random.SeedSequence(seed).spawn(len(splits)), strict=True):
            generator = np.random.default_rng(stream)
            phantoms = [sample_phantom(generator) for _ in range(arguments[f"num_{split}"])]
            names = [f"{split}_{index:05d}" for index in range(len(phantoms))]
            for name, phantom in zip(names, phantoms, strict=True):
                Image.fromarray(draw_phantom(phantom, image_size)).save(folder / "images" / f"{name}.png")
                progress.update()
            conversations = ask_questions(phantoms, generator)
            _write_split(folder, split, names, phantoms, conversations, describe_phantoms(phantoms, generator))
    _write_json(folder / ARGUMENTS_FILE, {**record, "finished": True})
    return folder


def _check_arguments(arguments: dict[str, int]) -> None:
    smallest = {"image_size": MINIMUM_IMAGE_SIZE, "seed": 0}
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest.get(name, 2):
            raise ValueError(f"`{name}` must be an integer of at least {smallest.get(name, 2)}, got {value!r}.")


def _prepare_folder(folder: Path, record: dict) -> bool:
    """Whether phantoms have to be drawn; if so, the folder is there and rid of older phantoms."""
    arguments_file = folder / ARGUMENTS_FILE
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_folder` must be a folder, and {folder} is a file.")
    if folder.exists() and any(folder.iterdir()):
        if not arguments_file.is_file():
            raise ValueError(
                f"`output_folder` {folder} is not empty and holds no {ARGUMENTS_FILE}, so it is not a folder of "
                "phantoms. Give a new or an empty folder."
            )
        if json.loads(arguments_file.read_text(encoding="utf-8")) == {**record, "finished": True}:
            return False
        for split in ("train", "validation", "test"):
            for old_image in (folder / "images").glob(f"{split}_*.png"):
                old_image.unlink()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    return True


def _write_split(
    folder: Path,
    split: str,
    names: list[str],
    phantoms: list[Phantom],
    conversations: list[list[Turn]],
    descriptions: list[Turn],
) -> None:
    if split != "test":
        rows = [_instruct_row(name, turns) for name, turns in zip(names, conversations, strict=True)]
        _write_json(folder / f"{split}.json", rows)
    if split == "train":
        rows = [_instruct_row(name, [turn]) for name, turn in zip(names, descriptions, strict=True)]
        _write_json(folder / "train_descriptions.json", rows)
    if split != "train":
        rows = [
            _question_row(name, phantom, turn)
            for name, phantom, turns in zip(names, phantoms, conversations, strict=True)
            for turn in turns
        ]
        _write_json(folder / f"{split}_questions.json", [{"id": number, **row} for number, row in enumerate(rows)])


def _instruct_row(name: str, turns: list[Turn]) -> dict:
    def messages(answers: list[str]) -> list[dict[str, str]]:
        questions = [turn.question for turn in turns]
        questions[0] = f"<image>\n{questions[0]}"
        return [
            {"from": speaker, "value": value}
            for question, answer in zip(questions, answers, strict=True)
            for speaker, value in (("human", question), ("gpt", answer))
        ]

    return {
        "id": name,
        "image": f"{name}.png",
        "conversations": messages([turn.answer for turn in turns]),
        "conversations_long": messages([turn.extended_answer for turn in turns]),
    }


def _question_row(name: str, phantom: Phantom, turn: Turn) -> dict:
    return {
        "image": f"{name}.png",
        "answer_type": turn.answer_type,
        "conversations": [
            {"from": "human", "value": f"{turn.question}\n<image>"},
            {"from": "gpt", "value": turn.answer},
        ],
        "organ": ORGAN_GROUPS[phantom.organ],
        "question_type": turn.question_type,
    }


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw medical-looking phantoms with questions about them.")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--num_train", type=int, default=4000, help="training images")
    parser.add_argument("--num_validation", type=int, default=100, help="validation images")
    parser.add_argument("--num_test", type=int, default=200, help="test images")
    parser.add_argument("--image_size", type=int, default=64, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0, help="draws everything")
    options = vars(parser.parse_args(arguments))
    generate_phantoms(options.pop("output"), **options)


if __name__ == "__main__":
    main()
