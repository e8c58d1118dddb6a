"""
Asking a judge model over the network: one request, what can go wrong with it, and when it is worth asking again.

`JudgeClient` speaks to any server with OpenAI's chat completions, through `huggingface_hub.InferenceClient`.
"""

import itertools
import logging
import math
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from logramed.eval.command_line import UserError


logger = logging.getLogger(__name__)

KEY_VARIABLE = "LOGRAMED_JUDGE_KEY"
# Sent where there is no key: without one, `InferenceClient` would send the user's Hugging Face token to the URL.
NO_KEY = "no-key"
# Nothing that asking again could mend: no valid key, no money, no permission, no such URL or model, no POST there.
STATUSES_THAT_STOP = (401, 402, 403, 404, 405)
STATUSES_THAT_PASS = (408, 409, 425, 429)
# Seconds: no wait between two attempts grows longer, and a server that wants longer is not waited for.
LONGEST_BACKOFF, LONGEST_WAIT = 60.0, 600.0
# After so many judgements in a row that could not be had, the rest is not asked: the judge is down or cannot judge.
MOST_FAILURES_IN_A_ROW = 20
# Characters of a server's message that are shown.
NUM_SHOWN = 200
# A key is recognized by any so many characters of it: servers and cuts may leave a part. A shorter one is no secret,
# but what a local server wants to see ("EMPTY", "x").
NUM_TELLING = 8
MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)


