"""
Extract the answer from a model's reply, without reasoning, markup around it and words of chat templates.

Unbalanced reasoning tags, which are only opened or only closed, count as reasoning too.
"""

from __future__ import annotations

import ast
import json
import re


HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # the Han characters of every block
_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_ZERO_TO_TEN)}

# Tags and tokens around the reasoning of models, as in their templates.
_NAMES = r"think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad|seed:think"
_OPENS = re.compile(
    rf"<(?:{_NAMES})>|\[think\]|◁think▷|<\|begin_of_thought\|>|<unused94>(?:thought\b)?", re.IGNORECASE
)
_CLOSES = re.compile(rf"</(?:{_NAMES})>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<unused95>", re.IGNORECASE)
# Channels of a reply, with special tokens or with what is left after removing them.
_FINAL_CHANNEL = re.compile(r".*(?:<\|channel\|>final(?:<\|message\|>)?|^analysis.*assistantfinal)", re.DOTALL)
_OTHER_CHANNEL = re.compile(r"<\|channel\|>(?:analysis|commentary)")

_ANSWER_TAG = re.compile(r"<(answer|final_answer|final|ans)>(.*?)(?:</\1>|(?=<\1>)|\Z)", re.IGNORECASE | re.DOTALL)
_BOX = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{[^{}]*\})*)")
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}|\\[()\[\]]|\$")
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_LAST_OBJECT = re.compile(r"\{[^{}]*\}\s*$")
_KEYS = ("answer", "finalanswer", "correctanswer", "choice", "option", "prediction", "response", "result", "答案")

# What templates or models write before an answer, and what begins the next turn or follows the end of the text.
_ROLE = re.compile(
    r"^[\s#*]*(?:<\|\w+\|>|<s>|\[/inst\]"
    r"|(?:assistant|(?:final )?answer|response|gpt|bot|ai|助手|答案|回答|答)[ *]*[:\uff1a\n][\s*]*"
    r"|(?:the )?(?:(?:final|correct|right|best) )?answer is\s*[:\uff1a]\s*"
    r"|(?:正确|最终)?(?:的)?(?:答案|回答|选项)(?:应该|应当)?[是为][\s:\uff1a]*(?=\S))",
    re.IGNORECASE,
)
_NEXT_TURN = re.compile(
    r"(?:#{2,}\s*(?:human|user|assistant)\b|\s(?:human|user)\s*:|</s>|<\|\w+\|>).*",
    re.IGNORECASE | re.DOTALL,
)


def read_reply(reply: str) -> str:
    r"""
    Extract the answer from a reply.

    Removes reasoning, then takes the last `<answer>...</answer>`, the last `\boxed{...}` or the `answer` of a JSON
    object, also nested; without any of these, the whole text without role words.

    Example:
        >>> [read_reply(reply) for reply in ("<think>A? No.</think> B", "so it is <answer>B</answer>", r"\boxed{B}")]
        ['B', 'B', 'B']
        >>> [read_reply(reply) for reply in ('{"answer": "B"}', "正确答案是B", "Assistant: B</s>", "<think>A, or")]
        ['B', 'B', 'B', '']
    """
    text = without_reasoning(reply)
    while True:
        found = (find(text) for find in (_in_tags, _in_a_box, _in_json))
        inner = next((answer for answer in found if answer is not None), None)
        if inner is None:
            return strip_role_words(text)
        text = inner


def without_reasoning(reply: str) -> str:
    """
    Remove the reasoning of a model from its reply. Reasoning that was cut off, and text before an unopened closing
    tag, are removed too.

    Example:
        >>> without_reasoning("3 or 4?</think>8 7"), without_reasoning("<think>3 4, or rather")
        ('8 7', '')
        >>> without_reasoning("8 7 <think>Why? The first is longer.</think>")
        '8 7'
    """
    channels = _FINAL_CHANNEL.match(reply)
    if channels:
        reply = reply[channels.end() :]
    elif _OTHER_CHANNEL.search(reply):
        return ""
    closed = [match.end() for match in _CLOSES.finditer(reply)]
    if closed and not reply[closed[-1] :].strip():  # the reasoning follows the answer
        reply = _without_pairs(reply)
    elif closed:
        reply = reply[closed[-1] :]
    opened = _OPENS.search(reply)
    return (reply[: opened.start()] if opened else reply).strip()


def _without_pairs(reply: str) -> str:
    """The text outside pairs of reasoning tags; text before an unopened closing tag is dropped."""
    kept, place = "", 0
    for closes in _CLOSES.finditer(reply):
        opens = _OPENS.search(reply, place, closes.start())
        kept = kept + reply[place : opens.start()] if opens else ""
        place = closes.end()
    return kept + reply[place:]


def strip_role_words(text: str) -> str:
    """
    Strip "Assistant:", "Answer:" or `<|assistant|>` before an answer, and "### Human:" or `</s>` after it.

    Example:
        >>> strip_role_words("### Assistant: Yes ### Human: Why?"), strip_role_words("<|assistant|> Yes</s>")
        ('Yes', 'Yes')
    """
    shorter = _ROLE.sub("", text)
    while shorter != text:
        text, shorter = shorter, _ROLE.sub("", shorter)
    return _NEXT_TURN.sub("", text).strip()


def _in_tags(text: str) -> str | None:
    found = [match[2].strip() for match in _ANSWER_TAG.finditer(text) if match[2].strip()]
    return found[-1] if found else None


def _in_a_box(text: str) -> str | None:
    boxes = _BOX.findall(text)
    return _LATEX.sub(lambda match: match[1] or "", boxes[-1]).strip() or None if boxes else None


def _in_json(text: str) -> str | None:
    """The answer in a JSON or Python dict that is the whole text or its end."""
    bare = _FENCE.sub("", text.strip())
    found = _LAST_OBJECT.search(bare)
    for candidate in (bare, found[0] if found else ""):
        content = _parse(candidate)
        by_key = {re.sub(r"[\W_]", "", str(key)).casefold(): value for key, value in content.items()}
        for key in _KEYS:
            value = by_key.get(key)
            if isinstance(value, bool):
                return "yes" if value else "no"
            if isinstance(value, str | int | float) and str(value).strip():
                return str(value).strip()
    return None


def _parse(text: str) -> dict:
    """Parse `text` as a JSON or Python dict; empty if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(text) if text.startswith("{") else None
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(content, dict):
            return content
    return {}
