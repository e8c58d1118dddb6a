"""The study's training files in LLaVA-Med's format with extended answers, each determined by its seed."""

import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from logramed.eval.files import hash_file, write_whole
from logramed.eval.question_images import IMAGE_PLACEHOLDER
from logramed.trainer.data import load_training_rows
from logramed.trainer.data.subsets import draw_subsets
from logramed.trainer.data.turns import read_text
from logramed.trainer.phantoms import generate_phantoms
from logramed.trainer.study.arms import SHARES, Run, arm_of


IMAGE_FOLDER = "images"
# Tells the two answers to a question apart, so that training on the long one does not unlearn the short one.
LONG_FORM = "Answer in a sentence."
NUM_PHANTOMS = {"num_train": 300, "num_validation": 100, "num_test": 100}


def prepare_data(folder: Path, slake: str, vqa_rad: str) -> None:
    """
    Write `slake.json`, `vqa_rad.json`, `phantoms.json` and `pretraining.json` to `folder`: the training rows of the
    first two (VQA-RAD's by image), generated ones, and those for pre-training, one row per image; and all their images
    to `images`. A finished folder is left unchanged.
    """
    if (folder / "pretraining.json").is_file():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    phantoms = generate_phantoms(folder / "generated_phantoms", **NUM_PHANTOMS)
    sources = {
        "slake": load_training_rows(slake, on_bad_row="skip"),
        "vqa_rad": load_training_rows(vqa_rad, split="by_image_train", on_bad_row="skip"),
        "phantoms": load_training_rows(phantoms / "train.json"),
    }
    rows = {name: source_rows(name, read.dataset.with_format(None), folder) for name, read in sources.items()}
    rows["pretraining"] = rows["vqa_rad"] + rows["phantoms"]
    for name, found in rows.items():
        write_rows(folder / f"{name}.json", found)


def source_rows(name: str, rows: Iterable[dict], folder: Path) -> list[dict]:
    """Training rows in LLaVA-Med's format; copies their images to `folder`, so that it is self-contained."""
    found = []
    for row in rows:
        source = Path(row["images"][0])
        image = f"{name}/{row['id']}{source.suffix}"
        copy = folder / IMAGE_FOLDER / image
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        texts = [read_text(message) for message in row["messages"] if message["role"] != "system"]
        turns = list(zip(texts[::2], texts[1::2], row["extended_answers"], strict=True))
        found.append(make_row(f"{name}/{row['id']}", image, turns))
    return found


def make_row(row_id: str, image: str, turns: Sequence[tuple[str, str, str]]) -> dict:
    """A row with one image and its turns: question, answer and extended answer."""
    conversations = []
    for question, answer, _ in turns:
        start = f"{IMAGE_PLACEHOLDER}\n" if not conversations else ""
        conversations += [{"from": "human", "value": start + question}, {"from": "gpt", "value": answer}]
    extended = [extended for _, _, extended in turns]
    return {"id": row_id, "image": image, "conversations": conversations, "extended_answers": extended}


def turns_of(row: dict) -> list[tuple[str, str, str]]:
    """The turns that `make_row` made `row` from."""
    values = [entry["value"] for entry in row["conversations"]]
    values[0] = values[0].removeprefix(f"{IMAGE_PLACEHOLDER}\n")
    return list(zip(values[::2], values[1::2], row["extended_answers"], strict=True))


def read_rows(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def write_rows(path: Path, rows: list[dict]) -> Path:
    return write_whole(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def write_training_file(path: Path, source: Path, run: Run) -> str:
    """
    Write the training file of `run`: its share of the images in `source`, drawn by its seed, changed for its arm.

    The shares of a seed are nested (see `draw_subsets`). Returns the file's SHA-256.
    """
    subsets = draw_subsets(source, [share / 100 for share in SHARES], run.seed)
    ids = subsets[SHARES.index(run.share)].ids
    rows = [row for row in read_rows(source) if row["id"] in ids]
    change = {"as_is": lambda rows, seed: rows, "permuted": permute_partners, "extended_targets": add_extended_targets}
    rows = change[arm_of(run.arm).data](rows, run.seed)
    return hash_file(write_rows(path, rows)).hex()


def permute_partners(rows: list[dict], seed: int) -> list[dict]:
    """
    Replace the extended answers in `rows` by the questions and answers of other turns: the texts that `answer_states`
    is aligned with, permuted once among closed questions (answered by yes or no) and among open ones. No turn gets a
    text equal to its own.
    """
    turns = [turn for row in rows for turn in turns_of(row)]
    texts = [f"{question} {answer}" for question, answer, _ in turns]
    closed = [answer.strip(" .").lower() in ("yes", "no") for _, answer, _ in turns]
    partners = list(texts)
    for kind in (True, False):
        places = [place for place, is_closed in enumerate(closed) if is_closed == kind]
        dealt = derange([texts[place] for place in places], seed)
        for place, text in zip(places, dealt, strict=True):
            partners[place] = text
    remaining = iter(partners)
    return [{**row, "extended_answers": [next(remaining) for _ in row["extended_answers"]]} for row in rows]


def derange(texts: Sequence[str], seed: int) -> list[str]:
    """
    Permute the texts, by `seed`, so that no place gets a text equal to its own. Raises `ValueError` if more than half
    of them are equal, since no such permutation exists.
    """
    if texts and 2 * max(map(texts.count, set(texts))) > len(texts):
        raise ValueError(f"More than half of {len(texts)} texts are equal: some would keep an equal text.")
    generator, dealt = random.Random(seed), list(texts)
    generator.shuffle(dealt)
    places = list(range(len(dealt)))
    for place in places:
        if dealt[place] == texts[place]:
            able = [other for other in places if dealt[other] != texts[place] and dealt[place] != texts[other]]
            other = generator.choice(able)
            dealt[place], dealt[other] = dealt[other], dealt[place]
    return dealt


def add_extended_targets(rows: list[dict], seed: int) -> list[dict]:
    """Repeat each question in `rows`, asking for a sentence, with the extended answer as its answer."""
    return [
        make_row(
            row["id"],
            row["image"],
            [
                turn
                for question, answer, extended in turns_of(row)
                for turn in ((question, answer, extended), (f"{question} {LONG_FORM}", extended, extended))
            ],
        )
        for row in rows
    ]
