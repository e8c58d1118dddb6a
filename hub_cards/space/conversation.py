"""A conversation about images: streams a model's answers, with the probability of each."""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, StoppingCriteria, TextIteratorStreamer


try:
    from logramed.eval.model_names import naming_model, refuse_foreign
except ImportError:  # in a Space, which has a copy in this folder
    from model_names import naming_model, refuse_foreign


MAX_NEW_TOKENS = 64  # per answer, unless set on the page
NOTICE = "Not for clinical use. Answers can be wrong in ways that read well; do not upload images of patients."


@dataclass
class Turn:
    """
    A question, the paths of its images, the answer so far (empty before the first word) and, when that is complete,
    the geometric mean of its token probabilities, 0 to 1.
    """

    question: str
    images: list[str] = field(default_factory=list)
    answer: str = ""
    confidence: float | None = None


class Assistant:
    """A model from a folder, or from a Hub id at `revision`, with its processor and name."""

    def __init__(self, model_id: str, revision: str | None = None):
        options = {"trust_remote_code": True, "revision": revision}
        self.model_id, self.revision = model_id, revision
        with naming_model(model_id, "`--model`", foreign=True):
            refuse_foreign(model_id, "`--model`", revision)
            self.model = AutoModelForImageTextToText.from_pretrained(model_id, dtype="auto", **options)
        self.model = self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
        self.processor = AutoProcessor.from_pretrained(model_id, **options)
        self.name = model_id.rstrip("/").rpartition("/")[2]
        self._lock = threading.Lock()  # a fast tokenizer is not thread-safe

    def encode(self, turns: Sequence[Turn], with_last_answer: bool = False) -> dict[str, torch.Tensor]:
        """Model inputs for `turns` up to the last question, or up to its answer."""
        messages = self._write_messages(turns)
        if not with_last_answer:
            messages = messages[:-1]
        with self._lock:
            inputs = self.processor.apply_chat_template(
                messages,
                add_generation_prompt=not with_last_answer,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        return inputs.to(self.model.device, self.model.dtype)

    def _write_messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        placeholder = getattr(self.processor, "image_token", None) or "<image>"
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": write_content(turn, placeholder)})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages

    def answer(self, turns: Sequence[Turn], max_new_tokens: int = MAX_NEW_TOKENS) -> Iterator[Turn]:
        """
        Answer the last question of `turns` greedily, as evaluation does. Yields its turn after each piece of text, and
        once more when complete. Leaving the iteration early stops generation. An answer ends before the processor's
        `stop_string`, if any. Raises errors of the generation.
        """
        turn = turns[-1]
        inputs = self.encode(turns)
        tokenizer, stop_string = self.processor.tokenizer, getattr(self.processor, "stop_string", None)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        generation = Generation(self.model, inputs, max_new_tokens, streamer)
        if stop_string:
            generation.criteria.append(StopAtText(tokenizer, stop_string, inputs["input_ids"].shape[1]))
        generation.start()
        text = ""
        try:
            for piece in streamer:
                text += piece
                turn.answer = self.processor.cut_answer(text) if stop_string else text
                yield turn
        finally:
            generation.stop()
        turn.answer = turn.answer.strip()
        turn.confidence = generation.confidence()
        yield turn


def write_content(turn: Turn, placeholder: str) -> list[dict[str, Any]]:
    """Content parts of a question: its images, and its text with any image `placeholder` removed."""
    images = [{"type": "image", "image": Image.open(path)} for path in turn.images]
    return [*images, {"type": "text", "text": turn.question.replace(placeholder, "")}]


class Generation(threading.Thread):
    """Calls `generate` in a separate thread that can be stopped."""

    def __init__(self, model, inputs: dict[str, torch.Tensor], max_new_tokens: int, streamer: TextIteratorStreamer):
        super().__init__(daemon=True)
        self.model, self.inputs, self.max_new_tokens, self.streamer = model, inputs, max_new_tokens, streamer
        self.output, self.error = None, None
        self._is_stopped = threading.Event()
        self.criteria: list[StoppingCriteria] = [StopOnRequest(self._is_stopped)]

    def run(self) -> None:
        try:
            with torch.no_grad():
                self.output = self.model.generate(
                    **self.inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    streamer=self.streamer,
                    stopping_criteria=self.criteria,
                    return_dict_in_generate=True,
                    output_logits=True,
                )
        except Exception as error:  # raised by `stop` in the waiting thread
            self.error = error
            self.streamer.end()

    def stop(self) -> None:
        """Stop generation after the current token, and raise its error, if any."""
        self._is_stopped.set()
        self.join()
        if self.error is not None:
            raise self.error

    def confidence(self) -> float:
        """`mean_probability` of the answer."""
        logits = torch.cat(self.output.logits)
        return mean_probability(logits, self.output.sequences[0, -len(logits) :])


class StopOnRequest(StoppingCriteria):
    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class StopAtText(StoppingCriteria):
    """Ends an answer at a text. transformers' own criterion fails with word-level tokenizers (5.23)."""

    def __init__(self, tokenizer, text: str, num_prompt_tokens: int):
        self.tokenizer, self.text, self.num_prompt_tokens = tokenizer, text, num_prompt_tokens
        # n bytes take at most n tokens, as a token may be one byte; two more for a text that begins inside a token.
        self.num_tokens = len(text.encode()) + 2

    def __call__(self, input_ids, scores, **kwargs):
        answer = input_ids[0, self.num_prompt_tokens :]
        last = self.tokenizer.decode(answer[-self.num_tokens :])
        return torch.full((len(input_ids),), self.text in last, device=input_ids.device)


def mean_probability(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """
    Geometric mean, 0 to 1, of the probabilities of an answer's tokens, from `logits` `(num_tokens, vocab_size)`. It
    says how sure the model is of each word given the previous ones, not how often such an answer is right.

    Example:
        >>> round(mean_probability(torch.tensor([[0.0, 0.0], [0.0, float("-inf")]]), torch.tensor([1, 0])), 4)
        0.7071
    """
    chosen = logits.float().log_softmax(-1).gather(-1, tokens[:, None])
    return math.exp(chosen.mean().item())
