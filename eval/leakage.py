"""Finds test images and questions of a benchmark that also occur in its training split."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from logramed.eval.benchmarks.rows import describe_skipped
from logramed.eval.foreign.predictions import comparable_question
from logramed.eval.question_images import all_sources, list_sources
from logramed.eval.volumes import hash_image, image_status


def training_split(benchmark: ModuleType, split: str) -> str:
    """The training split for a tested split: "train", unless the benchmark names another."""
    return getattr(benchmark, "TRAINING_SPLITS", {}).get(split, "train")


def training_rows(
    benchmark: ModuleType,
    data: str | Path,
    subset: str | None = None,
    skipped: list[str] | None = None,
    split: str = "train",
) -> list[dict] | str:
    """
    The rows of a benchmark's training split or, if there are none, the reason as part of a sentence: problems with
    training files do not stop a run. Bad rows are left out and described in `skipped`.
    """
    name = benchmark.__name__.rpartition(".")[2]
    if "train" not in benchmark.SPLITS:
        return f"{name} has no training split"
    why_none = getattr(benchmark, "why_no_training_rows", None)
    reason = why_none(data, subset) if why_none else None
    if reason:
        return reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        bad_rows: list[str] = []
        try:
            rows = benchmark.load_questions(data, split, subset, bad_rows)
        except (ValueError, OSError) as error:
            rows, bad_rows = [], [str(error)]
    bad_rows = hide_folder(bad_rows, data)
    if not rows and bad_rows:
        return f"the training split could not be read: {bad_rows[0].rstrip('.')}"
    if skipped is not None:
        skipped += bad_rows
    return rows


def hide_folder(texts: Sequence[str], data: str | Path) -> list[str]:
    """Replace the path of the folder `data` by its name: figures are published, local paths are not."""
    folder = Path(data).expanduser().resolve()
    return [text.replace(str(folder), folder.name) for text in texts]


def find_leakage(
    questions: Sequence[dict], training: Sequence[dict], skipped: Sequence[str] = (), split: str = "train"
) -> dict:
    """
    Count the test images and the (images, question, answer) triplets that also occur in training rows.

    Images are the same if their files have the same bytes, whichever slices of a volume are shown: a renamed copy is
    found, a re-encoded one is not. Questions are normalized by `comparable_question`, as the test and training files
    may have different formats. Training images are only read if a test image has the same size.

    Returns `num_test_images` (files), `num_test_images_in_training`, `num_questions_on_them` (questions about
    any of them), `num_triplets_in_training` (test questions whose triplet, with all images in order, is in training),
    `triplet_question_ids` (their ids, in the order of `questions`), `compared_with` and, if there are any,
    `bad_training_rows`. Raises `ValueError` if there are no test questions or no training rows.
    """
    if not questions or not training:
        raise ValueError(
            f"Leakage needs test and training rows, got {len(questions)} test and {len(training)} training rows."
        )
    test_hashes, training_hashes = _hash_where_sizes_meet(questions, training)
    hashes = set(training_hashes.values())
    leaked_images = {image for image, digest in test_hashes.items() if digest in hashes}
    triplets = {_triplet(row, training_hashes) for row in training if training_hashes.keys() >= {*list_sources(row)}}
    leaked = [
        row["question_id"]
        for row in questions
        if leaked_images >= {*list_sources(row)} and _triplet(row, test_hashes) in triplets
    ]
    return {
        "num_test_images": len(all_sources(questions)),
        "num_test_images_in_training": len(leaked_images),
        "num_questions_on_them": sum(not leaked_images.isdisjoint(list_sources(row)) for row in questions),
        "num_triplets_in_training": len(leaked),
        "triplet_question_ids": leaked,
        "compared_with": f"{split} split, {len(training):,} rows"
        + (f", {describe_skipped(skipped)}" if skipped else ""),
        **({"bad_training_rows": list(skipped)} if skipped else {}),
    }


def _hash_where_sizes_meet(questions: Sequence[dict], training: Sequence[dict]) -> tuple[dict, dict]:
    """Hashes of the test and training images by path, only for file sizes that occur in both."""
    sizes = [{image: image_status(image)[0] for image in all_sources(rows)} for rows in (questions, training)]
    shared = set(sizes[0].values()) & set(sizes[1].values())
    digests = {image: hash_image(image) for image, size in (sizes[0] | sizes[1]).items() if size in shared}
    test, training = ({image: digests[image] for image in of_split if image in digests} for of_split in sizes)
    return test, training


def _triplet(row: dict, hashes: Mapping[str, bytes]) -> tuple[tuple[bytes, ...], str, str]:
    digests = tuple(hashes[image] for image in list_sources(row))
    return digests, comparable_question(row["question"]), " ".join(row["answer"].casefold().split())
