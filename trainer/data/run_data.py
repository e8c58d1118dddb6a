"""Loads the rows that a run's arguments name."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset

from logramed.trainer.arguments import DataArguments, LoGraMedTrainingArguments
from logramed.trainer.data import load_training_rows, open_stream
from logramed.trainer.data.reports import holds_reports
from logramed.trainer.data.subsets import select_listed


# Number of rows of a stream that a new tokenizer is trained on.
NUM_TOKENIZER_ROWS = 10_000


class Rows(NamedTuple):
    """Rows of a run: for training, evaluation, the first stage, and the texts of a new tokenizer."""

    train: Dataset | IterableDataset
    validation: Dataset | None
    first_stage: Dataset | tuple[()]
    texts: Iterable[dict]


def read_data(data: DataArguments, training: LoGraMedTrainingArguments, fingerprints: dict[str, str]) -> Rows:
    """All rows of a run; the fingerprint of each source is added to `fingerprints`."""
    first_stage: Dataset | tuple[()] = ()
    if data.first_stage_data is not None:
        plain = replace(training, alignment_weight=0.0)
        first_stage = load(data.first_stage_data, data, plain, fingerprints, "_first_stage")
    if data.streaming:
        train = open_stream(
            data.train_data,
            split=data.dataset_train_split,
            image_folder=data.image_folder,
            on_bad_row=data.on_bad_row,
            seed=training.seed,
            volumes=data.volumes,
            **needs_of_alignment(training),
        )
        validation = load_validation_rows(data, training, fingerprints)
        return Rows(train, validation, first_stage, chain(islice(train, NUM_TOKENIZER_ROWS), first_stage))
    train, validation = load_rows(data, training, fingerprints)
    return Rows(train, validation, first_stage, chain(train, first_stage))


def load_rows(
    data: DataArguments, training: LoGraMedTrainingArguments, fingerprints: dict[str, str]
) -> tuple[Dataset, Dataset | None]:
    """Training and validation rows."""
    rows = load(
        data.train_data,
        data,
        training,
        fingerprints,
        train_ids=data.train_ids,
        extended=data.extended_data,
        split=data.dataset_train_split,
    )
    if data.validation_share:
        divided = rows.train_test_split(data.validation_share, seed=training.seed)
        return divided["train"], divided["test"]
    return rows, load_validation_rows(data, training, fingerprints)


def load_validation_rows(
    data: DataArguments, training: LoGraMedTrainingArguments, fingerprints: dict[str, str]
) -> Dataset | None:
    """
    The rows of `validation_data` or, if evaluation is turned on, of `dataset_name`. A folder or Hub id that is also
    trained on gives its split `dataset_test_split`.
    """
    source, split = data.validation_data, "train"
    if source is None and training.eval_strategy != "no":
        source = data.dataset_name
    if source is None:
        return None
    if source == data.train_data and not Path(source).is_file():
        split = data.dataset_test_split
    return load(source, data, training, fingerprints, "_validation", split=split)


def needs_of_alignment(training: LoGraMedTrainingArguments) -> dict[str, Any]:
    """What alignment requires of each row, as arguments of `load_training_rows`."""
    if training.alignment_weight == 0:
        return {"require_extended": False}
    return {
        "require_extended": training.uses_extended_answers,
        "rows_without_image": training.rows_without_image,
        "require_questions": training.alignment_granularity != "sample",
    }


def load(
    source: str,
    data: DataArguments,
    training: LoGraMedTrainingArguments,
    fingerprints: dict[str, str],
    suffix: str = "",
    train_ids: str | None = None,
    split: str = "train",
    **options: Any,
) -> Dataset:
    """Rows of `source`; prints the number of skipped rows, and lists them in a file in the output folder."""
    if source == data.train_data or holds_reports(source):
        options["report_section"] = data.report_section
    rows = load_training_rows(
        source,
        split=split,
        image_folder=data.image_folder,
        on_bad_row=data.on_bad_row,
        volumes=data.volumes,
        **needs_of_alignment(training),
        **options,
    )
    fingerprints[source if split == "train" else f"{source} ({split})"] = rows.fingerprint
    if rows.skipped:
        path = Path(training.output_dir) / f"skipped_rows{suffix}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.write_skipped(path)
        print(f"Skipped {len(rows.skipped)} rows of {source}; see {path}.")
    return rows.dataset if train_ids is None else select_listed(rows, train_ids)
