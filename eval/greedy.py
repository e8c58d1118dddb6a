"""Greedy decoding after shared prefixes: rows leave the batch at their own end, and others take their place."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria

from logramed.eval.prompts import get_tokenizer
from logramed.eval.shared_prefix import ReadPrefixes, join_caches, keep_rows, pad_on_the_left, positions
from logramed.processing_logramed import cut_at_stop_string


# Rows that have ended leave when they are this share of the batch: leaving copies what the others remember.
LEAVING_SHARE = 0.5


class GreedyRows:
    """
    Rows that go on with the most likely token, each until its own end. The first token of each is there at once.

    Args:
        model: A LLaVA model (see `shared_prefix.can_share_prefixes`). Called without gradients by the owner.
        keys: What each row is called.
        prefixes: The rows to continue; their cache is used up.
    """

    def __init__(self, model: torch.nn.Module, keys: Sequence[Hashable], prefixes: ReadPrefixes):
        self.model, self.cache = model, prefixes.cache
        self.keys = list(keys)
        self.tokens: list[list[int]] = [[] for _ in self.keys]
        input_ids, suffix_mask = pad_on_the_left(prefixes.suffixes, model.device)
        self.attention_mask = torch.cat([prefixes.attention_mask, suffix_mask], dim=1)
        self._forward(input_ids, positions(self.attention_mask)[:, -input_ids.shape[1] :])

    def __len__(self) -> int:
        return len(self.keys)

    def _forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> None:
        logits = self.model(
            input_ids=input_ids,
            attention_mask=self.attention_mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        self.next_ids = logits[:, -1].argmax(dim=-1)
        self.position_ids = position_ids[:, -1:]
        for tokens, token in zip(self.tokens, self.next_ids.tolist(), strict=True):
            tokens.append(token)

    def decode(self, has_ended: Callable[[Sequence[int]], bool]) -> dict[Hashable, list[int]]:
        """
        Step until a share of the rows (`LEAVING_SHARE`) has ended. These leave; their new tokens are returned by key.

        Args:
            has_ended: Whether an answer of these tokens is complete. Asked after each token.
        """
        lengths: dict[int, int] = {}
        self._note_ends(lengths, has_ended)
        while len(lengths) < max(1, LEAVING_SHARE * len(self)):
            ones = self.attention_mask.new_ones(len(self), 1)
            self.attention_mask = torch.cat([self.attention_mask, ones], dim=1)
            self._forward(self.next_ids[:, None], self.position_ids + 1)
            self._note_ends(lengths, has_ended)
        answers = {self.keys[place]: self.tokens[place][:length] for place, length in lengths.items()}
        self._keep([place for place in range(len(self)) if place not in lengths])
        return answers

    def _note_ends(self, lengths: dict[int, int], has_ended: Callable[[Sequence[int]], bool]) -> None:
        for place, tokens in enumerate(self.tokens):
            if place not in lengths and has_ended(tokens):
                lengths[place] = len(tokens)

    def _keep(self, places: list[int]) -> None:
        self.keys, self.tokens = ([column[place] for place in places] for column in (self.keys, self.tokens))
        if places:
            kept = torch.tensor(places, device=self.next_ids.device)
            self.next_ids, self.position_ids = self.next_ids[kept], self.position_ids[kept]
            self.attention_mask = self.attention_mask[kept]
            first = int(self.attention_mask.any(dim=0).int().argmax())  # what is left of it, no row attends to
            self.attention_mask = self.attention_mask[:, first:]
            keep_rows(self.cache, kept, first)

    def join(self, others: "GreedyRows") -> None:
        """Take in other rows of the same model, which are used up."""
        self.keys += others.keys
        self.tokens += others.tokens
        self.next_ids = torch.cat([self.next_ids, others.next_ids])
        self.position_ids = torch.cat([self.position_ids, others.position_ids])
        masks = (self.attention_mask, others.attention_mask)
        longest = max(mask.shape[1] for mask in masks)
        padded = [torch.nn.functional.pad(mask, (longest - mask.shape[1], 0)) for mask in masks]
        self.attention_mask = torch.cat(padded)
        join_caches(self.cache, others.cache)


@dataclass(frozen=True)
class EndOfAnswer:
    """
    Whether the tokens of an answer are all of it.

    Args:
        max_new_tokens (`int`): Tokens of an answer at most.
        token_ids (`frozenset[int]`): Tokens that end one.
        stop (`StopStrings`, *optional*): Ends one by what it says.

    Example:
        >>> end = EndOfAnswer(max_new_tokens=3, token_ids=frozenset([2]))
        >>> end([7]), end([7, 2]), end([7, 8, 9])
        (False, True, True)
    """

    max_new_tokens: int
    token_ids: frozenset[int]
    stop: "StopStrings | None" = None

    def __call__(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self.token_ids or len(tokens) >= self.max_new_tokens:
            return True
        return self.stop is not None and self.stop(tokens)


class StopStrings:
    """
    Whether tokens say one of some texts, looking only at the last few of them.

    Args:
        tokenizer: Of the model that writes the tokens.
        texts: What ends an answer. Each is at least one character.
        turn_end (`str`, *optional*): The one of them with which the model ends its turns: a beginning of it at the
            very end of an answer is no part of the answer either (see `cut_at_stop_string`).

    Raises:
        ValueError: If a text is empty.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], turn_end: str | None = None):
        if not all(texts):
            raise ValueError("A stop string must have at least one character.")
        self.tokenizer = tokenizer
        self.texts, self.turn_end = tuple(texts), turn_end
        # A text of n bytes lies within n tokens, as a token may be a byte; two more for what begins within a token.
        self.num_tokens = max(len(text.encode()) for text in texts) + 2

    def __call__(self, token_ids: Sequence[int]) -> bool:
        last = self.tokenizer.decode(token_ids[-self.num_tokens :], skip_special_tokens=False)
        return any(text in last for text in self.texts)

    def cut(self, answer: str) -> str:
        """`answer` up to the first of the texts."""
        answer = answer[: min([answer.find(text) for text in self.texts if text in answer], default=len(answer))]
        return answer if self.turn_end is None else cut_at_stop_string(answer, self.turn_end)


def own_stop_strings(processor: Any) -> list[str]:
    """The text with which a processor says that its model ends its turns, if it does."""
    stop_string = getattr(processor, "stop_string", None)
    return [stop_string] if stop_string else []


def stop_at(processor: Any, texts: Sequence[str]) -> StopStrings | None:
    """`StopStrings` of `texts`, of which the processor's own is cut as the processor cuts it; None without any."""
    if not texts:
        return None
    turn_end = next((text for text in own_stop_strings(processor) if text in texts), None)
    return StopStrings(get_tokenizer(processor), texts, turn_end)


class StopEachRow(StoppingCriteria):
    """
    `StopStrings` for `generate`, each row by its own answer.

    transformers' own criterion for stop strings fails with tokenizers of whole words (5.23).
    """

    def __init__(self, stop: StopStrings, num_prompt_tokens: int):
        self.stop = stop
        self.num_prompt_tokens = num_prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """`(num_rows,)` of bool for `(num_rows, sequence_length)` token ids."""
        answers = input_ids[:, self.num_prompt_tokens :].tolist()
        return torch.tensor([self.stop(answer) for answer in answers], device=input_ids.device)
