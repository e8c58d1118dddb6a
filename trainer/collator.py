"""From training rows to the tensors of a batch."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils import logging

from logramed.node_features_logramed import GRANULARITIES
from logramed.trainer.data.answer_spans import Layout, clean_messages, find_layout, get_structure, locate_answers


logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
SENTENCE_ENDS = ".!?"
# A mark that ends a sentence, with quotes or brackets that close there, before a blank.
SENTENCE_END_PATTERN = re.compile(rf"[{SENTENCE_ENDS}]+[\"')\]]*(?=\s)")
# Words before a full stop that does not end a sentence: these, and letters with full stops between them ("e.g").
ABBREVIATIONS = ("al", "approx", "cf", "dr", "fig", "figs", "mr", "mrs", "prof", "vs")
ABBREVIATION_PATTERN = re.compile(rf"\b(?:(?:[a-z]\.)+[a-z]|{'|'.join(ABBREVIATIONS)})$", re.IGNORECASE)
OUTSIDE_SPANS = -1


def join_answers(answers: list[str], joiner: str = ". ") -> str:
    """
    One text of several answers.

    Line breaks become blanks, and a joiner's full stop is left out after an answer that ends its own sentence. (The
    research release deletes line breaks, which glues words together, and doubles full stops.)

    Example:
        >>> join_answers(["Left.\\nUpper lobe.", "yes", "CT"])
        'Left. Upper lobe. yes. CT'
    """
    texts = [" ".join(answer.split()) for answer in answers]
    joined = texts[0]
    for text in texts[1:]:
        ends_sentence = joined.endswith(tuple(SENTENCE_ENDS))
        joined += (joiner.removeprefix(".") if ends_sentence else joiner) + text
    return joined


def split_sentences(text: str) -> list[tuple[int, int]]:
    """
    Start and end of each sentence of `text`, in characters.

    A sentence ends at `.`, `!` or `?` before a blank, and at the end of the text. A full stop after an abbreviation
    (`ABBREVIATIONS`, or letters such as "e.g.") does not end one, nor does that of a decimal number, which no blank
    follows.

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


def number_spans(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """
    The number of the span of each token, -1 for tokens without characters in any.

    Args:
        offsets (`list[tuple[int, int]]`): Start and end of each token, in characters; equal for special tokens.
        spans (`list[tuple[int, int]]`): In their order. Those without a token are not counted.

    Example:
        >>> number_spans([(0, 0), (0, 3), (3, 4), (5, 9)], [(0, 4), (5, 9)])
        [-1, 0, 0, 1]
    """
    found = [
        next((n for n, (first, last) in enumerate(spans) if start < last and end > first), OUTSIDE_SPANS)
        if end > start
        else OUTSIDE_SPANS
        for start, end in offsets
    ]
    numbers = {span: number for number, span in enumerate(sorted(set(found) - {OUTSIDE_SPANS}))}
    return [numbers.get(span, OUTSIDE_SPANS) for span in found]


def pad_right(sequences: list[list[int]], padding_value: int) -> torch.Tensor:
    """`(batch_size, longest)` int64 of `sequences`, filled up on the right."""
    tensors = [torch.tensor(sequence, dtype=torch.int64) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding_value)


def open_image(image: Any, row_id: str) -> Image.Image:
    """A decoded image of a path or of an image that `datasets` has opened; errors name the row and the path."""
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, str | Path):
        raise TypeError(f"Row {row_id!r}: an image must be a path or a PIL image, got {type(image).__name__}.")
    try:
        with Image.open(image) as opened:
            opened.load()
            return opened
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ValueError(f"Row {row_id!r}: cannot read image {image}: {error}") from error


