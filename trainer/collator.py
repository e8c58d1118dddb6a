"""From training rows to the tensors of a batch."""

import bisect
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from logramed.trainer.alignment.config import GRANULARITIES
from logramed.trainer.data.answer_spans import Layout, clean_messages, find_layout, get_structure, locate_answers
from logramed.trainer.node_inputs import BatchTexts, NodeText, build_nodes


logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
SENTENCE_ENDS = ".!?"
# A mark that ends a sentence, with quotes or brackets that close there, before a blank.
SENTENCE_END_PATTERN = re.compile(rf"[{SENTENCE_ENDS}]+[\"')\]]*(?=\s)")
# Words before a full stop that does not end a sentence: these, and letters with full stops between them ("e.g").
ABBREVIATIONS = ("al", "approx", "cf", "dr", "fig", "figs", "mr", "mrs", "prof", "vs")
ABBREVIATION_PATTERN = re.compile(rf"\b(?:(?:[a-z]\.)+[a-z]|{'|'.join(ABBREVIATIONS)})$", re.IGNORECASE)
OUTSIDE_SPANS = -1
GENERATION_MARK = re.compile(r"\{%-?\s*generation\b")
CANONICAL_KEYS = {"id", "images", "messages", "extended_answers"}


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


def open_image(image: Any, row_id: str) -> Image.Image:
    """A decoded image of a path, of its encoded bytes, or of an image already open; errors name the row and the path."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, dict):
        image = io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image.get("path")
    if not isinstance(image, str | Path | io.BytesIO):
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


def canonical(row: dict[str, Any], position: str) -> dict[str, Any]:
    """`row` as `logramed.trainer.data` gives rows, whatever form it has."""
    messages = row.get("messages")
    is_canonical = row.keys() >= CANONICAL_KEYS and all(isinstance(message["content"], list) for message in messages)
    if is_canonical:
        return row
    from logramed.trainer.data.records import canonical_row

    return canonical_row(row, position)


class Encoding(NamedTuple):
    """
    One row as its processor made tokens of it.

    Attributes: the rendered `text`; the `input_ids` and attention `mask` of its tokens; their `offsets`, start and end in
    the text in which image tokens have replaced placeholders; and these `replacements`, as transformers gives them.
    """

    text: str
    input_ids: list[int]
    mask: list[int]
    offsets: list[tuple[int, int]]
    replacements: list[dict[str, Any]]

    def shift(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Spans of the rendered text as spans of the text with image tokens."""
        ends = [replaced["span"][1] for replaced in self.replacements]
        gained = [0, *(replaced["new_span"][1] - replaced["span"][1] for replaced in self.replacements)]
        return [tuple(place + gained[bisect.bisect_right(ends, place)] for place in span) for span in spans]

    def overlaps(self, spans: list[tuple[int, int]]) -> list[bool]:
        """For each token whether it overlaps one of the spans."""
        return [any(first < end and last > start for start, end in spans) for first, last in self.offsets]


