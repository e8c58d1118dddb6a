"""Batches of samples of about equal length, so that little of them is padding."""

import itertools
from collections.abc import Iterator

import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from logramed.trainer.collator import LoGraMedDataCollator
from logramed.trainer.data.answer_spans import clean_messages
from logramed.trainer.data.records import RecordReader, locate
from logramed.trainer.data.rows import RowLocation
from logramed.trainer.data.sources import leave_encoded


TOKENIZED_AT_ONCE = 1000  # texts


class SeededLengthSampler(LengthGroupedSampler):
    """
    transformers' sampler of samples of about equal length, whose order depends on the seed and the epoch alone, so
    that a resumed run has the batches of the uninterrupted one.

    Args:
        batch_size (`int`): Samples that are to be of about equal length.
        lengths (`list[int]`): Of all samples.
        seed (`int`): Of the order.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


def count_tokens(rows: Dataset, collator: LoGraMedDataCollator) -> list[int]:
    """Tokens of each training row's conversation, those of its images among them, cut at the collator's maximum."""
    if not hasattr(collator.processor, "num_image_tokens"):
        raise ValueError(
            f"`train_sampling_strategy='group_by_length'` needs to know the tokens of an image, which "
            f"{type(collator.processor).__name__} does not say: leave it out."
        )
    located = (
        (locate(RowLocation("training data", f"row {number}"), record), record)
        for number, record in enumerate(leave_encoded(rows.with_format(None)))
    )
    reader = RecordReader(None, require_extended=False)
    lengths = []
    while batch := [reader.read(*one).row for one in itertools.islice(located, TOKENIZED_AT_ONCE)]:
        texts = [collator.render(clean_messages(row["messages"])) for row in batch]
        ids = collator.processor.tokenizer(texts)["input_ids"]
        for row, tokens in zip(batch, ids, strict=True):
            num_tokens = len(tokens) + len(row["images"]) * (collator.processor.num_image_tokens - 1)
            lengths.append(min(num_tokens, collator.max_length or num_tokens))
    return lengths
