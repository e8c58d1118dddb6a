"""
How the research release asks questions: one after the other, each with its own image loaded and read anew.

A loop of our own with the costs of the release's `model_vqa_med.py`, to measure `eval/run.py` against: a batch of one;
image file, image processor and vision tower once a question, however many questions the image has; and, with a stop
string, the whole answer decoded after each token to look for it, in the one row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

from logramed.eval.prompts import build_prompt, get_tokenizer, load_question_images, template_begins


class StopWhenSaid(StoppingCriteria):
    """
    Ends all rows when the new text of the first one holds `stop_string`.

    As in the release, the first call only learns where the answer begins: an answer has at least two tokens, and what
    the first one says is seen with the second.
    """

    def __init__(self, tokenizer: Any, stop_string: str, num_prompt_tokens: int):
        self.tokenizer = tokenizer
        self.stop_string = stop_string
        self.num_prompt_tokens = num_prompt_tokens
        self.called = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **options) -> torch.BoolTensor:
        said = False
        if self.called:
            texts = self.tokenizer.batch_decode(input_ids[:, self.num_prompt_tokens :], skip_special_tokens=True)
            said = self.stop_string in texts[0]
        self.called = True
        return torch.full((len(input_ids),), said, device=input_ids.device)


def ask_one_at_a_time(
    model: torch.nn.Module,
    processor: Any,
    questions: Sequence[dict],
    max_new_tokens: int,
    stop_string: str | None = None,
) -> list[tuple[dict, str]]:
    """
    Answer each question about its image by greedy decoding, in the order given.

    Prompts and images are those of `eval/run.py`, so that the answers compare.

    Args:
        model: An image-text-to-text model in evaluation mode, on the device to run on.
        processor: Its processor, with a chat template.
        questions: Question rows (see `eval/benchmarks`): `question` and `image` are read.
        max_new_tokens (`int`): Tokens of an answer at most.
        stop_string (`str`, *optional*): Ends an answer, which is cut before it ("###" in the release).

    Returns:
        `list[tuple[dict, str]]`: each question row and the answer without blanks around it.
    """
    return [(question, ask(model, processor, question, max_new_tokens, stop_string)) for question in questions]


@torch.inference_mode()
def ask(
    model: torch.nn.Module, processor: Any, question: dict, max_new_tokens: int, stop_string: str | None = None
) -> str:
    """The answer to one question (see `ask_one_at_a_time`)."""
    tokenizer = get_tokenizer(processor)
    images = load_question_images([question], processor)
    prompt = build_prompt(processor, question)
    inputs = processor(
        text=[prompt], images=images, return_tensors="pt", add_special_tokens=not template_begins(processor, prompt)
    ).to(model.device, model.dtype)
    num_prompt_tokens = inputs["input_ids"].shape[1]
    criteria = [] if stop_string is None else [StopWhenSaid(tokenizer, stop_string, num_prompt_tokens)]
    sequences = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        tokenizer=tokenizer,
        stopping_criteria=criteria,
    )
    answer = tokenizer.batch_decode(sequences[:, num_prompt_tokens:], skip_special_tokens=True)[0]
    return answer.split(stop_string, 1)[0].strip() if stop_string else answer.strip()
