"""Ask a model questions about images, in batches."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from logramed.eval.greedy import EndOfAnswer, GreedyRows, StopEachRow, StopStrings, own_stop_strings, stop_at
from logramed.eval.prompts import (
    build_prompt,
    encode_prompts,
    evaluation_mode,
    get_tokenizer,
    load_question_images,
    padding_on_the_left,
)
from logramed.eval.question_images import list_images
from logramed.eval.shared_prefix import PrefixReader, can_share_prefixes


def answer_questions(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    max_new_tokens: int,
    blank_images: bool = False,
    stop_strings: Sequence[str] | None = None,
    progress: bool = True,
) -> Iterator[tuple[dict, str]]:
    """
    Answer each question about its images by greedy decoding.

    A batch holds prompts of like length, padded on the left, and the questions about the same images one after the
    other. LLaVA models, ours included, read each image and the beginning that prompts share once, and the next
    question takes the place of one whose answer has ended (see `SharedPrefixAnswerer`); other models go through
    `generate`. Either way the answers equal those of asking one by one with `generate`, up to the rounding of the
    model's dtype. Between batches the model is in the state (training or evaluation, module by module) it was given
    in, and so is the tokenizer's padding side.

    Args:
        model: Any image-text-to-text model of transformers, on the device to run on. Runs without gradients.
        processor: Its processor, with a chat template.
        questions: Question rows (see `eval/benchmarks`): `question` and `image` or `images` are read.
        batch_size, max_new_tokens (`int`): Questions in a batch, tokens of an answer at most.
        blank_images (`bool`): Show an evenly grey image of the same size instead of each image.
        stop_strings: An answer ends before the first of these, for models trained to write one instead of an end
            token ("###" for those of LLaVA-Med v1.0). By default the `stop_string` of the processor, if it has one.
        progress (`bool`): Show a progress bar.

    Yields:
        `tuple[dict, str]`: a question row as it was given, and the answer without blanks around it.

    Raises:
        ValueError: If `batch_size` or `max_new_tokens` is below 1, the processor has no chat template, or a question
            has another number of placeholders than of images.
        FileNotFoundError: If an image is missing.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(
            f"`batch_size` and `max_new_tokens` must be at least 1, got {batch_size} and {max_new_tokens}."
        )
    stop = stop_at(processor, own_stop_strings(processor) if stop_strings is None else stop_strings)
    if can_share_prefixes(model):
        answerer = SharedPrefixAnswerer(model, processor, questions, batch_size, max_new_tokens, stop, blank_images)
    else:
        answerer = GenerateAnswerer(model, processor, questions, batch_size, max_new_tokens, stop, blank_images)
    with tqdm(total=len(questions), desc="Answering", unit="question", disable=not progress) as bar:
        while answerer.is_busy():
            with torch.no_grad(), evaluation_mode(model):
                answered = answerer.advance()
            for question, answer in answered:
                yield question, answer
                bar.update()


def order_questions(questions: Sequence[dict], by_image: bool) -> list[dict]:
    """
    The questions longest first; with `by_image` those about the same images together, those with long ones first.

    Example:
        >>> rows = [{"image": image, "question": "?" * n} for image, n in (("a", 1), ("b", 2), ("a", 3))]
        >>> [(row["image"], len(row["question"])) for row in order_questions(rows, by_image=True)]
        [('a', 3), ('a', 1), ('b', 2)]
    """
    longest_first = sorted(questions, key=lambda question: -len(question["question"]))
    if not by_image:
        return longest_first
    groups: dict[tuple[str, ...], list[dict]] = {}
    for question in longest_first:
        groups.setdefault(tuple(list_images(question)), []).append(question)
    return [question for group in groups.values() for question in group]


class GenerateAnswerer:
    """Answers questions by the model's own `generate`, batch by batch (see `answer_questions`)."""

    def __init__(self, model, processor, questions, batch_size, max_new_tokens, stop, blank_images):
        self.waiting = deque(order_questions(questions, by_image=False))
        self.batch_size = batch_size
        self.options = (max_new_tokens, stop, blank_images)
        self.model, self.processor = model, processor

    def is_busy(self) -> bool:
        return bool(self.waiting)

    def advance(self) -> list[tuple[dict, str]]:
        """The next questions and their answers."""
        batch = [self.waiting.popleft() for _ in range(min(self.batch_size, len(self.waiting)))]
        answers = answer_with_generate(self.model, self.processor, batch, *self.options)
        return list(zip(batch, answers, strict=True))


