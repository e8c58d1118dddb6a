"""The data collator: turns training rows into the tensors of a batch."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

from logramed.eval.image_check import decode
from logramed.eval.volumes import without_position_texts
from logramed.trainer.alignment.config import AlignmentConfig
from logramed.trainer.alignment.node_inputs import (
    NodeImages,
    NodeTexts,
    build_node_inputs,
    images_of_turns,
    number_volumes,
    texts_to_embed,
)
from logramed.trainer.data.answer_spans import Layout, clean_messages, find_layout, get_structure, locate_answers


logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
SENTENCE_ENDS = ".!?"
# Punctuation that ends a sentence, with closing quotes or brackets, before whitespace.
SENTENCE_END_PATTERN = re.compile(rf"[{SENTENCE_ENDS}]+[\"')\]]*(?=\s)")
# Words after which a full stop does not end a sentence: these, and letters with full stops between them ("e.g").
ABBREVIATIONS = ("al", "approx", "cf", "dr", "fig", "figs", "mr", "mrs", "prof", "vs")
ABBREVIATION_PATTERN = re.compile(rf"\b(?:(?:[a-z]\.)+[a-z]|{'|'.join(ABBREVIATIONS)})$", re.IGNORECASE)


def join_answers(answers: list[str]) -> str:
    """
    Joins several answers into one text.

    Line breaks become spaces, and an answer that does not end its own sentence gets a full stop. (The research release
    deletes line breaks, which joins words, and doubles full stops.)

    Example:
        >>> join_answers(["Left.\\nUpper lobe.", "yes", "CT"])
        'Left. Upper lobe. yes. CT'
    """
    *others, last = (" ".join(answer.split()) for answer in answers)
    return "".join(f"{text} " if text.endswith(tuple(SENTENCE_ENDS)) else f"{text}. " for text in others) + last


def split_sentences(text: str) -> list[tuple[int, int]]:
    """
    Start and end of each sentence of `text`, in characters.

    A sentence ends at `.`, `!` or `?` before whitespace, and at the end of the text. A full stop after an abbreviation
    (`ABBREVIATIONS`, or letters such as "e.g.") does not end one, nor does a decimal point: no whitespace follows it.

    Example:
        >>> text = "Mild effusion, e.g. 1.5 cm. No mass"
        >>> [text[start:end] for start, end in split_sentences(text)]
        ['Mild effusion, e.g. 1.5 cm.', 'No mass']
    """
    ends = [match.end() for match in SENTENCE_END_PATTERN.finditer(text) if not _follows_abbreviation(text, match)]
    spans, start = [], 0
    for end in [*ends, len(text.rstrip())]:
        length = len(text[start:end].lstrip())
        if length:
            spans.append((end - length, end))
        start = end
    return spans


def _follows_abbreviation(text: str, match: re.Match) -> bool:
    word = ABBREVIATION_PATTERN.search(text[: match.start()])
    return match[0] == "." and word is not None


def open_image(image: Any, row_id: str) -> Image.Image:
    """
    Decodes an image, given as path, PIL image, or `{"bytes": ..., "path": ...}` of `datasets`; errors name the row and
    the path.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image["path"]
    if not isinstance(image, str | Path | dict):
        raise TypeError(f"Row {row_id!r}: an image must be a path or a PIL image, got {type(image).__name__}.")
    try:
        return decode(image)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        where = image.get("path") or "in the row" if isinstance(image, dict) else image
        raise ValueError(f"Row {row_id!r}: cannot read image {where}: {error}") from error


