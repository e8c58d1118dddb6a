"""
The `/v1/chat/completions` handler of `transformers serve`, extended by `stop` and clear errors. Without this, it fails
at `stop` for vision models, ignores unsupported fields, and answers bad requests with an internal error.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from transformers import StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler

from logramed.eval.question_images import IMAGE_PLACEHOLDER
from logramed.eval.stop_strings import StopEachRow, StopStrings, own_stop_strings, stop_at


# Fields that would change an answer but that the server ignores, with the values that have no effect.
UNSUPPORTED = {
    "n": (None, 1),
    "logprobs": (None, False),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
}
LEAST = {"max_tokens": 1, "max_completion_tokens": 1, "temperature": 0}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What the processor or loader raises for bad requests: wrong values, damaged images, unknown models.
REQUEST_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OSError)


class ChatHandler(ChatCompletionHandler):
    """The server's handler; a request that it cannot fulfil gets status 400 and the reason."""

    async def handle_request(self, body: dict, request_id: str) -> Any:
        try:
            adapt_request(body)
            return await super().handle_request(body, request_id)
        except REQUEST_ERRORS as error:
            raise HTTPException(status_code=400, detail=str(error) or type(error).__name__) from error

    def _streaming(self, *args, gen_manager: Any, **options) -> Any:
        return super()._streaming(*args, gen_manager=StoppingManager(gen_manager), **options)

    async def _non_streaming(self, *args, gen_manager: Any, **options) -> Any:
        return await super()._non_streaming(*args, gen_manager=StoppingManager(gen_manager), **options)


def adapt_request(body: dict[str, Any]) -> None:
    """
    Change `developer` messages to `system` and a single `stop` to a list, in place.

    Raises:
        ValueError: If a field is unsupported or out of range, or a text contains the image placeholder.
    """
    for name, allowed in UNSUPPORTED.items():
        if body.get(name) not in allowed:
            raise ValueError(f"`{name}` is not supported, got {body[name]!r:.100}.")
    for name, least in LEAST.items():
        if body.get(name) is not None and not body[name] >= least:
            raise ValueError(f"`{name}` must be {least} or more, got {body[name]!r:.100}.")
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    if not body.get("messages"):
        raise ValueError("`messages` must be a list of at least one message.")
    for message in body["messages"]:
        if message["role"] not in ROLES:
            raise ValueError(f"`role` of a message must be one of {', '.join(ROLES)}, got {message['role']!r:.100}.")
        message["role"] = ROLES[message["role"]]
        content = message["content"]
        for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if part["type"] not in ("text", "image_url"):
                raise ValueError(f"A part must be of type text or image_url, got {part['type']!r:.100}.")
            if IMAGE_PLACEHOLDER in part.get("text", ""):
                raise ValueError(f"A text contains {IMAGE_PLACEHOLDER}: send images as parts of type `image_url`.")


class StoppingManager:
    """Wraps the server's generation manager to end answers before stop strings."""

    def __init__(self, manager: Any):
        self.manager = manager

    async def generate_non_streaming(self, model: Any, processor: Any, inputs: Any, config: Any, **options) -> tuple:
        stop, inputs = take_stop(processor, inputs, config)
        text, *further = await self.manager.generate_non_streaming(model, processor, inputs, config, **options)
        return stop.cut(text) if stop else text, *further

    def generate_streaming(self, model: Any, processor: Any, inputs: Any, config: Any, **options) -> tuple:
        stop, inputs = take_stop(processor, inputs, config)
        queue, streamer = self.manager.generate_streaming(model, processor, inputs, config, **options)
        return StoppingQueue(queue, stop) if stop else queue, streamer


def take_stop(processor: Any, inputs: Mapping[str, Any], config: Any) -> tuple[StopStrings | None, dict[str, Any]]:
    """
    Move the stop strings from a generation configuration into the inputs of `generate`, together with the one with
    which the model ends its turns. Returns both, or `None` and the inputs if there are no stop strings.
    """
    texts, config.stop_strings = config.stop_strings or [], None
    stop = stop_at(processor, [*texts, *own_stop_strings(processor)])
    if stop is None:
        return None, dict(inputs)
    criterion = StopEachRow(stop, inputs["input_ids"].shape[-1])
    return stop, {**inputs, "stopping_criteria": StoppingCriteriaList([criterion])}


class StoppingQueue:
    """Streamed pieces of an answer up to a stop string; holds back as many characters as the longest has."""

    def __init__(self, queue: asyncio.Queue, stop: StopStrings):
        self.queue, self.stop = queue, stop
        self.held, self.waiting = "", []

    async def get(self) -> Any:
        while not self.waiting:
            self._take(await self.queue.get())
        return self.waiting.pop(0)

    def get_nowait(self) -> Any:
        while not self.waiting:
            self._take(self.queue.get_nowait())
        return self.waiting.pop(0)

    def _take(self, item: Any) -> None:
        if type(item) is not str:  # the end, an error, or another kind of piece
            self.waiting += [piece for piece in (self.stop.cut(self.held),) if piece] + [item]
            self.held = ""
            return
        self.held += item
        num_free = len(self.held) - max(map(len, self.stop.texts))
        if num_free > 0 and self.stop.cut(self.held) == self.held:
            self.waiting.append(self.held[:num_free])
            self.held = self.held[num_free:]
