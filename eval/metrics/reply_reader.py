"""
The answer that a model's reply gives: without the reasoning before it, the marks around it and the words of templates.

What is reasoning is taken strictly: tags that open and do not close, or close and were not opened, count too.
"""

from __future__ import annotations

import ast
import json
import re


HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # the Han characters of every block
_ZERO_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_ZERO_TO_TEN)}

# Tags and tokens around the thoughts of models that reason first, as their templates write them.
_NAMES = r"think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad|seed:think"
_OPENS = re.compile(
    rf"<(?:{_NAMES})>|\[think\]|◁think▷|<\|begin_of_thought\|>|<unused94>(?:thought\b)?", re.IGNORECASE
)
_CLOSES = re.compile(rf"</(?:{_NAMES})>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<unused95>", re.IGNORECASE)
# Channels of a reply, with their special tokens or with what is left without these.
_FINAL_CHANNEL = re.compile(r".*(?:<\|channel\|>final(?:<\|message\|>)?|^analysis.*assistantfinal)", re.DOTALL)
_OTHER_CHANNEL = re.compile(r"<\|channel\|>(?:analysis|commentary)")

_ANSWER_TAG = re.compile(r"<(answer|final_answer|final|ans)>(.*?)(?:</\1>|(?=<\1>)|\Z)", re.IGNORECASE | re.DOTALL)
_BOX = re.compile(r"\\f?boxed\s*\{((?:[^{}]|\{[^{}]*\})*)")
_LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}|\\[()\[\]]|\$")
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_LAST_OBJECT = re.compile(r"\{[^{}]*\}\s*$")
_KEYS = ("answer", "finalanswer", "correctanswer", "choice", "option", "prediction", "response", "result", "答案")

# What chat templates leave before an answer, or models announce it with, and what begins the next turn or follows the
# end of the text.
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
    The answer alone.

    In this order: reasoning is left out; of what remains, the last `<answer>...</answer>`, the last `\boxed{...}` or
    the `answer` of a JSON object is taken, also within each other; without one of these, all of it but role words.

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
    What follows the thoughts of a model that reasons first, or stands around them. Thoughts that were cut off, and
    what stands before a closing tag, are left out too.

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
    if closed and not reply[closed[-1] :].strip():  # the thoughts stand behind the answer
        reply = _without_pairs(reply)
    elif closed:
        reply = reply[closed[-1] :]
    opened = _OPENS.search(reply)
    return (reply[: opened.start()] if opened else reply).strip()


def _without_pairs(reply: str) -> str:
    """What stands outside opened and closed thoughts; nothing of what stands before a close that was not opened."""
    kept, place = "", 0
    for closes in _CLOSES.finditer(reply):
        opens = _OPENS.search(reply, place, closes.start())
        kept = kept + reply[place : opens.start()] if opens else ""
        place = closes.end()
    return kept + reply[place:]


def strip_role_words(text: str) -> str:
    """
    The answer alone: no "Assistant:", "Answer:" or `<|assistant|>` before it, no "### Human:" or `</s>` after it.

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
    """The answer in an object that is all of the text or its end, also as Python writes it."""
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
    """The object that `text` is, as JSON or Python write it; empty if it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            content = read(text) if text.startswith("{") else None
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(content, dict):
            return content
    return {}