@dataclass
class LoGraMedDataCollator:
    """
    Builds training batches for any processor of images and text in transformers 5.

    A batch is what the processor makes of the rows, every tensor of it, padded on the right, with `labels`, which
    cover what the model has to write and nothing else: each answer and the end of its turn. Where the chat template
    marks these (`{% generation %}`), its marks are taken; otherwise they are found by how the template lays out texts.

    Args:
        processor (`ProcessorMixin`):
            `LoGraMedProcessor` or one of transformers', with a fast tokenizer that has a padding token.
        max_length (`int`, *optional*):
            Longer sequences lose their end. One whose image tokens or whose first answer does not fit is refused.
        alignment (`bool`):
            Also give the graph nodes, as `nodes` (see `logramed.trainer.node_inputs.build_nodes`).
        extended (`bool`):
            Whether the extended answers are texts of these.
        granularity (`str`):
            What a node is: a `"sample"`, a `"turn"`, or a `"span"` (sentence) of an extended answer.
        answer_joiner (`str`):
            Stands between the answers of a sample in these texts, where the nodes are samples.
        chat_template (`str`, *optional*):
            Chat template, or its name, instead of the processor's own.
        pad_to_multiple_of (`int`, *optional*):
            Sequences are padded to a multiple of it.
        completion_only_loss (`bool`, *optional*):
            False puts the loss on the prompts too; image tokens and padding never have any.
        image_token_id (`int`, *optional*):
            The token that takes an image feature; the processor's if not given.
        text_hidden_size (`int`), packs_in_one_row (`bool`):
            Of the model, for the layout of the nodes' texts (see `build_nodes`).

    Calling it with rows as `logramed.trainer.data` gives them, or with any that it reads, returns the batch.

    Raises:
        ValueError: For a row that cannot be used, naming its id, or an unknown `granularity`.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    alignment: bool = True
    extended: bool = True
    granularity: str = "sample"
    answer_joiner: str = ". "
    chat_template: str | None = None
    pad_to_multiple_of: int | None = None
    completion_only_loss: bool | None = None
    image_token_id: int | None = None
    text_hidden_size: int = 1024
    packs_in_one_row: bool = False
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
        if self.image_token_id is None:
            self.image_token_id = self.processor.image_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [canonical(row, f"row {number} of a batch") for number, row in enumerate(rows)]
        conversations = [clean_messages(row["messages"]) for row in rows]
        batch, encodings = self._process(rows, conversations)
        labels = [
            self._label(row, messages, encoding)
            for row, messages, encoding in zip(rows, conversations, encodings, strict=True)
        ]
        batch["labels"] = torch.tensor(labels)
        self._truncate(batch)
        if self.alignment:
            image_sample = (batch["input_ids"] == self.image_token_id).nonzero()[:, 0]
            self._refuse_rows_without_images(rows, image_sample)
            batch["nodes"] = build_nodes(
                self._read_texts(rows, conversations),
                image_sample,
                self.processor.tokenizer.pad_token_id,
                self.granularity,
                self.text_hidden_size,
                self.packs_in_one_row,
            )
        return batch

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """A conversation as text, by the chat template."""
        return self.processor.apply_chat_template(
            messages,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _process(self, rows, conversations) -> tuple[dict[str, torch.Tensor], list[Encoding]]:
        """The processor's tensors, and for each row what `_label` goes by."""
        texts = [self.render(messages) for messages in conversations]
        for row, text in zip(rows, texts, strict=True):
            self._check_placeholders(row, text)
        images = [[open_image(image, row["id"]) for image in row["images"]] for row in rows]
        found = self.processor(
            text=list(texts),  # some replace placeholders in it
            images=images if any(images) else None,
            padding=True,
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
            add_special_tokens=self._adds_special_tokens(),
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
        )
        offsets, replacements = found.pop("offset_mapping"), found.pop("text_replacement_offsets", None)
        if any(images) and not replacements:
            raise ValueError(
                f"{type(self.processor).__name__} does not tell which characters its image tokens replace "
                "(`return_text_replacement_offsets`, transformers 5.15), so answers cannot be found in its tokens."
            )
        replacements = replacements or [[]] * len(rows)
        encodings = [
            Encoding(text, ids, mask, pairs, replaced)
            for text, ids, mask, pairs, replaced in zip(
                texts, found["input_ids"], found["attention_mask"], offsets, replacements, strict=True
            )
        ]
        return dict(found.convert_to_tensors(tensor_type="pt")), encodings

    def _check_placeholders(self, row, text):
        num_placeholders, num_images = text.count(self.processor.image_token), len(row["images"])
        # A template may write another placeholder than the token itself (Gemma 3): then there is none of these.
        if num_placeholders not in ({num_images} if self._template_writes_image_token() else {num_images, 0}):
            raise ValueError(
                f"Row {row['id']!r}: its text has {num_placeholders} image placeholder(s) "
                f"{self.processor.image_token}, but it has {num_images} image(s)."
            )

    def _template_writes_image_token(self) -> bool:
        content = [{"type": "image"}, {"type": "text", "text": "?"}]
        return self.processor.image_token in self.render([{"role": "user", "content": content}])

    def _adds_special_tokens(self) -> bool:
        """Whether special tokens come on top of the template's in generation, which training must agree with."""
        if self._add_special_tokens is None:
            messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            generated = self.processor.apply_chat_template(
                messages, chat_template=self.chat_template, tokenize=True, return_dict=False
            )
            input_ids = generated[0] if isinstance(generated[0], list) else list(generated)
            plain_ids = self.processor.tokenizer(self.render(messages), add_special_tokens=False)["input_ids"]
            self._add_special_tokens = input_ids != plain_ids
        return self._add_special_tokens

    def _label(self, row: dict[str, Any], messages: list[dict[str, Any]], encoding: Encoding) -> list[int]:
        """The labels of a padded row; refuses to cut into an image, or to leave no answer."""
        answers = encoding.shift(self._find_answers(row, messages, encoding.text))
        images = [replaced["new_span"] for replaced in encoding.replacements]
        is_image = encoding.overlaps(images)
        if self.completion_only_loss is False:
            is_answer = [not image and bool(kept) for image, kept in zip(is_image, encoding.mask, strict=True)]
        else:
            is_answer = encoding.overlaps(answers)
            last = sum(encoding.mask) - 1
            if encoding.offsets[last][0] == encoding.offsets[last][1] and (
                encoding.input_ids[last] == self.processor.tokenizer.eos_token_id
            ):
                # The tokenizer ended the sequence, hence the last answer, with a token that stands nowhere in the text.
                is_answer[last] = True
        labels = [
            token_id if answer else IGNORED_LABEL
            for token_id, answer in zip(encoding.input_ids, is_answer, strict=True)
        ]
        self._refuse_cuts(row, labels, is_image, sum(encoding.mask))
        return labels

    def _find_answers(self, row: dict[str, Any], messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """Start and end in `text` of what the model writes, one pair an answer."""
        marked = self._find_marked(messages)
        if marked is not None:
            return marked
        structure = get_structure(messages)
        try:
            if structure not in self._layouts:
                self._layouts[structure] = self._find_layout(messages)
            return locate_answers(text, messages, self._layouts[structure])
        except ValueError as error:
            raise ValueError(f"Row {row['id']!r}: {error}") from error

    def _find_marked(self, messages) -> list[tuple[int, int]] | None:
        """What the template marks as the model's to write, or None if it marks nothing."""
        templates = self.processor.chat_template
        template = self.chat_template or templates
        if isinstance(templates, dict):
            template = templates.get(self.chat_template or "default", self.chat_template)
        if not isinstance(template, str) or not GENERATION_MARK.search(template):
            return None
        _, indices = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.processor.tokenizer.special_tokens_map,
        )
        return [tuple(pair) for pair in indices[0]]

    def _find_layout(self, messages: list[dict[str, Any]]) -> Layout:
        layout = find_layout(messages, self.render)
        if any(num_after == 0 for *_, num_after in layout.answers) and not self._adds_special_tokens():
            logger.warning_once(
                "The chat template writes nothing after an answer, so the model does not learn to stop. Use a "
                "template that ends assistant turns with `eos_token`."
            )
        return layout

    def _refuse_cuts(self, row, labels: list[int], is_image: list[bool], num_tokens: int) -> None:
        if self.max_length is not None and num_tokens > self.max_length:
            needed = max((number for number, image in enumerate(is_image, 1) if image), default=0)
            if needed > self.max_length:
                raise ValueError(
                    f"Row {row['id']!r} needs {needed} tokens to keep its {len(row['images'])} image(s) whole, but "
                    f"`max_length` is {self.max_length}. Raise it to at least {needed + 1}."
                )
            logger.warning_once(
                f"Samples longer than `max_length` ({self.max_length}) lose their end, the first of them "
                f"{row['id']!r} ({num_tokens} tokens). Raise `max_length` to train on all answers."
            )
        if all(label == IGNORED_LABEL for label in labels[: self.max_length]):
            first = next((n for n, label in enumerate(labels, 1) if label != IGNORED_LABEL), None)
            reason = (
                "has no answer to learn"
                if first is None
                else f"has its first answer at token {first}, beyond `max_length` {self.max_length}"
            )
            raise ValueError(f"Row {row['id']!r} {reason}. Raise `max_length` or leave the row out.")

    def _truncate(self, batch: dict[str, torch.Tensor]) -> None:
        """Cut whatever has a value for each token."""
        shape = batch["input_ids"].shape
        for name, values in batch.items():
            if torch.is_tensor(values) and values.shape[:2] == shape:
                batch[name] = values[:, : self.max_length]

    def _refuse_rows_without_images(self, rows, image_sample: torch.Tensor) -> None:
        lacking = set(range(len(rows))) - set(image_sample.tolist())
        if lacking:
            row_id = rows[min(lacking)]["id"]
            raise ValueError(f"Alignment needs an image in every sample, but row {row_id!r} has none.")

    def _read_texts(self, rows, conversations) -> BatchTexts:
        """The texts of the batch's nodes."""
        extended = [read_extended_answers(row) for row in rows] if self.extended else []
        if self.granularity == "sample":
            answers = [[read_answer(m) for m in messages if m["role"] == "assistant"] for messages in conversations]
            return BatchTexts(
                [self._tokenize(row, texts) for row, texts in zip(rows, answers, strict=True)],
                [self._tokenize(row, texts) for row, texts in zip(rows, extended, strict=False)],
                [],
            )
        turns = [read_turns(row, messages) for row, messages in zip(rows, conversations, strict=True)]
        for row, row_turns, texts in zip(rows, turns, extended, strict=False):
            if len(texts) != len(row_turns):
                raise ValueError(
                    f"Row {row['id']!r} has {len(texts)} `extended_answers` for {len(row_turns)} answer(s), but nodes "
                    f"that are {self.granularity}s need one for each. Add them, or use nodes that are samples."
                )
        pairs = [(row, turn) for row, row_turns in zip(rows, turns, strict=True) for turn in row_turns]
        return BatchTexts(
            [self._tokenize(row, [answer]) for row, (_, answer) in pairs],
            [self._tokenize_spans(row, text) for row, texts in zip(rows, extended, strict=False) for text in texts],
            [self._tokenize(row, [question]) for row, (question, _) in pairs],
            [len(row_turns) for row_turns in turns],
        )

    def _tokenize(self, row: dict[str, Any], texts: list[str]) -> NodeText:
        """Several answers as one text; special tokens are read with it, but are no part of it."""
        encoding = self.processor.tokenizer(join_answers(texts, self.answer_joiner), return_special_tokens_mask=True)
        content = [-1 if special else 0 for special in encoding["special_tokens_mask"]]
        return self._check_content(row, texts, NodeText(encoding["input_ids"], content))

    def _tokenize_spans(self, row: dict[str, Any], text: str) -> NodeText:
        """One text, and the sentence of each of its tokens."""
        text = join_answers([text])
        encoding = self.processor.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        offsets = [
            (0, 0) if special else tuple(pair)
            for pair, special in zip(encoding["offset_mapping"], encoding["special_tokens_mask"], strict=True)
        ]
        numbers = number_spans(offsets[: self.max_length], split_sentences(text))
        return self._check_content(row, [text], NodeText(encoding["input_ids"], numbers))

    def _check_content(self, row, texts, node: NodeText) -> NodeText:
        ids, content = node.input_ids[: self.max_length], node.content[: self.max_length]
        if max(content, default=-1) < 0:
            raise ValueError(f"Row {row['id']!r}: the tokenizer makes no token of the answers {texts!r}.")
        return NodeText(ids, content)