class JudgeRefusedError(UserError):
    """The judge cannot be asked at all, as with a wrong key, URL or model."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    Which judge, and how it is asked.

    The key is no setting: it is read from the environment variable `LOGRAMED_JUDGE_KEY`, and sent to `url` only.

    Args:
        url (`str`): Of a server with OpenAI's chat completions, such as "http://localhost:8000/v1". Where
            "/chat/completions" is missing it is added, with "/v1" before it if that is missing too.
        model (`str`): Name of the judge there.
        concurrency (`int`): Requests at the same time at most.
        max_attempts (`int`): Times that one judgement is asked for at most.
        timeout (`float`): Seconds that one reply may take, to its last byte.
        max_tokens (`int`): Tokens of a reply at most. A judge that reasons first needs more.
        first_wait (`float`): Seconds before the second attempt; doubles with each, 60 at most, less a random part.

    Example:
        >>> JudgeSettings(url="localhost:8000", model="judge")
        Traceback (most recent call last):
        ValueError: `url` must start with http:// or https:// and name a host, got 'localhost:8000'.
    """

    url: str
    model: str
    concurrency: int = 4
    max_attempts: int = 6
    timeout: float = 120.0
    max_tokens: int = 1024
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            # Not shown: it may hold a key.
            raise ValueError(
                f"`url` must have no user, no ? and no #: addresses stand in logs. Put a key into {KEY_VARIABLE}."
            )
        if not self.url.startswith(("http://", "https://")) or not parts.hostname:
            raise ValueError(f"`url` must start with http:// or https:// and name a host, got {self.url!r}.")
        if not self.model:
            raise ValueError("`model` must name the judge.")
        for name in ("concurrency", "max_attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("timeout", "first_wait"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"`{name}` must be a number of seconds above 0, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Reply:
    """
    What the judge said, by the name that the server gave it, at which attempt; whether `max_tokens` cut it off; and
    the tokens of the prompt and of the reply by the server's count, 0 where it gives none.
    """

    text: str
    model: str
    attempts: int
    is_cut: bool = False
    num_prompt_tokens: int = 0
    num_reply_tokens: int = 0


@dataclass(frozen=True)
class Fault:
    """
    Why there is no reply.

    Args:
        reason (`str`): In words, without the key.
        passes (`bool`): Whether asking again may help.
        stops (`bool`): Whether no other request can do better.
        wait (`float`): Seconds that the server asked to be left alone.
    """

    reason: str
    passes: bool = True
    stops: bool = False
    wait: float = 0.0


def read_key(variable: str = KEY_VARIABLE) -> str | None:
    """
    The key in a variable of the environment, or `None` if there is none.

    Raises:
        ValueError: If it holds what no request header can. It is not shown.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"{variable} must be printable ASCII without blanks.")
    return key or None


def redact(text: str, key: str | None) -> str:
    """
    `text` without the key and without longer parts of it.

    Example:
        >>> redact("Incorrect key: sk-1234567890abcdef. You sent sk-1234567890...", key="sk-1234567890abcdef")
        'Incorrect key: [key]. You sent [key]...'
    """
    key = key or ""
    telling = {key[start : start + NUM_TELLING] for start in range(len(key) - NUM_TELLING + 1)}
    hidden = [False] * len(text)
    for start in range(len(text) - NUM_TELLING + 1):
        if text[start : start + NUM_TELLING] in telling:
            hidden[start : start + NUM_TELLING] = [True] * NUM_TELLING
    shown = itertools.groupby(range(len(text)), hidden.__getitem__)
    return "".join("[key]" if is_hidden else "".join(text[i] for i in group) for is_hidden, group in shown)


def retry_after(value: str | None) -> float:
    """
    Seconds to wait by a `Retry-After` header, which holds seconds or a date; 0 without one or if it makes no sense.

    Example:
        >>> retry_after("2.5"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon"), retry_after(None)
        (2.5, 0.0, 0.0, 0.0)
    """
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


class JudgeClient:
    """
    Asks one judge, from several threads if need be.

    Args:
        settings (`JudgeSettings`): Which judge, and how it is asked. The key is read here.
        key_variable (`str`): The variable of the environment that holds the key.
        options (`dict`, *optional*): Further arguments of each request, such as `response_format`.
    """

    def __init__(self, settings: JudgeSettings, key_variable: str = KEY_VARIABLE, options: dict | None = None):
        self.settings, self.options = settings, options or {}
        self._key_variable, self._key = key_variable, read_key(key_variable)
        self._client = InferenceClient(base_url=settings.url, api_key=self._key or NO_KEY, timeout=settings.timeout)
        self._stopped = threading.Event()
        # All threads leave a server alone that asked for it: until this time of `time.monotonic`.
        self._silent_until = 0.0
        self._num_failures = 0
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Start no further request; requests under way go on to their end."""
        self._stopped.set()

    def ask(self, messages: list[dict], check: Callable[[str], object], label: str) -> Reply | Fault:
        """
        The judge's reply to `messages`, asked for until `check` accepts it or `max_attempts` is reached.

        Args:
            messages (`list[dict]`): Of a chat.
            check: Function of the text of a reply that raises `ValueError` with the reason if it cannot be used.
            label (`str`): What the log calls this judgement.

        Raises:
            JudgeRefusedError: If no request to this judge can succeed. `stop` has then been called.
        """
        if self._num_failures >= MOST_FAILURES_IN_A_ROW:
            return Fault(f"not asked: {MOST_FAILURES_IN_A_ROW} judgements in a row before it failed", passes=False)
        outcome = self._ask_repeatedly(messages, check, label)
        with self._lock:
            self._num_failures = 0 if isinstance(outcome, Reply) else self._num_failures + 1
        if isinstance(outcome, Fault) and outcome.stops:
            self.stop()
            raise JudgeRefusedError(outcome.reason)
        return outcome

    def _ask_repeatedly(self, messages: list[dict], check: Callable[[str], object], label: str) -> Reply | Fault:
        wait = 0.0
        for attempt in range(1, self.settings.max_attempts + 1):
            outcome = self._wait(wait) or self._attempt(messages, check, attempt)
            if isinstance(outcome, Reply):
                return outcome
            logger.info("%s, attempt %d of %d: %s", label, attempt, self.settings.max_attempts, outcome.reason)
            if not outcome.passes or outcome.stops:
                return outcome
            if outcome.wait:
                with self._lock:
                    self._silent_until = max(self._silent_until, time.monotonic() + outcome.wait)
            wait = min(self.settings.first_wait * 2 ** (attempt - 1), LONGEST_BACKOFF) * random.uniform(0.5, 1.0)
        return outcome

    def _wait(self, seconds: float) -> Fault | None:
        """Sleep `seconds`, or as long as the server asked for; a fault if that is too long or the run is stopped."""
        silence = self._silent_until - time.monotonic()
        if silence > LONGEST_WAIT:
            return Fault(f"the server asks to be left alone for {silence:.0f} s", passes=False)
        if self._stopped.wait(max(0.0, seconds, silence)):
            return Fault("the run was stopped", passes=False)
        # Another thread may have been told to wait in the meantime.
        return self._wait(0.0) if self._silent_until > time.monotonic() else None

    def _attempt(self, messages: list[dict], check: Callable[[str], object], attempt: int) -> Reply | Fault:
        output, error = within(self.settings.timeout, lambda: self._request(messages))
        if error is not None:
            return self._fault_of(error)
        # JSON can hold halves of characters, which no file can.
        text, model = (redact(part.encode("utf-8", "replace").decode(), self._key) for part in output[:2])
        try:
            check(text)
        except ValueError as reason:
            return Fault(str(reason))
        return Reply(text, model, attempt, *output[2:])

    def _request(self, messages: list[dict]) -> tuple[str, str, bool, int, int]:
        output = self._client.chat_completion(
            messages,
            model=self.settings.model,
            temperature=0.0,
            max_tokens=self.settings.max_tokens,
            **self.options,
        )
        choice = output.choices[0]
        text, model = choice.message.content, output.model
        if not isinstance(text, str) or not isinstance(model, str | None):
            raise TypeError("no text")
        used = [getattr(output.usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        counts = [number if isinstance(number, int) else 0 for number in used]
        return text, model or self.settings.model, choice.finish_reason == "length", *counts

    def _fault_of(self, error: Exception) -> Fault:
        responses = [cause.response for cause in causes(error) if getattr(cause, "response", None) is not None]
        if responses:
            return self._fault_of_status(responses[0])
        if isinstance(error, OfflineModeIsEnabled):
            return Fault("offline mode is on: unset HF_HUB_OFFLINE to ask a judge", stops=True)
        if isinstance(error, (InferenceTimeoutError, TimeoutError)):
            return Fault(f"no reply within {self.settings.timeout:g} s")
        if isinstance(error, MALFORMED):
            # Not the error's text: it may quote the response.
            return Fault("the response holds no reply")
        told = redact(f"{type(error).__name__}: {error}", self._key)[:NUM_SHOWN]
        return Fault(f"the request failed ({told})", stops=not isinstance(error, (HTTPError, OSError)))

    def _fault_of_status(self, response: object) -> Fault:
        status, message = response.status_code, message_of(response)
        reason = f"HTTP {status}"
        if status == 401:
            # Without the server's message: it may show the key in a form that `redact` does not know.
            reason += f": {self._key_variable} is {'not accepted' if self._key else 'not set'}"
        elif message:
            reason += f": {redact(message, self._key)[:NUM_SHOWN]}"
        passes = status in STATUSES_THAT_PASS or status >= 500
        wait = retry_after(response.headers.get("retry-after")) if passes else 0.0
        return Fault(reason, passes, stops=status in STATUSES_THAT_STOP, wait=wait)


def message_of(response: object) -> str:
    """What a server says in the body of an error, if it says it in one of the usual forms."""
    try:
        body = response.json()
        said = body.get("error") or body.get("message") or body.get("detail") or ""
        return str(said["message"] if isinstance(said, dict) else said).strip()
    except (RuntimeError, *MALFORMED):
        return ""


def within(seconds: float, function: Callable[[], object]) -> tuple[object, Exception | None]:
    """
    What `function` returns and `None`, or `None` and what it raised; `TimeoutError` if it takes longer than `seconds`.

    A timeout of sockets is not enough: it starts anew with every byte, so a server that sends one now and then holds a
    request for ever. The thread of an overdue call is left to itself.

    Example:
        >>> within(1.0, lambda: 2 + 2)
        (4, None)
    """
    outcomes = queue.SimpleQueue()

    def call() -> None:
        try:
            outcomes.put((function(), None))
        except Exception as error:  # for the caller, who cannot see what happens in this thread
            outcomes.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        return outcomes.get(timeout=seconds)
    except queue.Empty:
        return None, TimeoutError()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """
    `error`, what it was raised from or during, and so on.

    Example:
        >>> try:
        ...     raise KeyError from ValueError()
        ... except KeyError as error:
        ...     [type(cause).__name__ for cause in causes(error)]
        ['KeyError', 'ValueError']
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