def read_answer(message: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")


def read_extended_answers(row: dict[str, Any]) -> list[str]:
    if not row.get("extended_answers"):
        raise ValueError(
            f"Row {row['id']!r} has no `extended_answers`, which alignment needs. Add them, or train "
            "without alignment."
        )
    return row["extended_answers"]


def read_turns(row: dict[str, Any], messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Question and answer of each turn; a question is the texts that the user wrote since the last answer."""
    turns, question = [], []
    for message in messages:
        if message["role"] == "user":
            question.append(read_answer(message))
        elif message["role"] == "assistant":
            turns.append((" ".join(question).strip(), read_answer(message)))
            question = []
    if not all(question for question, _ in turns):
        raise ValueError(
            f"Row {row['id']!r} has a turn without a question in words, by which the image regions of a turn are "
            "found. Add one, or use nodes that are samples."
        )
    return turns


@dataclass
class LoGraMedDataCollator:
    """
    Builds training batches of canonical rows (`id`, `images`, `messages`, `extended_answers`).

    Sequences are padded on the right. Labels cover what the model has to write and nothing else: each answer and the
    end of its turn, as the chat template lays them out.

    Args:
        processor (`ProcessorMixin`):
            `LoGraMedProcessor` or transformers' `LlavaProcessor`, with a fast tokenizer that has a padding token.
        max_length (`int`, *optional*):
            Longer sequences lose their end. One whose image tokens or whose first answer does not fit is refused.
        alignment (`bool`):
            Also give the texts of the alignment graphs.
        extended (`bool`):
            Whether the extended answers are one of these texts.
        granularity (`str`):
            What a node of these graphs is: a `"sample"`, a `"turn"`, or a `"span"` (sentence) of an extended answer.
        answer_joiner (`str`):
            Stands between the answers of a sample in these texts, where the nodes are samples.
        chat_template (`str`, *optional*):
            Chat template, or its name, instead of the processor's own.

    Calling it returns a dictionary of `input_ids`, `attention_mask`, `labels` `(batch_size, sequence_length)`,
    `num_images` `(batch_size,)` int64 and, if there are images, `pixel_values` `(num_images, num_channels, height,
    width)` in the order of the rows. With `alignment` also `answer_input_ids`, `answer_attention_mask`,
    with `extended` `extended_input_ids` and `extended_attention_mask`, all of a sample's answers in one text. Where
    nodes are turns or spans, each turn's is a text of its own instead, in the order of the rows, and there are also
    `num_turns` `(batch_size,)` int64, `question_input_ids`, `question_attention_mask` and, with `extended`,
    `extended_span_ids`, of the shape of `extended_input_ids`: the sentence of each token, -1 outside.

    Raises:
        ValueError: For a row that cannot be used, naming its id, or a `granularity` that there is not.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    alignment: bool = True
    extended: bool = True
    granularity: str = "sample"
    answer_joiner: str = ". "
    chat_template: str | None = None
    _layouts: dict[tuple, Layout] = field(default_factory=dict, init=False, repr=False, compare=False)
    _add_special_tokens: bool | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        if not self.processor.tokenizer.is_fast:
            raise ValueError("`processor` needs a fast tokenizer: answers are found by the tokens' character offsets.")
        if self.processor.tokenizer.pad_token_id is None:
            raise ValueError("`processor.tokenizer` has no padding token; set `tokenizer.pad_token`.")
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"`granularity` must be one of {', '.join(GRANULARITIES)}; got {self.granularity!r}.")
        if self.granularity == "span" and not self.extended:
            raise ValueError(
                "`granularity='span'` needs `extended=True`: the spans are those of the extended answers."
            )
        tokens = [self.processor.image_token]
        tokens += [getattr(self.processor, name, None) for name in ("image_start_token", "image_end_token")]
        ids = self.processor.tokenizer.convert_tokens_to_ids([token for token in tokens if token is not None])
        self._image_token_ids = frozenset(ids)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        conversations = [clean_messages(row["messages"]) for row in rows]
        texts = [self.render(messages) for messages in conversations]
        batch = self._process(rows, texts)
        labels = []
        for row, messages, text, input_ids in zip(rows, conversations, texts, batch["input_ids"], strict=True):
            spans = self._find_answers(row, messages, text)
            labels.append(self._truncate(row, input_ids, self._label(row, text, input_ids, spans)))
        batch["input_ids"] = [ids[: self.max_length] for ids in batch["input_ids"]]
        tensors = {**self._pad("", batch["input_ids"]), "labels": pad_right(labels, IGNORED_LABEL)}
        tensors["num_images"] = torch.tensor([len(row["images"]) for row in rows], dtype=torch.int64)
        if "pixel_values" in batch:
            tensors["pixel_values"] = torch.stack([torch.as_tensor(image) for image in batch["pixel_values"]])
        if self.alignment:
            build = self._build_alignment_texts if self.granularity == "sample" else self._build_turn_texts
            tensors |= build(rows, conversations)
        return tensors

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """A conversation as text, by the chat template."""
        return self.processor.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _process(self, rows: list[dict[str, Any]], texts: list[str]) -> dict[str, list]:
        """The processor's `input_ids` and `pixel_values`, unpadded and uncut."""
        for row, text in zip(rows, texts, strict=True):
            num_placeholders = text.count(self.processor.image_token)
            if num_placeholders != len(row["images"]):
                raise ValueError(
                    f"Row {row['id']!r}: its text has {num_placeholders} image placeholder(s) "
                    f"{self.processor.image_token}, but it has {len(row['images'])} image(s)."
                )
        images = [open_image(image, row["id"]) for row in rows for image in row["images"]]
        return self.processor(text=texts, images=images or None, add_special_tokens=self._adds_special_tokens())

    def _adds_special_tokens(self) -> bool:
        """Whether special tokens come on top of the template's in generation, which training must agree with."""
        if self._add_special_tokens is None:
            messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            generated = self.processor.apply_chat_template(messages, chat_template=self.chat_template, tokenize=True)
            input_ids = generated[0] if isinstance(generated[0], list) else list(generated)
            plain_ids = self.processor.tokenizer(self.render(messages), add_special_tokens=False)["input_ids"]
            self._add_special_tokens = input_ids != plain_ids
        return self._add_special_tokens

    def _find_answers(self, row: dict[str, Any], messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """Start and end in `text` of what the model writes, one pair an answer."""
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

    def _label(self, row: dict[str, Any], text: str, input_ids: list[int], spans: list[tuple[int, int]]) -> list[int]:
        """Labels of `input_ids`: the tokens that overlap one of `spans` in `text`, whose images are one token each."""
        encoding = self.processor.tokenizer(
            text, add_special_tokens=self._adds_special_tokens(), return_offsets_mapping=True
        )
        plain_ids = encoding["input_ids"]
        is_answer = [
            any(token_start < end and token_end > start for start, end in spans)
            for token_start, token_end in encoding["offset_mapping"]
        ]
        if not is_answer[-1] and plain_ids[-1] == self.processor.tokenizer.eos_token_id:
            # The tokenizer ended the sequence, hence the last answer, with a token that stands nowhere in the text.
            is_answer[-1] = True
        text_ids = [token_id for token_id in plain_ids if token_id not in self._image_token_ids]
        answer_flags = (
            flag for token_id, flag in zip(plain_ids, is_answer, strict=True) if token_id not in self._image_token_ids
        )
        if text_ids != [token_id for token_id in input_ids if token_id not in self._image_token_ids]:
            raise ValueError(
                f"Row {row['id']!r}: the processor made other text tokens with images than without, so answers cannot "
                f"be found. {self.processor.image_token} must be a special token of the tokenizer."
            )
        return [
            token_id if token_id not in self._image_token_ids and next(answer_flags) else IGNORED_LABEL
            for token_id in input_ids
        ]

    def _truncate(self, row: dict[str, Any], input_ids: list[int], labels: list[int]) -> list[int]:
        """`labels` cut to `max_length`; refuses to cut into an image or to leave no answer."""
        if self.max_length is not None and len(input_ids) > self.max_length:
            needed = max(
                (n for n, token_id in enumerate(input_ids, 1) if token_id in self._image_token_ids), default=0
            )
            if needed > self.max_length:
                raise ValueError(
                    f"Row {row['id']!r} needs {needed} tokens to keep its {len(row['images'])} image(s) whole, but "
                    f"`max_length` is {self.max_length}. Raise it to at least {needed + 1}."
                )
            logger.warning_once(
                f"Samples longer than `max_length` ({self.max_length}) lose their end, the first of them "
                f"{row['id']!r} ({len(input_ids)} tokens). Raise `max_length` to train on all answers."
            )
        kept = labels[: self.max_length]
        if all(label == IGNORED_LABEL for label in kept):
            first = next((n for n, label in enumerate(labels, 1) if label != IGNORED_LABEL), None)
            reason = (
                "has no answer to learn"
                if first is None
                else f"has its first answer at token {first}, beyond `max_length` {self.max_length}"
            )
            raise ValueError(f"Row {row['id']!r} {reason}. Raise `max_length` or leave the row out.")
        return kept

    def _build_alignment_texts(
        self, rows: list[dict[str, Any]], conversations: list[list[dict[str, Any]]]
    ) -> dict[str, torch.Tensor]:
        answers = [
            [read_answer(message) for message in messages if message["role"] == "assistant"]
            for messages in conversations
        ]
        tensors = self._pad("answer_", self._tokenize_answers(rows, answers))
        if self.extended:
            extended = [read_extended_answers(row) for row in rows]
            tensors |= self._pad("extended_", self._tokenize_answers(rows, extended))
        return tensors

    def _build_turn_texts(
        self, rows: list[dict[str, Any]], conversations: list[list[dict[str, Any]]]
    ) -> dict[str, torch.Tensor]:
        """The texts of all turns, one row a turn."""
        turns = [read_turns(row, messages) for row, messages in zip(rows, conversations, strict=True)]
        tensors = {"num_turns": torch.tensor([len(row_turns) for row_turns in turns], dtype=torch.int64)}
        for name, place in (("question", 0), ("answer", 1)):
            texts = [(row, [turn[place]]) for row, row_turns in zip(rows, turns, strict=True) for turn in row_turns]
            tensors |= self._pad(f"{name}_", [self._tokenize_joined(row, text) for row, text in texts])
        if self.extended:
            tensors |= self._build_spans(rows, [len(row_turns) for row_turns in turns])
        return tensors

    def _build_spans(self, rows: list[dict[str, Any]], num_turns: list[int]) -> dict[str, torch.Tensor]:
        """The extended answers of all turns, one row a turn, and the sentences they consist of."""
        sequences, span_ids = [], []
        for row, num_answers in zip(rows, num_turns, strict=True):
            extended = read_extended_answers(row)
            if len(extended) != num_answers:
                raise ValueError(
                    f"Row {row['id']!r} has {len(extended)} `extended_answers` for {num_answers} answer(s), but nodes "
                    f"that are {self.granularity}s need one for each. Add them, or use nodes that are samples."
                )
            for text in extended:
                input_ids, numbers = self._tokenize_sentences(text)
                if max(numbers, default=OUTSIDE_SPANS) == OUTSIDE_SPANS:
                    raise ValueError(f"Row {row['id']!r}: the tokenizer makes no token of the answer {text!r}.")
                sequences.append(input_ids)
                span_ids.append(numbers)
        return {**self._pad("extended_", sequences), "extended_span_ids": pad_right(span_ids, OUTSIDE_SPANS)}

    def _tokenize_sentences(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of one text, and the sentence of each."""
        text = join_answers([text])
        encoding = self.processor.tokenizer(text, return_offsets_mapping=True)
        numbers = number_spans(encoding["offset_mapping"][: self.max_length], split_sentences(text))
        return encoding["input_ids"][: self.max_length], numbers

    def _tokenize_answers(self, rows: list[dict[str, Any]], texts: list[list[str]]) -> list[list[int]]:
        return [self._tokenize_joined(row, row_texts) for row, row_texts in zip(rows, texts, strict=True)]

    def _tokenize_joined(self, row: dict[str, Any], texts: list[str]) -> list[int]:
        input_ids = self.processor.tokenizer(join_answers(texts, self.answer_joiner))["input_ids"]
        if not input_ids:
            raise ValueError(f"Row {row['id']!r}: the tokenizer makes no token of the answers {texts!r}.")
        return input_ids[: self.max_length]

    def _pad(self, prefix: str, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        return {
            f"{prefix}input_ids": pad_right(sequences, self.processor.tokenizer.pad_token_id),
            f"{prefix}attention_mask": pad_right([[1] * len(sequence) for sequence in sequences], 0),
        }
