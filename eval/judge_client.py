"""Client for a chat model on a server, such as a judge, using the `openai` package and its retries."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from logramed.eval.command_line import UserError


KEY_VARIABLE = "LOGRAMED_JUDGE_KEY"
NO_KEY = "no-key"  # otherwise `openai` would read the user's own key
# Invalid key, no credit, no permission, unknown URL or model, no POST allowed: retrying cannot help.
STATUSES_THAT_STOP = (401, 402, 403, 404, 405)
NUM_SHOWN = 200  # characters of a server's message that are shown


class JudgeRefusedError(UserError):
    """No request to the model can succeed, for example because the key, URL or name is wrong."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    Which model to ask, and how. The key is not a setting: it is read from the environment and sent only to `url`.

    Args:
        url (`str`): Base URL of a server with OpenAI chat completions, such as "http://localhost:8000/v1".
        model (`str`): Name of the model on the server.
        concurrency (`int`): Maximum number of concurrent requests.
        max_attempts (`int`): Attempts per request. The wait between them grows to 8 seconds, or is what the server
            requests, up to two minutes.
        timeout (`float`): Seconds without receiving a byte before an attempt fails.
        max_tokens (`int`): Maximum number of tokens in a reply. Reasoning models need more.

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
            # The URL is not shown: it may contain a key.
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
    """Yield each item and its result as they complete. On any exception, no further item is started."""
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
    """The text of a reply, the model name the server gave, and whether `max_tokens` cut it off."""

    text: str
    model: str
    is_cut: bool = False


@dataclass(frozen=True)
class Fault:
    """Why there is no reply, without the key."""

    reason: str


class JudgeClient:
    """
    Asks one model. Thread-safe.

    Args:
        settings (`JudgeSettings`): Which model to ask, and how.
        key_variable (`str`): Environment variable that holds the key.
        options (`Mapping`, *optional*): Additional fields of each request, such as `response_format`.

    Raises:
        ImportError: If `openai` is not installed.
        ValueError: If the key is not printable ASCII without spaces; it is not shown.
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
        The reply to the chat `messages`, or why there is none after the last attempt.

        Raises:
            JudgeRefusedError: If no request can succeed. Later calls raise it without a request.
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
        # The error's text is not shown: it may quote the response.
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
            if error.status_code == 401:  # not the server's message, which may contain part of the key
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
