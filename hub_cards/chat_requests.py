"""
What `transformers serve` is asked under `/v1/chat/completions`: taken as OpenAI's schema has it, or refused with the
reason. The server by itself ends in an internal error, or ignores what it does not know.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from transformers import StoppingCriteriaList
from transformers.cli.serving.chat_completion import ChatCompletionHandler

from logramed.eval.question_images import IMAGE_PLACEHOLDER
from logramed.eval.stop_strings import StopEachRow, StopStrings, own_stop_strings, stop_at


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_STOPS = 4
# Values that ask for nothing beyond one plain text; any other would have to be honoured.
ONLY = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
# What a client may send along and no answer depends on.
WITHOUT_EFFECT = (
    *("metadata", "parallel_tool_calls", "prompt_cache_key", "reasoning_effort", "safety_identifier", "service_tier"),
    *("store", "stream_options", "user", "verbosity"),
)
# Lowest and highest value of each number; None: no limit.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-0.99, 2),
    "seed": (0, 2**32 - 1),
}
WHOLE = ("max_tokens", "max_completion_tokens", "seed")
# What a request can make the processor or the loader raise: wrong addresses, damaged images, unknown models.
FAULTS_OF_A_REQUEST = (ValueError, TypeError, KeyError, OSError)


def adapt_request(body: dict[str, Any]) -> None:
    """
    Bring a request to what `transformers serve` takes, in place.

    `developer` becomes `system`, one `stop` a list of it, and what has no effect goes.

    Raises:
        HTTPException: (400) for what cannot be honoured, by its name.
    """
    for name in WITHOUT_EFFECT:
        body.pop(name, None)
    for name, allowed in ONLY.items():
        if name in body and body[name] is not None and body[name] not in allowed:
            expected = f" It may be {' or '.join(map(repr, allowed))}." if allowed else ""
            raise refuse(f"`{name}` is {body[name]!r:.100}, which is not supported.{expected}")
        body.pop(name, None)
    for name, (low, high) in RANGES.items():
        check_number(body, name, low, high)
    if body.get("stop") is not None:
        body["stop"] = read_stops(body["stop"])
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse("`messages` must be a list of one message at least.")
    for number, message in enumerate(messages):
        adapt_message(message, f"messages[{number}]")


def refuse(reason: str) -> HTTPException:
    return HTTPException(status_code=400, detail=reason)


def check_number(body: Mapping[str, Any], name: str, low: float | None, high: float | None) -> None:
    value = body.get(name)
    if value is None:
        return
    kind = int if name in WHOLE else (int, float)
    limits = " to ".join(f"{limit:g}" for limit in (low, high) if limit is not None)
    in_range = isinstance(value, kind) and not isinstance(value, bool)
    in_range = in_range and (low is None or value >= low) and (high is None or value <= high)
    if not in_range:
        what = "a whole number" if name in WHOLE else "a number"
        raise refuse(f"`{name}` must be {what} from {limits}{'' if high is not None else ' up'}, got {value!r:.100}.")


def read_stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise refuse(
            f"`stop` must be a text, or a list of up to {MAX_STOPS} texts that are not empty, got {stop!r:.100}."
        )
    return stops


def adapt_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise refuse(f"`{where}.role` must be one of {', '.join(ROLES)}, got {role!r:.100}.")
    message["role"] = ROLES[message["role"]]
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise refuse(f"`{where}.{name}` is not supported: answers are texts.")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        raise refuse(f"`{where}.content` must be a text or a list of parts, got {content!r:.100}.")
    for number, part in enumerate(parts):
        check_part(part, f"{where}.content[{number}]" if parts is content else f"{where}.content", message["role"])


def check_part(part: Any, where: str, role: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        if IMAGE_PLACEHOLDER in part["text"]:
            raise refuse(
                f"`{where}` has {IMAGE_PLACEHOLDER} typed in its text. Send an image as a part of type `image_url`, "
                "or write the word otherwise."
            )
        return
    url = part.get("image_url") if kind == "image_url" else None
    if isinstance(url.get("url") if isinstance(url, dict) else url, str):
        if role != "user":
            raise refuse(f"`{where}` is an image in a message of the {role}: only users send images.")
        return
    raise refuse(f"`{where}` must be a part of type text or image_url, got {part!r:.100}.")


class ChatHandler(ChatCompletionHandler):
    """The server's handler, for requests that `adapt_request` has brought to what it takes."""

    async def handle_request(self, body: dict, request_id: str) -> Any:
        adapt_request(body)
        try:
            return await super().handle_request(body, request_id)
        except FAULTS_OF_A_REQUEST as error:
            raise refuse(str(error) or type(error).__name__) from error

    def _streaming(self, *args, gen_manager: Any, **options) -> Any:
        return super()._streaming(*args, gen_manager=StoppingManager(gen_manager), **options)

    async def _non_streaming(self, *args, gen_manager: Any, **options) -> Any:
        return await super()._non_streaming(*args, gen_manager=StoppingManager(gen_manager), **options)


class StoppingManager:
    """A generation manager of the server whose answers end before the texts that stop them."""

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
    What stops an answer, and inputs of `generate` that have it: the stop texts of a generation configuration, which
    loses them, and the one with which the model ends its turns.
    """
    texts, config.stop_strings = config.stop_strings or [], None
    stop = stop_at(processor, [*texts, *own_stop_strings(processor)])
    if stop is None:
        return None, dict(inputs)
    criterion = StopEachRow(stop, inputs["input_ids"].shape[-1])
    return stop, {**inputs, "stopping_criteria": StoppingCriteriaList([criterion])}


class StoppingQueue:
    """
    The pieces of a streamed answer up to a stop. What may begin one is held back until it is clear that it does not.
    """

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
        if any(text in self.held for text in self.stop.texts):  # generation ends here too
            return
        beginnings = (text[:length] for text in self.stop.texts for length in range(1, len(text)))
        kept = max((len(beginning) for beginning in beginnings if self.held.endswith(beginning)), default=0)
        # Before the end of a turn, blanks go too.
        kept = max(kept, len(self.held) - len(self.stop.cut(self.held)))
        free = self.held[: len(self.held) - kept]
        if free:
            self.waiting.append(free)
            self.held = self.held[len(free) :]
