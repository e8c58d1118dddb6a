"""
Asking a judge model over the network, through the `openai` package and its retries.

`JudgeClient` speaks to any server with OpenAI's chat completions.
"""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from logramed.eval.command_line import UserError


KEY_VARIABLE = "LOGRAMED_JUDGE_KEY"
NO_KEY = "no-key"  # `openai` sends some key always
# No valid key, no money, no permission, no such URL or model, no POST there: no other request can do better.
STATUSES_THAT_STOP = (401, 402, 403, 404, 405)
NUM_SHOWN = 200  # characters of a server's message that are shown


class JudgeRefusedError(UserError):
    """The judge cannot be asked at all, as with a wrong key, URL or model."""


@dataclass(frozen=True)
class JudgeSettings:
    """
    Which judge, and how it is asked.

    The key is no setting: it is read from the environment variable `LOGRAMED_JUDGE_KEY`, and sent to `url` only.

    Args:
        url (`str`): Base of a server with OpenAI's chat completions, such as "http://localhost:8000/v1".
        model (`str`): Name of the judge there.
        concurrency (`int`): Requests at the same time at most.
        max_attempts (`int`): Attempts at a request that gets no answer. Waits between them grow to 8 seconds, or are
            what the server asks for, up to two minutes.
        timeout (`float`): Seconds without a byte after which an attempt is given up.
        max_tokens (`int`): Tokens of a reply at most. A judge that reasons first needs more.

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


@dataclass(frozen=True)
class Reply:
    """
    What the judge said, by the name that the server gave it; whether `max_tokens` cut it off; and the tokens of the
    prompt and of the reply by the server's count, 0 where it gives none.
    """

    text: str
    model: str
    is_cut: bool = False
    num_prompt_tokens: int = 0
    num_reply_tokens: int = 0


@dataclass(frozen=True)
class Fault:
    """Why there is no reply, in words, without the key."""

    reason: str


class JudgeClient:
    """
    Asks one judge, from several threads if need be.

    Args:
        settings (`JudgeSettings`): Which judge, and how it is asked.

    Raises:
        ImportError: If `openai` is not installed.
    """

    def __init__(self, settings: JudgeSettings):
        try:
            import openai
        except ImportError as error:
            raise ImportError("Asking a judge needs openai: `pip install 'logramed[judge]'`.") from error
        self.settings, self._openai = settings, openai
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        self._client = openai.OpenAI(
            base_url=settings.url,
            api_key=self._key or NO_KEY,
            timeout=settings.timeout,
            max_retries=settings.max_attempts - 1,
        )

    def ask(self, messages: list[dict]) -> Reply | Fault:
        """
        The judge's reply to the `messages` of a chat, or why there is none after the last attempt.

        Raises:
            JudgeRefusedError: If no request to this judge can succeed.
        """
        try:
            completion = self._client.chat.completions.create(
                messages=messages,
                model=self.settings.model,
                temperature=0.0,
                max_tokens=self.settings.max_tokens,
            )
            return self._read(completion)
        except self._openai.APIStatusError as error:
            said = error.body.get("message", "") if isinstance(error.body, dict) else error.body or ""
            if error.status_code == 401:  # without the server's message, which may show a part of the key
                said = f"{KEY_VARIABLE} is {'not accepted' if self._key else 'not set'}"
            reason = f"HTTP {error.status_code}: {self._redact(str(said))}"
            if error.status_code in STATUSES_THAT_STOP:
                raise JudgeRefusedError(reason) from None
            return Fault(reason)
        except self._openai.APITimeoutError:
            return Fault(f"no reply within {self.settings.timeout:g} s")
        except self._openai.APIConnectionError as error:
            raise JudgeRefusedError(f"{self.settings.url}: {self._redact(str(error.__cause__ or error))}") from None
        except (ValueError, TypeError, AttributeError, LookupError):
            # Not the error's text: it may quote the response.
            return Fault("the response holds no reply")

    def _read(self, completion: object) -> Reply:
        choice, usage = completion.choices[0], completion.usage
        if not isinstance(choice.message.content, str):
            raise TypeError("no text")
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        model = completion.model or self.settings.model
        return Reply(choice.message.content, model, choice.finish_reason == "length", *counts)

    def _redact(self, text: str) -> str:
        return (text.replace(self._key, "[key]") if self._key else text)[:NUM_SHOWN].strip()