def read_answer(message: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")


def read_extended_answers(row: dict[str, Any]) -> list[str]:
    if not row.get("extended_answers"):
        raise ValueError(
            f"Row {row['id']!r} has no `extended_answers`, which these `alignment_texts` need. Make them with "
            "`logramed-extend`, or set `alignment_texts` without `extended`."
        )
    return row["extended_answers"]


def read_turns(row: dict[str, Any], messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Question and answer of each turn; a question is all text of the user since the last answer."""
    turns, question = [], []
    for message in messages:
        if message["role"] == "user":
            question.append(read_answer({"content": without_position_texts(message["content"])}))
        elif message["role"] == "assistant":
            turns.append((" ".join(question).strip(), read_answer(message)))
            question = []
    if not all(question for question, _ in turns):
        raise ValueError(
            f"Row {row['id']!r} has a turn without a question in words, which nodes of turns need. Add one, or set "
            "`alignment_granularity` to `sample`."
        )
    return turns


def is_canonical(row: dict[str, Any]) -> bool:
    """Whether a row has the form that our loaders return: all four keys, and messages of content parts."""
    if not all(name in row for name in ("id", "images", "messages", "extended_answers")):
        return False
    return all(isinstance(message["content"], list | tuple) for message in row["messages"] or [])


@dataclass
class LoGraMedDataCollator:
    """
    Builds training batches from rows, with the processor of any image-text-to-text model of transformers 5.

    Labels cover only what the model has to write: each answer and the end of its turn, in the form of the chat
    template.

    Args:
        processor (`ProcessorMixin`):
            Must have a fast tokenizer with a padding token.
        max_length (`int`, *optional*):
            Longer sequences are truncated at the end. Raises if the image tokens or the first answer do not fit.
        alignment (`bool`):
            Whether to add the inputs of the alignment graphs.
        config (`AlignmentConfig`, *optional*):
            Kind of nodes of these graphs, and their texts.
        text_encoder (`Callable`, *optional*):
            Computes embeddings `(num_texts, embedding_size)` of texts, if by `config` the model does not encode them.
        chat_template (`str`, *optional*):
            Chat template, or its name, instead of the processor's own.
        pad_to_multiple_of (`int`, *optional*):
            Sequences are padded to a multiple of this length.
        completion_only_loss (`bool`, *optional*):
            False for labels of all tokens except image tokens; by default, as with True, only the answers.
        text_hidden_size (`int`, *optional*):
            Hidden size of the language model, used to pack texts (see `lay_out`).
        packs_in_one_row (`bool`, *optional*):
            Whether its attention costs nothing between packed texts.
        nodes_optional (`bool`):
            Whether a batch gets no nodes, instead of an error, if a row has no image or no extended answers.

    Takes a list of rows, canonical (`id`, `images`, `messages`, `extended_answers`) or in a form that
    `logramed.trainer.data.records.canonical_row` reads, and returns a dictionary: all tensors from the processor,
    padded on the right, `labels` `(batch_size, sequence_length)` int64 and, with `alignment`, `nodes`, the dictionary
    of `build_node_inputs`.

    Raises:
        ValueError: For a row that cannot be used, with its id, or if `config` needs a text encoder and there is none.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    alignment: bool = True
    config: AlignmentConfig = field(default_factory=AlignmentConfig)
    text_encoder: Callable[[list[str]], torch.Tensor] | None = None
    chat_template: str | None = None
    pad_to_multiple_of: int | None = None
    completion_only_loss: bool | None = None
    text_hidden_size: int = 1024
    packs_in_one_row: bool = False
    nodes_optional: bool = False
    _layouts: dict[tuple, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)
    _add_special_tokens: bool | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        if not self.processor.tokenizer.is_fast:
            raise ValueError("`processor` needs a fast tokenizer: answers are found by the tokens' character offsets.")
        if self.processor.tokenizer.pad_token_id is None:
            raise ValueError("`processor.tokenizer` has no padding token; set `tokenizer.pad_token`.")
        if self.alignment and self.config.alignment_text_encoder != "self" and self.text_encoder is None:
            raise ValueError(
                f"`alignment_text_encoder` is {self.config.alignment_text_encoder!r}, but the collator has no "
                "`text_encoder`: give it a `TextEncoder`."
            )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [self._read_row(row, position) for position, row in enumerate(rows)]
        conversations = [clean_messages(row["messages"]) for row in rows]
        texts = [self.render(messages) for messages in conversations]
        batch = self._process(rows, texts)
        offsets, replacements = batch.pop("offset_mapping"), batch.pop("text_replacement_offsets", None)
        replacements = self._check_replacements(rows, replacements)
        spans = [self._find_answers(*found) for found in zip(rows, conversations, texts, strict=True)]
        spans = [[_shift(span, found) for span in row] for row, found in zip(spans, replacements, strict=True)]
        is_answer = [_overlapping(offsets[row], spans[row], batch["attention_mask"][row]) for row in range(len(rows))]
        batch["is_image"] = torch.isin(batch["input_ids"], torch.tensor(self.processor.image_token_ids))
        numbers = self._number_images(batch["is_image"], offsets, replacements)
        batch["labels"] = self._label(batch, offsets, is_answer)
        batch = self._fit(rows, batch)
        is_image = batch.pop("is_image")
        if self.alignment and not (self.nodes_optional and self._lacks_nodes(rows)):
            chosen = self._rows_with_nodes(rows)
            if chosen:
                batch["nodes"] = self._build_nodes(rows, conversations, is_image, is_answer, numbers, chosen)
        return batch

    def _rows_with_nodes(self, rows: list[dict[str, Any]]) -> list[int]:
        """Indices of the rows that become nodes of the alignment."""
        if self.config.rows_without_image == "language_only":
            return [place for place, row in enumerate(rows) if row["images"]]
        return list(range(len(rows)))

    def _lacks_nodes(self, rows: list[dict[str, Any]]) -> bool:
        return any(
            not row["images"] or (self.config.uses_extended_answers and row["extended_answers"] is None)
            for row in rows
        )

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """Renders a conversation as text with the chat template."""
        return self.processor.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _read_row(self, row: dict[str, Any], position: int) -> dict[str, Any]:
        if not is_canonical(row):
            from logramed.trainer.data.records import canonical_row

            row = canonical_row(row, f"row {position} of a batch")
        return {**row, "images": row["images"] or []}

    def _process(self, rows: list[dict[str, Any]], texts: list[str]) -> BatchFeature:
        """Runs the processor on the batch, without truncation."""
        image_token = self.processor.image_token
        for row, text in zip(rows, texts, strict=True):
            if text.count(image_token) != len(row["images"]):
                raise ValueError(
                    f"Row {row['id']!r}: its text has {text.count(image_token)} image placeholder(s) {image_token}, "
                    f"but it has {len(row['images'])} image(s)."
                )
        images = [[open_image(image, row["id"]) for image in row["images"]] for row in rows]
        return self.processor(
            text=texts,
            images=images if any(images) else None,
            add_special_tokens=self._adds_special_tokens(),
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
        )

    def _check_replacements(self, rows, replacements):
        """Where the placeholders of each text were replaced; `ValueError` unless all were."""
        replacements = replacements or [[] for _ in rows]
        for row, found in zip(rows, replacements, strict=True):
            if len(found) != len(row["images"]):
                raise ValueError(
                    f"Row {row['id']!r}: {type(self.processor).__name__} does not say where it put the tokens of "
                    "images, so answers cannot be found. It must return `text_replacement_offsets`, as processors "
                    "of transformers 5.23 do."
                )
        return replacements

    def _adds_special_tokens(self) -> bool:
        """Whether generation adds special tokens to the template's: training must do the same."""
        if self._add_special_tokens is None:
            messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            generated = self.processor.apply_chat_template(messages, chat_template=self.chat_template, tokenize=True)
            plain_ids = self.processor.tokenizer(self.render(messages), add_special_tokens=False)["input_ids"]
            self._add_special_tokens = torch.as_tensor(generated).flatten().tolist() != plain_ids
        return self._add_special_tokens

    def _find_answers(self, row: dict[str, Any], messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """Start and end in `text` of what the model writes, one pair per answer."""
        structure = get_structure(messages)
        try:
            if structure not in self._layouts:
                self._layouts[structure] = self._find_layout(messages)
            return locate_answers(text, messages, self._layouts[structure])
        except ValueError as error:
            raise ValueError(f"Row {row['id']!r}: {error}") from error

    def _find_layout(self, messages: list[dict[str, Any]]) -> Layout:
        layout = find_layout(messages, self.render)
        if any(num_after == 0 for *_, num_after in layout.answers) and not self._adds_special_tokens():
            logger.warning_once(
                "The chat template writes nothing after an answer, so the model does not learn to stop. Use a "
                "template that ends assistant turns with `eos_token`."
            )
        return layout

    def _label(self, batch: BatchFeature, offsets: torch.Tensor, is_answer: list[torch.Tensor]) -> torch.Tensor:
        """Labels for `input_ids`: the tokens of answers according to `is_answer`."""
        is_token = batch["attention_mask"].bool()
        starts, ends = offsets.unbind(-1)
        is_learned = torch.stack([answers.any(dim=0) for answers in is_answer])
        # A tokenizer may end the sequence, and so the last answer, with a token that is not in the text.
        last = (torch.arange(len(is_answer)), is_token.sum(dim=1) - 1)
        ended = (batch["input_ids"][last] == self.processor.tokenizer.eos_token_id) & (starts[last] == ends[last])
        is_learned[last] |= ended
        if self.completion_only_loss is False:
            is_learned = torch.ones_like(is_token)
        is_learned &= is_token & ~batch["is_image"]
        return batch["input_ids"].masked_fill(~is_learned, IGNORED_LABEL)

    def _fit(self, rows: list[dict[str, Any]], batch: BatchFeature) -> dict[str, torch.Tensor]:
        """Truncates sequences to `max_length` and pads to a multiple; `ValueError` if needed tokens would be cut."""
        columns = (batch[name] for name in ("attention_mask", "is_image", "labels"))
        for row, mask, is_image, labels in zip(rows, *columns, strict=True):
            self._check_cut(row, int(mask.sum()), is_image, labels != IGNORED_LABEL)
        shape, padding = batch["input_ids"].shape, {"input_ids": self.processor.tokenizer.pad_token_id}
        padding["labels"] = IGNORED_LABEL
        length = min(shape[1], self.max_length or shape[1])
        num_added = -length % (self.pad_to_multiple_of or 1)
        return {
            name: torch.nn.functional.pad(values[:, :length], (0, num_added), value=padding.get(name, 0))
            if torch.is_tensor(values) and values.shape == shape
            else values
            for name, values in batch.items()
        }

    def _check_cut(self, row: dict[str, Any], num_tokens: int, is_image: torch.Tensor, is_learned: torch.Tensor):
        """Raises `ValueError` if cutting to `max_length` would cut an image or leave no answer."""
        if self.max_length is not None and num_tokens > self.max_length:
            needed = max(is_image.nonzero().flatten().tolist(), default=-1) + 1
            if needed > self.max_length:
                raise ValueError(
                    f"Row {row['id']!r} needs {needed} tokens to keep its {len(row['images'])} image(s) whole, but "
                    f"`max_length` is {self.max_length}. Raise it to at least {needed + 1}."
                )
            logger.warning_once(
                f"Samples longer than `max_length` ({self.max_length}) are cut at the end, the first of them "
                f"{row['id']!r} ({num_tokens} tokens). Raise `max_length` to train on all answers."
            )
        if not is_learned[: self.max_length].any():
            learned = is_learned.nonzero().flatten().tolist()
            reason = (
                f"has its first answer at token {learned[0] + 1}, beyond `max_length` {self.max_length}"
                if learned
                else "has no answer to learn"
            )
            raise ValueError(f"Row {row['id']!r} {reason}. Raise `max_length` or leave the row out.")

    def _number_images(self, is_image, offsets, replacements) -> list[torch.Tensor]:
        """For each row, the number of each image token's image, from the placeholder that it replaces."""
        numbers = []
        for of_row, own, found in zip(is_image, offsets, replacements, strict=True):
            firsts = torch.tensor([replaced["new_span"][0] for replaced in found], dtype=own.dtype)
            numbers.append(torch.searchsorted(firsts, own[of_row, 0].contiguous(), right=True) - 1)
        return numbers

    def _build_nodes(self, rows, conversations, is_image, is_answer, numbers, chosen) -> dict[str, torch.Tensor]:
        """The nodes of the rows with indices `chosen`; samples are numbered among these."""
        rows, conversations, is_answer, numbers = (
            [values[place] for place in chosen] for values in (rows, conversations, is_answer, numbers)
        )
        length = is_image.shape[1]
        texts, places, of_turns = self._read_sample_texts(rows, conversations), None, []
        if self.config.alignment_granularity == "sample":
            volumes = [torch.tensor(number_volumes(messages), dtype=torch.int64) for messages in conversations]
            numbers = [of_image[own] for of_image, own in zip(volumes, numbers, strict=True)]
        else:
            for row, messages, answers in zip(rows, conversations, is_answer, strict=True):
                if len(answers) != len(read_answers(messages)) or not answers.any(dim=1).all():
                    raise ValueError(
                        f"Row {row['id']!r}: of its {len(read_answers(messages))} answers "
                        f"{int(answers.any(dim=1).sum())} were found in the text of the chat template, but nodes that "
                        f"are {self.config.alignment_granularity}s need all of them."
                    )
            kept = [_places_before(answers, length) for answers in is_answer]
            texts = self._read_turn_texts(rows, conversations, [len(own) for own in kept])
            for messages, own in zip(conversations, kept, strict=True):
                of_turns += images_of_turns(messages)[: len(own)]
            places = torch.cat([own + row * length for row, own in zip(chosen, kept, strict=True)])
        return build_node_inputs(
            texts,
            self.processor.tokenizer,
            is_image,
            NodeImages(torch.cat(numbers), of_turns),
            self.config.alignment_granularity,
            self.text_hidden_size,
            max_length=self.max_length,
            single_row=self.packs_in_one_row,
            answer_places=places,
            text_encoder=self.text_encoder,
            places=chosen,
        )

    def read_texts(self, row: dict[str, Any]) -> Iterator[str]:
        """The texts of a row's nodes that a text encoder has to embed."""
        conversations = [clean_messages(row["messages"])]
        has_image = any(part["type"] == "image" for message in conversations[0] for part in message["content"])
        if not has_image and self.config.rows_without_image == "language_only":
            return iter(())
        if self.config.alignment_granularity == "sample":
            texts = self._read_sample_texts([row], conversations)
        else:
            texts = self._read_turn_texts([row], conversations, [len(read_answers(conversations[0]))])
        return chain(*texts_to_embed(texts, self.config.alignment_granularity).values())

    def _read_sample_texts(self, rows: list[dict[str, Any]], conversations: list[list[dict[str, Any]]]) -> NodeTexts:
        """The texts of nodes that are samples: all answers of a sample joined."""
        texts = {}
        for kind in self.config.text_kinds:
            found = [
                read_extended_answers(row) if kind == "extended" else read_answers(messages)
                for row, messages in zip(rows, conversations, strict=True)
            ]
            texts[kind] = [join_answers(own) for own in found]
        return NodeTexts(texts, list(range(len(rows))), [row["id"] for row in rows])

    def _read_turn_texts(
        self, rows: list[dict[str, Any]], conversations: list[list[dict[str, Any]]], num_kept: list[int]
    ) -> NodeTexts:
        """The texts of the first `num_kept` turns of each sample, and the sentences of extended answers."""
        turns = [read_turns(row, messages) for row, messages in zip(rows, conversations, strict=True)]
        kept = [turn for own, number in zip(turns, num_kept, strict=True) for turn in own[:number]]
        texts, sentences = {}, None
        if self.config.needs_questions:
            texts["question"] = [join_answers([question]) for question, _ in kept]
        if "answer" in self.config.text_kinds:
            texts["answer"] = [
                join_answers([f"{question} {answer}" if self.config.uses_question_texts else answer])
                for question, answer in kept
            ]
        if self.config.uses_extended_answers:
            texts["extended"] = [
                join_answers([text])
                for row, own, number in zip(rows, turns, num_kept, strict=True)
                for text in self._read_turns_extended(row, len(own))[:number]
            ]
            sentences = [split_sentences(text) for text in texts["extended"]]
        samples = [sample for sample, number in enumerate(num_kept) for _ in range(number)]
        return NodeTexts(texts, samples, [row["id"] for row in rows], sentences)

    def _read_turns_extended(self, row: dict[str, Any], num_answers: int) -> list[str]:
        extended = read_extended_answers(row)
        if len(extended) != num_answers:
            raise ValueError(
                f"Row {row['id']!r} has {len(extended)} `extended_answers` for {num_answers} answer(s), but nodes "
                f"that are {self.config.alignment_granularity}s need one for each. Add them, or set "
                "`alignment_granularity` to `sample`."
            )
        return extended


def prepare_texts(collator: LoGraMedDataCollator, *datasets: Dataset | dict[str, Dataset] | None) -> None:
    """Let the collator's text encoder embed the texts of all `Dataset` rows in advance, so that no step waits."""
    if collator.text_encoder is None:
        return
    for rows in chain(*(rows.values() if isinstance(rows, dict) else [rows] for rows in datasets)):
        if isinstance(rows, Dataset) and {"id", "messages", "extended_answers"} <= set(rows.column_names):
            collator.text_encoder.prepare(
                text
                for row in rows.with_format(None).select_columns(["id", "messages", "extended_answers"])
                for text in collator.read_texts(row)
            )


def read_answers(messages: list[dict[str, Any]]) -> list[str]:
    return [read_answer(message) for message in messages if message["role"] == "assistant"]


def _overlapping(offsets: torch.Tensor, spans: list[tuple[int, int]], mask: torch.Tensor) -> torch.Tensor:
    """Which tokens of a text, by their `offsets`, overlap each of `spans`: `(num_spans, sequence_length)` bool."""
    starts, ends = offsets.unbind(-1)
    found = [(starts < end) & (ends > start) & mask.bool() for start, end in spans]
    return torch.stack(found) if found else mask.new_zeros(0, len(mask), dtype=torch.bool)


def _places_before(is_answer: torch.Tensor, length: int) -> torch.Tensor:
    """The place of the token before each answer that begins before `length`."""
    firsts = is_answer.int().argmax(dim=1)
    return firsts[firsts < length] - 1


def _shift(span: tuple[int, int], replacements: list[dict[str, Any]]) -> tuple[int, int]:
    """Maps `span` from the rendered text to the text with replaced placeholders."""
    ends = [replaced["span"][1] for replaced in replacements]
    gains = [0, *(replaced["new_span"][1] - replaced["span"][1] for replaced in replacements)]
    start, end = (place + gains[bisect_right(ends, place)] for place in span)
    return start, end
