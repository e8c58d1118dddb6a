"""Ask a model questions about images, in batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from logramed.eval.prompts import (
    build_prompt,
    encode_prompts,
    evaluation_mode,
    get_tokenizer,
    load_question_images,
    padding_on_the_left,
)
from logramed.eval.stop_strings import StopEachRow, StopStrings, own_stop_strings, stop_at


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
    Answer each question about its images with the model's `generate`, by greedy decoding.

    A batch holds questions of similar length, padded on the left. The answers are the same as asking one by one, up to
    the rounding of the model's dtype. Between batches, each module is back in its original training or evaluation mode
    and the tokenizer has its original padding side.

    The model is any image-text-to-text model of transformers, on the device to run on, whose processor has a chat
    template. Question rows (see `eval/benchmarks`) need `question` and `image` or `images`. With `blank_images`, each
    image is replaced by a uniform grey one of the same size. An answer ends before the first of `stop_strings`, for
    models trained to write one instead of an end token ("###" for LLaVA-Med v1.0); by default this is the
    `stop_string` of the processor, if it has one.

    Yields each question row unchanged, with its stripped answer. Raises `ValueError` if `batch_size` or
    `max_new_tokens` is below 1, the processor has no chat template, or a question's number of placeholders differs
    from its number of images, and `FileNotFoundError` if an image is missing.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(
            f"`batch_size` and `max_new_tokens` must be at least 1, got {batch_size} and {max_new_tokens}."
        )
    stop = stop_at(processor, own_stop_strings(processor) if stop_strings is None else stop_strings)
    for batch in in_batches(questions, batch_size, "Answering", progress):
        with torch.no_grad(), evaluation_mode(model):
            answers = generate_answers(model, processor, batch, max_new_tokens, stop, blank_images)
        yield from zip(batch, answers, strict=True)


def in_batches(questions: Sequence[dict], batch_size: int, name: str, progress: bool = True) -> Iterator[list[dict]]:
    """
    Batches of questions, longest first: similar lengths in a batch, and out-of-memory errors come at the start.

    Example:
        >>> rows = [{"question": "?" * length} for length in (1, 3, 2)]
        >>> [[len(row["question"]) for row in batch] for batch in in_batches(rows, 2, "Asking", progress=False)]
        [[3, 2], [1]]
    """
    ordered = sorted(questions, key=lambda question: -len(question["question"]))
    with tqdm(total=len(ordered), desc=name, unit="question", disable=not progress) as bar:
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            yield batch
            bar.update(len(batch))


def generate_answers(
    model: torch.nn.Module,
    processor: Any,
    batch: Sequence[dict],
    max_new_tokens: int,
    stop: StopStrings | None = None,
    blank_images: bool = False,
) -> list[str]:
    """Generate the answers to `batch`, in its order."""
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
        # Each sampling setting in the model's generation config would give a warning.
        temperature=None,
        top_p=None,
        top_k=None,
        # A time limit would make answers depend on the machine.
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
    """Decode new tokens without special tokens, cut at a stop string and stripped."""
    answers = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return [(stop.cut(answer) if stop else answer).strip() for answer in answers]
