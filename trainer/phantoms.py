"""
Generated data: simple medical-looking phantoms with questions about them, drawn with a seed.

    python trainer/phantoms.py --output phantoms
    python trainer/phantoms.py --volumes --output phantom_volumes

Every image shows one organ in the style of one modality, with up to three lesions and perhaps a tube. Sides are those
of the displayed image: "left" is the left half of the picture, not of a patient. Every closed question is asked about
pairs of images, one for each of its two answers, so that within a split its text does not reveal its answer. Volumes
and the questions about them come from `phantom_volumes`.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from logramed.eval.command_line import run_command
from logramed.eval.files import whole_folder
from logramed.trainer.data.phantom_images import Phantom, draw_phantom, sample_phantom
from logramed.trainer.data.phantom_questions import Turn, ask_questions, describe_phantoms
from logramed.trainer.data.phantom_volumes import (
    FAMILY_SIZE,
    PhantomVolume,
    ask_about_volumes,
    describe_volumes,
    sample_volumes,
    write_volume,
)


GENERATOR_VERSION = 1  # increased when the same arguments give other files
ARGUMENTS_FILE = "phantoms.json"
ORGAN_GROUPS = {"chest": "CHEST", "head": "HEAD", "abdomen": "ABD"}  # as VQA-RAD names them
MINIMUM_IMAGE_SIZE = 32  # below it, a small lesion is a single pixel
SPLITS = ("train", "validation", "test")


def generate_phantoms(
    output_folder: str | Path,
    num_train: int = 4000,
    num_validation: int = 100,
    num_test: int = 200,
    image_size: int = 64,
    seed: int = 0,
    volumes: bool = False,
) -> Path:
    """
    Draw phantoms with questions about them and write both in LLaVA-Med's formats. Deterministic.

    Writes `images/*.png` (grey) or, for volumes, `images/*.nii` (Hounsfield units), `train.json` and `validation.json`
    (conversations with short and extended answers), `train_descriptions.json` (one description per training image, for
    a first stage that learns to see), `validation_questions.json` and `test_questions.json` (one row per question,
    with `organ` and `question_type`), and `phantoms.json` with the arguments. No image is in two splits. A folder that
    already holds the phantoms for the same arguments is left unchanged.

    Args:
        output_folder (`str` or `Path`): New or empty folder to write, completely or not at all.
        num_train, num_validation, num_test (`int`): Images per split, at least 2; for volumes a multiple of 4.
        image_size (`int`): Width and height in pixels, at least 32.
        seed (`int`): Seed of everything, not negative.
        volumes (`bool`): Whether to draw volumes, which needs the extra `volumes`.

    Returns:
        `Path`: `output_folder`.

    Raises:
        ValueError: If an argument is out of range, or the folder holds other files.
        ImportError: If `volumes` is true and nibabel is missing.
    """
    arguments = {
        "num_train": num_train,
        "num_validation": num_validation,
        "num_test": num_test,
        "image_size": image_size,
        "seed": seed,
    }
    _check_arguments(arguments, volumes)
    folder = Path(output_folder)
    record = {"generator_version": GENERATOR_VERSION, "arguments": arguments | ({"volumes": True} if volumes else {})}
    if (folder / ARGUMENTS_FILE).is_file() and json.loads((folder / ARGUMENTS_FILE).read_text()) == record:
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"`output_folder` {folder} is not empty and holds no {ARGUMENTS_FILE} with the same arguments. Give a new "
            "or an empty folder."
        )
    write = _write_volumes if volumes else _write_images
    progress = tqdm(total=num_train + num_validation + num_test, desc="Drawing phantoms", unit="image")
    with whole_folder(folder, "`output_folder`") as unfinished, progress:
        images = unfinished / "images"
        images.mkdir()
        for split, stream in zip(SPLITS, np.random.SeedSequence(seed).spawn(len(SPLITS)), strict=True):
            names = [f"{split}_{index:05d}" for index in range(arguments[f"num_{split}"])]
            _write_split(unfinished, split, *write(images, names, image_size, np.random.default_rng(stream), progress))
        _write_json(unfinished / ARGUMENTS_FILE, record)
    return folder


def _write_images(
    folder: Path, names: list[str], image_size: int, generator: np.random.Generator, progress: tqdm
) -> tuple[list[str], list[Phantom], list[list[Turn]], list[Turn]]:
    """Write image files; returns their names, what they show, and conversations and descriptions of it."""
    phantoms = [sample_phantom(generator) for _ in names]
    files = [f"{name}.png" for name in names]
    for file, phantom in zip(files, phantoms, strict=True):
        Image.fromarray(draw_phantom(phantom, image_size)).save(folder / file)
        progress.update()
    conversations = ask_questions(phantoms, generator)
    return files, phantoms, conversations, describe_phantoms(phantoms, generator)


def _write_volumes(
    folder: Path, names: list[str], image_size: int, generator: np.random.Generator, progress: tqdm
) -> tuple[list[str], list[PhantomVolume], list[list[Turn]], list[Turn]]:
    """As `_write_images`."""
    volumes = sample_volumes(len(names), generator)
    files = [f"{name}.nii" for name in names]
    for file, volume in zip(files, volumes, strict=True):
        write_volume(folder / file, volume, image_size)
        progress.update()
    return files, volumes, ask_about_volumes(volumes, generator), describe_volumes(volumes)


def _check_arguments(arguments: dict[str, int], volumes: bool) -> None:
    smallest = {"image_size": MINIMUM_IMAGE_SIZE, "seed": 0}
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest.get(name, 2):
            raise ValueError(f"`{name}` must be an integer of at least {smallest.get(name, 2)}, got {value!r}.")
        if volumes and name.startswith("num_") and value % FAMILY_SIZE:
            raise ValueError(f"`{name}` must be a multiple of {FAMILY_SIZE} with `volumes`, got {value}.")


def _write_split(
    folder: Path,
    split: str,
    files: list[str],
    phantoms: Sequence[Phantom | PhantomVolume],
    conversations: list[list[Turn]],
    descriptions: list[Turn],
) -> None:
    if split != "test":
        rows = [_instruct_row(file, turns) for file, turns in zip(files, conversations, strict=True)]
        _write_json(folder / f"{split}.json", rows)
    if split == "train":
        rows = [_instruct_row(file, [turn]) for file, turn in zip(files, descriptions, strict=True)]
        _write_json(folder / "train_descriptions.json", rows)
    if split != "train":
        rows = [
            _question_row(file, phantom, turn)
            for file, phantom, turns in zip(files, phantoms, conversations, strict=True)
            for turn in turns
        ]
        _write_json(folder / f"{split}_questions.json", [{"id": number, **row} for number, row in enumerate(rows)])


def _instruct_row(file: str, turns: list[Turn]) -> dict:
    def messages(answers: list[str]) -> list[dict[str, str]]:
        questions = [turn.question for turn in turns]
        questions[0] = f"<image>\n{questions[0]}"
        return [
            {"from": speaker, "value": value}
            for question, answer in zip(questions, answers, strict=True)
            for speaker, value in (("human", question), ("gpt", answer))
        ]

    return {
        "id": Path(file).stem,
        "image": file,
        "conversations": messages([turn.answer for turn in turns]),
        "conversations_long": messages([turn.extended_answer for turn in turns]),
    }


def _question_row(file: str, phantom: Phantom | PhantomVolume, turn: Turn) -> dict:
    return {
        "image": file,
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
    parser = ArgumentParser(description="Draw medical-looking phantoms with questions about them.")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--num_train", type=int, default=4000, help="training images")
    parser.add_argument("--num_validation", type=int, default=100, help="validation images")
    parser.add_argument("--num_test", type=int, default=200, help="test images")
    parser.add_argument("--image_size", type=int, default=64, help="width and height in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything")
    parser.add_argument("--volumes", action="store_true", help="draw volumes of 8 slices (NIfTI) instead of images")
    options = vars(parser.parse_args(arguments))
    generate_phantoms(options.pop("output"), **options)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
