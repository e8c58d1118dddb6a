"""Asking a chat model over the network, such as a judge, through the `openai` package and its retries."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from logramed.eval.command_line import UserError


KEY_VARIABLE = "LOGRAMED_JUDGE_KEY"
NO_KEY = "no-key"  # without one, `openai` would look for the user's own
# No valid key, no money, no permission, no such URL or model, no POST there: no other request can do better.
STATUSES_THAT_STOP = (401, 402, 403, 404, 405)
NUM_SHOWN = 200  # characters of a server's message that are shown


class JudgeRefusedError(UserError):
    """The model cannot be asked at all, as with a wrong key, URL or name."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    Which model, and how it is asked. The key is not a setting: it is read from the environment and sent to `url` only.

    Args:
        url (`str`): Base of a server with OpenAI's chat completions, such as "http://localhost:8000/v1".
        model (`str`): Name of the model there.
        concurrency (`int`): Requests at the same time at most.
        max_attempts (`int`): Attempts at a request that gets no answer. Waits between them grow to 8 seconds, or are
            what the server asks for, up to two minutes.
        timeout (`float`): Seconds without a byte after which an attempt is given up.
        max_tokens (`int`): Tokens of a reply at most. A model that reasons first needs more.

    Example:
        >>> JudgeSettings(url="localhost:8000", model="judge")
        Traceback (most recent call last):
        ValueError: `url` must start with http:// or https:// and name a host, got 'localhost:8000'.
    """

    url: str
    model: str
    concurrency: int = 4
    max_attempts: int = 8
    timeout: float = 120.0
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            # Not shown: it may hold a key.
            raise ValueError(
                f"`url` must have no user, no ? and no #, as logs show it. Put a key into {KEY_VARIABLE}."
            )
        if not self.url.startswith(("http://", "https://")) or not parts.hostname:
            raise ValueError(f"`url` must start with http:// or https:// and name a host, got {self.url!r}.")
        if not self.model:
            raise ValueError("`model` must name the model, got an empty text.")
        for name in ("concurrency", "max_attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.timeout > 0:
            raise ValueError(f"`timeout` must be a number of seconds above 0, got {self.timeout}.")


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], concurrency: int) -> Iterator[tuple[Any, Any]]:
    """Each item and what `function` returns for it, as they come; whatever ends this early, no other is begun."""
    with ThreadPoolExecutor(concurrency) as pool:
        futures = {pool.submit(function, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class Reply:
    """What the model said, its name by the server, and whether `max_tokens` cut it off."""

    text: str
    model: str
    is_cut: bool = False


@dataclass(frozen=True)
class Fault:
    """Why there is no reply, in words, without the key."""

    reason: str


class JudgeClient:
    """
    Asks one model, from several threads if need be.

    Args:
        settings (`JudgeSettings`): Which model, and how it is asked.
        key_variable (`str`): Variable of the environment that holds the key.
        options (`Mapping`, *optional*): Further fields of each request, such as `response_format`.

    Raises:
        ImportError: If `openai` is not installed.
        ValueError: If the key is one that no request can carry; it is not shown.
    """

    def __init__(
        self, settings: JudgeSettings, key_variable: str = KEY_VARIABLE, options: Mapping[str, Any] | None = None
    ):
        try:
            import openai
        except ImportError as error:
            raise ImportError("Asking a chat model needs openai: `pip install 'logramed[judge]'`.") from error
        self.settings, self._openai, self._key_variable = settings, openai, key_variable
        self._options = options or {}
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
            raise ValueError(f"{key_variable} must be printable ASCII without spaces.")
        self._refusal: JudgeRefusedError | None = None
        self._client = openai.OpenAI(
            base_url=settings.url,
            api_key=self._key or NO_KEY,
            timeout=settings.timeout,
            max_retries=settings.max_attempts - 1,
        )

    def ask(self, messages: list[dict]) -> Reply | Fault:
        """
        The reply to the `messages` of a chat, or why there is none after the last attempt.

        Raises:
            JudgeRefusedError: If no request can succeed. After that, none is made.
        """
        for _ in range(self.settings.max_attempts):
            if self._refusal is not None:
                raise self._refusal
            try:
                return self._request(messages)
            except JudgeRefusedError as error:
                self._refusal = error
                raise
            except (ValueError, TypeError, AttributeError, LookupError):
                continue
        # Not the error's text: it may quote the response.
        return Fault("the response holds no reply")

    def _request(self, messages: list[dict]) -> Reply | Fault:
        try:
            completion = self._client.chat.completions.create(
                messages=messages,
                model=self.settings.model,
                temperature=0.0,
                max_tokens=self.settings.max_tokens,
                **self._options,
            )
        except self._openai.APIStatusError as error:
            said = error.body.get("message", "") if isinstance(error.body, dict) else error.body or ""
            if error.status_code == 401:  # without the server's message, which may show a part of the key
                said = f"{self._key_variable} is {'not accepted' if self._key else 'not set'}"
            reason = f"HTTP {error.status_code}: {self._redact(str(said))}"
            if error.status_code in STATUSES_THAT_STOP:
                raise JudgeRefusedError(reason) from None
            return Fault(reason)
        except self._openai.APITimeoutError:
            return Fault(f"no reply within {self.settings.timeout:g} s")
        except self._openai.APIConnectionError as error:
            raise JudgeRefusedError(f"{self.settings.url}: {self._redact(str(error.__cause__ or error))}") from None
        choice = completion.choices[0]
        if not isinstance(choice.message.content, str):
            raise TypeError("no text")
        is_cut = choice.finish_reason == "length"
        return Reply(choice.message.content, completion.model or self.settings.model, is_cut)

    def _redact(self, text: str) -> str:
        return (text.replace(self._key, "[key]") if self._key else text)[:NUM_SHOWN].strip()
