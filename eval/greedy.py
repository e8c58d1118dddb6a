"""Greedy decoding after shared prefixes, each row until its own end."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from logramed.eval.shared_prefix import ReadPrefixes, pad_on_the_left, positions


# Finished rows leave the batch when this share of its rows is finished: leaving copies what the others remember.
LEAVING_SHARE = 0.5


@torch.no_grad()
def decode_greedily(
    model: torch.nn.Module,
    prefixes: ReadPrefixes,
    *,
    max_new_tokens: int,
    end_token_ids: Collection[int],
    has_ended: "StopStrings | None" = None,
) -> list[list[int]]:
    """
    The most likely next tokens of each row, until it ends.

    Args:
        model: A LLaVA model (see `shared_prefix.can_share_prefixes`).
        prefixes: Rows to continue; their cache is used up.
        max_new_tokens (`int`): Tokens of an answer at most.
        end_token_ids: Tokens that end an answer; they stand at its end.
        has_ended (`StopStrings`, *optional*): Ends an answer by what it says.

    Returns:
        `list[list[int]]`: the new tokens of each row.
    """
    input_ids, suffix_mask = pad_on_the_left(prefixes.suffixes, model.device)
    attention_mask = torch.cat([prefixes.attention_mask, suffix_mask], dim=1)
    position_ids = positions(attention_mask)[:, -input_ids.shape[1] :]
    answers: list[list[int]] = [[] for _ in prefixes.suffixes]
    live = list(range(len(answers)))  # the answer that each row of the tensors belongs to
    running = set(live)
    while True:
        logits = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=prefixes.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        next_ids = logits[:, -1].argmax(dim=-1)
        for row, token in zip(live, next_ids.tolist(), strict=True):
            if row in running:
                answers[row].append(token)
                ended = token in end_token_ids or len(answers[row]) >= max_new_tokens
                if ended or (has_ended is not None and has_ended(answers[row])):
                    running.discard(row)
        if not running:
            return answers
        position_ids = position_ids[:, -1:] + 1
        if len(running) <= (1 - LEAVING_SHARE) * len(live):
            kept = torch.tensor([place for place, row in enumerate(live) if row in running], device=model.device)
            prefixes.cache.batch_select_indices(kept)
            next_ids, position_ids, attention_mask = next_ids[kept], position_ids[kept], attention_mask[kept]
            live = [row for row in live if row in running]
        input_ids = next_ids[:, None]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(live), 1)], dim=1)


class StopStrings:
    """
    Whether tokens say one of some texts, looking only at the last few of them.

    Args:
        tokenizer: Of the model that writes the tokens.
        texts: What ends an answer. Each is at least one character.

    Raises:
        ValueError: If a text is empty.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        if not all(texts):
            raise ValueError("A stop string must have at least one character.")
        self.tokenizer = tokenizer
        self.texts = tuple(texts)
        # A text of n bytes lies within n tokens, as a token may be a byte; two more for what begins within a token.
        self.num_tokens = max(len(text.encode()) for text in texts) + 2

    def __call__(self, token_ids: Sequence[int]) -> bool:
        last = self.tokenizer.decode(token_ids[-self.num_tokens :], skip_special_tokens=False)
        return any(text in last for text in self.texts)

    def cut(self, answer: str) -> str:
        """`answer` up to the first of the texts."""
        return answer[: min([answer.find(text) for text in self.texts if text in answer], default=len(answer))]


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
