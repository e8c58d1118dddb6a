"""Texts that end an answer, for models that write one instead of an end token."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from logramed.eval.prompts import get_tokenizer
from logramed.processing_logramed import cut_at_stop_string


class StopStrings:
    """
    Whether the last few tokens contain one of `texts`, each at least one character long. `turn_end` is the text with
    which the model ends its turns: its beginning, if cut off at the very end of an answer, is also removed (see
    `cut_at_stop_string`).
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], turn_end: str | None = None):
        if not all(texts):
            raise ValueError("A stop string must have at least one character.")
        self.tokenizer = tokenizer
        self.texts, self.turn_end = tuple(texts), turn_end
        # n bytes take at most n tokens (a token may be a byte); two more for a text that starts within a token.
        self.num_tokens = max(len(text.encode()) for text in texts) + 2

    def __call__(self, token_ids: Sequence[int]) -> bool:
        last = self.tokenizer.decode(token_ids[-self.num_tokens :], skip_special_tokens=False)
        return any(text in last for text in self.texts)

    def cut(self, answer: str) -> str:
        """`answer` up to the first of the texts."""
        answer = answer[: min([answer.find(text) for text in self.texts if text in answer], default=len(answer))]
        return answer if self.turn_end is None else cut_at_stop_string(answer, self.turn_end)


def own_stop_strings(processor: Any) -> list[str]:
    """The `stop_string` of a processor as a list, empty if it has none."""
    stop_string = getattr(processor, "stop_string", None)
    return [stop_string] if stop_string else []


def stop_at(processor: Any, texts: Sequence[str]) -> StopStrings | None:
    """`StopStrings` of `texts`, with the processor's `stop_string`, if among them, as `turn_end`; None if empty."""
    if not texts:
        return None
    turn_end = next((text for text in own_stop_strings(processor) if text in texts), None)
    return StopStrings(get_tokenizer(processor), texts, turn_end)


class StopEachRow(StoppingCriteria):
    """
    `StopStrings` as a criterion for `generate`, applied to each row's answer.

    transformers' criterion for stop strings fails with whole-word tokenizers (5.23).
    """

    def __init__(self, stop: StopStrings, num_prompt_tokens: int):
        self.stop = stop
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """`(num_rows,)` of bool for `(num_rows, sequence_length)` token ids."""
        answers = input_ids[:, self.num_prompt_tokens :].tolist()
        return torch.tensor([self.stop(answer) for answer in answers], device=input_ids.device)