class SharedPrefixAnswerer:
    """
    Answers questions for a LLaVA model (see `answer_questions`).

    A place in the batch that an ended answer leaves is taken by the next question, so that short answers do not wait
    for long ones. Prompts that are the same in text and pixels are answered once.
    """

    def __init__(self, model, processor, questions, batch_size, max_new_tokens, stop, blank_images):
        self.waiting = deque(order_questions(questions, by_image=True))
        self.batch_size = batch_size
        self.options = (max_new_tokens, stop, blank_images)
        self.model, self.processor = model, processor
        self.reader = PrefixReader(model, processor, blank_images)
        self.end = EndOfAnswer(max_new_tokens, end_token_ids(model), stop)
        self.rows: GreedyRows | None = None
        self.asked: dict[bytes, list[dict]] = {}  # the questions that each row answers
        self.answers: dict[bytes, str] = {}  # of all rows so far

    def is_busy(self) -> bool:
        return bool(self.waiting or self.rows)

    def advance(self) -> list[tuple[dict, str]]:
        """Take in questions while there is room, and go on until some are answered: these, with their answers."""
        answered = self._take_in()
        if not self.rows:
            return answered
        sequences = self.rows.decode(self.end)
        answers = clean_answers(self.reader.tokenizer, list(sequences.values()), self.end.stop)
        for key, answer in zip(sequences, answers, strict=True):
            self.answers[key] = answer
            answered += [(question, answer) for question in self.asked.pop(key)]
        return answered

    def _take_in(self) -> list[tuple[dict, str]]:
        """Begin to answer questions; those that need no row of their own are returned with their answers."""
        answered, without_suffix, new = [], [], {}
        num_rows = len(self.rows) if self.rows else 0
        while self.waiting and num_rows + len(new) + len(without_suffix) < self.batch_size:
            question = self.waiting.popleft()
            row = self.reader.encode(list_images(question), build_prompt(self.processor, question))
            key = row.key
            if not row.suffix:
                without_suffix.append(question)
            elif key in self.answers:
                answered.append((question, self.answers[key]))
            else:
                if key not in self.asked:
                    new[key] = row
                self.asked.setdefault(key, []).append(question)
        if new:
            rows = GreedyRows(self.reader.model, list(new), self.reader.read(list(new.values())))
            if self.rows:
                self.rows.join(rows)
            else:
                self.rows = rows
        if without_suffix:  # prompts that end with their image leave nothing to go on from
            answers = answer_with_generate(self.model, self.processor, without_suffix, *self.options)
            answered += zip(without_suffix, answers, strict=True)
        return answered


def end_token_ids(model: torch.nn.Module) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation config."""
    ids = model.generation_config.eos_token_id
    return frozenset() if ids is None else frozenset(ids if isinstance(ids, list) else [ids])


def answer_with_generate(
    model: torch.nn.Module,
    processor: Any,
    batch: Sequence[dict],
    max_new_tokens: int,
    stop: StopStrings | None = None,
    blank_images: bool = False,
) -> list[str]:
    """The answers to `batch`, in its order, by the model's own `generate`."""
    tokenizer = get_tokenizer(processor)
    images = load_question_images(batch, processor, blank_images)
    prompts = [build_prompt(processor, question) for question in batch]
    with padding_on_the_left(tokenizer):
        inputs = encode_prompts(processor, prompts, images)
        pad_token_id = tokenizer.pad_token_id
    inputs = inputs.to(model.device, model.dtype)
    num_prompt_tokens = inputs["input_ids"].shape[1]
    sequences = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        # Sampling settings of the model's own generation config would each give a warning.
        temperature=None,
        top_p=None,
        top_k=None,
        # A limit of time would make answers depend on the machine.
        max_time=None,
        return_dict_in_generate=False,
        # Training with gradient checkpointing turns the cache off in the model's config.
        use_cache=True,
        pad_token_id=pad_token_id,
        tokenizer=tokenizer,
        stopping_criteria=[StopEachRow(stop, num_prompt_tokens)] if stop else None,
    )
    return clean_answers(tokenizer, sequences[:, num_prompt_tokens:], stop)


def clean_answers(tokenizer: Any, sequences: Any, stop: StopStrings | None = None) -> list[str]:
    """The texts of new tokens, without special tokens, up to a stop string, without blanks around them."""
    answers = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return [(stop.cut(answer) if stop else answer).strip() for answer in answers]
