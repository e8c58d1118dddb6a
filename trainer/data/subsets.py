"""
Draw shares of training data, as seeded lists of ids to train on. Each share is contained in every larger one.

    python trainer/data/subsets.py DATA.json --share 0.1 0.4 --seed 42 --output subsets
    python trainer/data/subsets.py SLAKE_FOLDER --on_bad_row skip --share 0.1 0.4 --output subsets

In VQA-RAD's and SLAKE's own folders a row is an image with its questions, so a share is a share of the images.
Also `logramed-subsets`. Training takes such a list as `--train_ids FILE`.
"""

import hashlib
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset

from logramed.eval.command_line import run_command
from logramed.trainer.data.records import index_by_id
from logramed.trainer.data.rows import BadRows, OnBadRow, TrainingRows, read_records
from logramed.trainer.data.sources import load_training_rows


NUM_NAMED = 5  # rows named in an error


@dataclass(frozen=True)
class Subset:
    """
    A share of training data.

    Attributes:
        source (`str`): Name of the file it was drawn from.
        num_rows (`int`): Number of rows in that data.
        share (`float`): Requested share; the list has `share * num_rows` ids, rounded half up.
        seed (`int`): Seed; the draw depends only on it and the ids.
        ids (`list[str]`): Drawn ids, in the order of the draw.
    """

    source: str
    num_rows: int
    share: float
    seed: int
    ids: list[str]

    def write(self, path: Path) -> None:
        """Write to `path` as JSON; `FileExistsError` if a file with other content is there."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise FileExistsError(
                f"{path} holds another list. Move it away, or choose another `--output` or `--name`."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "Subset":
        """The list at `path`; `ValueError` if it is not a list of ids written by this module."""
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"`train_ids` {path} is not a list written by data/subsets.py: {error}.") from error


def draw_subsets(
    path: str | Path,
    shares: Sequence[float],
    seed: int,
    *,
    split: str = "train",
    on_bad_row: OnBadRow = "raise",
) -> list[Subset]:
    """
    Draw a share of the rows of `path` for each of `shares`.

    Sorts all ids by the SHA-256 of seed and id; a share is the beginning of this order. So a smaller share is part of
    any larger one, and neither the order of the rows in the file nor the machine matters.

    Args:
        path (`str` or `Path`): LLaVA-Med JSON (`.json`, `.jsonl`), or a folder that `load_training_rows` reads.
        shares (`Sequence[float]`): Each above 0 and up to 1.
        seed (`int`): Seed of the draw.
        split (`str`), on_bad_row (`"raise"` or `"skip"`): For a folder, as in the training that follows.

    Returns:
        `list[Subset]`: In the order of `shares`.

    Raises:
        ValueError: If a share is out of range, or too small to hold a row.
        RowError: If a row has no id.
    """
    path = Path(path)
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1; got {share}.")
    if path.is_dir():
        options = {"split": split, "on_bad_row": on_bad_row, "require_extended": False, "check_images": False}
        row_ids = load_training_rows(path, **options).dataset["id"]
    else:
        row_ids = index_by_id(read_records(path, BadRows("raise")), BadRows("raise"))
    counts = [int(share * len(row_ids) + 0.5) for share in shares]
    if min(counts) == 0:
        raise ValueError(f"`share` {min(shares)} of {len(row_ids)} rows is less than one row. Ask for a larger share.")
    order = sorted(row_ids, key=lambda row_id: hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest())
    return [
        Subset(path.name, len(order), share, seed, order[:count]) for share, count in zip(shares, counts, strict=True)
    ]


def select_listed(rows: TrainingRows, path: str | Path) -> Dataset:
    """
    The rows of `rows` whose ids are in the list at `path`, in the order of `rows`. A row that was listed but skipped
    as bad (`on_bad_row="skip"`) is left out.

    Raises:
        FileNotFoundError: If `path` does not exist.
        ValueError: If it names ids that `rows` lacks.
    """
    subset = Subset.read(path)
    ids, skipped = rows.dataset["id"], {error.row_id for error in rows.skipped}
    missing = sorted(set(subset.ids) - set(ids) - skipped)
    if missing:
        more = f", and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
        raise ValueError(
            f"`train_ids` {path} names {len(missing)} of {len(subset.ids)} ids that the training data lacks "
            f"({', '.join(map(repr, missing[:NUM_NAMED]))}{more}): it was drawn from {subset.source} "
            f"({subset.num_rows} rows). Train on that file, or draw a list from this data with data/subsets.py."
        )
    listed = set(subset.ids)
    return rows.dataset.select([number for number, row_id in enumerate(ids) if row_id in listed])


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="logramed-subsets", description="Draw shares of training data, each contained in every larger one."
    )
    parser.add_argument("data", type=Path, help="LLaVA-Med JSON or JSON lines, or a folder of training data")
    parser.add_argument("--share", type=float, nargs="+", required=True, help="shares to draw, such as 0.1 0.4")
    parser.add_argument("--seed", type=int, default=42, help="seed of the draw (default 42)")
    parser.add_argument("--split", default="train", help="split of a folder, such as by_image_train (default train)")
    parser.add_argument(
        "--on_bad_row", choices=("raise", "skip"), default="raise", help="for a folder, as in training (default raise)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write the lists to")
    parser.add_argument("--name", help="files are named NAME_10percent.json and so on (default: the data's name)")
    arguments = parser.parse_args(argv)
    for subset in draw_subsets(
        arguments.data,
        arguments.share,
        arguments.seed,
        split=arguments.split,
        on_bad_row=arguments.on_bad_row,
    ):
        path = arguments.output / f"{arguments.name or arguments.data.stem}_{100 * subset.share:g}percent.json"
        subset.write(path)
        print(f"{path}: {len(subset.ids)} of {subset.num_rows} rows.")
    return 0


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
