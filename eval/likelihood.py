"""Likelihood of each option of a multiple-choice question under a model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from logramed.eval.answering import in_batches
from logramed.eval.prompts import (
    ask,
    build_prompt,
    encode_prompts,
    evaluation_mode,
    get_tokenizer,
    load_question_images,
    padding_on_the_left,
    template_begins,
)


# Placeholder answer to see how a chat template formats one; no template contains or changes this word.
ANSWER_MARK = "AnswerMarkOfLoGraMed"


def score_options(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    *,
    batch_size: int,
    blank_images: bool = False,
    progress: bool = True,
) -> Iterator[tuple[dict, list[float]]]:
    """
    Yield each question row with the mean log-probability (natural logarithm, at most 0) of the tokens of each option.
    Arguments as for `answering.answer_questions`; rows also have `options`.

    All options of the questions in a batch go through the model in one forward pass. Scores are means over an option's
    tokens, not sums, so that long options are not at a disadvantage. Raises `ValueError` if `batch_size` is
    below 1, an option has no tokens, or the processor has no chat template.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    for batch in in_batches(questions, batch_size, "Scoring options", progress):
        with torch.no_grad(), evaluation_mode(model):
            scores = score_batch(model, processor, batch, blank_images)
        yield from zip(batch, scores, strict=True)


def build_answer_context(processor: Any, question: Mapping[str, Any]) -> tuple[str, str]:
    """
    The text that the chat template writes before an answer: the context, and the spaces after it, if any.

    This keeps the spacing that the model was trained with. The spaces are returned separately because many tokenizers
    join them to the next word. Text that a template writes before each answer (such as a name) belongs to the context.
    """
    prompt = build_prompt(processor, question)
    assistant = {"role": "assistant", "content": [{"type": "text", "text": ANSWER_MARK}]}
    written = processor.apply_chat_template([ask(question), assistant], add_generation_prompt=False, tokenize=False)
    start = written.find(ANSWER_MARK)
    if not written.startswith(prompt) or start < len(prompt):
        return prompt, ""  # the template formats an answered turn differently from an open one
    end = max(len(prompt), len(written[:start].rstrip(" ")))
    return written[:end], written[end:start]


def score_batch(
    model: torch.nn.Module, processor: Any, batch: Sequence[dict], blank_images: bool = False
) -> list[list[float]]:
    """The scores of the options of each question of `batch`, in its order, each after the whole prompt."""
    tokenizer = get_tokenizer(processor)
    pairs = [(question, option) for question in batch for option in question["options"]]
    images = load_question_images([question for question, _ in pairs], processor, blank_images)
    contexts = [build_answer_context(processor, question) for question, _ in pairs]
    texts = [context + blank + option for (context, blank), (_, option) in zip(contexts, pairs, strict=True)]
    options = {"add_special_tokens": not template_begins(processor, texts[0])}
    with padding_on_the_left(tokenizer):
        inputs = encode_prompts(processor, texts, images).to(model.device, model.dtype)
    # Here an image placeholder is one token, unlike in `inputs`; it cancels out as both texts have it.
    num_option_tokens = [
        count_option_tokens(tokenizer(text, **options)["input_ids"], tokenizer(context, **options)["input_ids"], *pair)
        for text, (context, _), pair in zip(texts, contexts, pairs, strict=True)
    ]
    logits = model(**inputs, use_cache=False, logits_to_keep=max(num_option_tokens) + 1).logits
    scores = iter(mean_log_probabilities(logits, inputs["input_ids"], num_option_tokens))
    return [[next(scores) for _ in question["options"]] for question in batch]


def count_option_tokens(answered: Sequence[int], context: Sequence[int], question: dict, option: str) -> int:
    """
    The number of tokens at the end of an answered prompt that are not tokens of the context before the answer.

    Example:
        >>> count_option_tokens([5, 6, 8, 9], [5, 6, 7], {}, "left lung")  # the last context token is merged
        2
    """
    shared = 0
    while shared < min(len(answered), len(context)) and answered[shared] == context[shared]:
        shared += 1
    if shared == len(answered):
        raise ValueError(
            f"Question {question['question_id']!r}: the option {option!r} has no tokens of its own, so it has no "
            "likelihood. Score the text of an answer instead."
        )
    return len(answered) - shared


def mean_log_probabilities(
    logits: torch.Tensor, input_ids: torch.Tensor, num_option_tokens: Sequence[int]
) -> list[float]:
    """
    The mean log-probability of the last `num_option_tokens` tokens of each row, from `logits` of shape
    `(num_rows, num_kept, vocab_size)`, with `num_kept` above any row's count, and left-padded `input_ids`.

    Example:
        >>> logits = torch.zeros(1, 3, 2)  # two tokens in the vocabulary, equally likely each time
        >>> [round(score, 4) for score in mean_log_probabilities(logits, torch.tensor([[0, 1, 0]]), [2])]
        [-0.6931]
    """
    num_kept = logits.shape[1]
    log_probabilities = logits[:, :-1].float().log_softmax(dim=-1)
    chosen = log_probabilities.gather(-1, input_ids[:, -(num_kept - 1) :, None])[..., 0]
    return [row[-count:].mean().item() for row, count in zip(chosen, num_option_tokens, strict=True)]
