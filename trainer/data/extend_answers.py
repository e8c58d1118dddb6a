"""
Make the extended answers that alignment needs: `logramed-extend DATA --endpoint URL --model NAME`.

Each conversation is sent to a chat model, which rewrites every answer with more context. Replies are checked for form,
length, polarity and key terms (see `extension_checks`); if one fails, the model is asked again, with the reason. Train
on data and output with `logramed-train --train_data DATA --extended_data OUTPUT`. To resume a stopped run, repeat the
command. The key of the endpoint, if it needs one, is read from `LOGRAMED_EXTEND_KEY`.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from logramed.eval.command_line import UserError, run_command
from logramed.eval.files import write_json_lines
from logramed.eval.judge_client import Fault, JudgeClient, JudgeRefusedError, JudgeSettings, Reply, in_threads
from logramed.eval.resumable_file import ResumableFile, check_settings
from logramed.trainer.data import load_training_rows
from logramed.trainer.data.collator import read_answer
from logramed.trainer.data.extension_checks import SCHEMA, ReplyError, read_reply


KEY_VARIABLE = "LOGRAMED_EXTEND_KEY"
PROMPT_FILE = Path(__file__).parent / "extension_prompt.txt"
REPLY_FORMAT = {"type": "json_schema", "json_schema": {"name": "extended_answers", "schema": SCHEMA, "strict": False}}
Ask = Callable[[list[dict]], Reply | Fault]


@dataclass(frozen=True)
class Conversation:
    """A row's id and its turns (role and text), which the output repeats."""

    row_id: str
    turns: list[tuple[str, str]]

    @property
    def answers(self) -> list[str]:
        return [text for role, text in self.turns if role == "assistant"]

    def as_request(self) -> str:
        questions = [text for role, text in self.turns if role == "user"]
        pairs = zip(questions, self.answers, strict=True)
        return json.dumps([{"question": question, "answer": answer} for question, answer in pairs], ensure_ascii=False)

    def extend(self, extended: Sequence[str]) -> dict[str, Any]:
        """The output row: the same conversation with the extended answers."""
        names, answers = {"user": "human", "assistant": "gpt", "system": "system"}, iter(extended)
        turns = [(role, next(answers) if role == "assistant" else text) for role, text in self.turns]
        return {
            "id": self.row_id,
            "conversations_long": [{"from": names[role], "value": text} for role, text in turns],
        }


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    rows = load_training_rows(
        arguments.data, image_folder=arguments.image_folder, require_extended=False, check_images=False
    )
    conversations = [
        Conversation(row["id"], [(message["role"], read_answer(message)) for message in row["messages"]])
        for row in rows.dataset
    ]
    output = Path(arguments.output)
    folder = output.with_suffix(".parts")
    file = ResumableFile(folder / "done.jsonl", [c.row_id for c in conversations], lambda row: row["id"], "row")
    check_settings(folder / "settings.json", describe_settings(arguments, rows.fingerprint), [file.path])
    missing = set(file.missing())
    wanted = [conversation for conversation in conversations if conversation.row_id in missing]
    try:
        failures = extend_all(wanted, file, open_client(arguments).ask, arguments)
    except JudgeRefusedError as error:
        raise UserError(
            f"{arguments.endpoint}: {error}. Check `--endpoint`, `--model` and the key in {KEY_VARIABLE}. Finished "
            "rows are kept; repeat the command to resume."
        ) from None
    done = file.finish()
    write_json_lines(output, done.values())
    failures_path = output.with_suffix(".failures.jsonl")
    write_json_lines(failures_path, failures)
    listed = f"; {len(failures)} failed, listed in {failures_path}" if failures else ""
    print(f"Wrote {len(done)} extended conversations to {output}{listed}.")
    return 1 if failures else 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="logramed-extend", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("data", help="training data in any form that `train.py` takes, except a stream")
    parser.add_argument("--image_folder", help="folder of the images, as for `train.py`")
    parser.add_argument("--endpoint", required=True, help="URL of a server with OpenAI's chat completions")
    parser.add_argument("--model", required=True, help="name of the model there")
    parser.add_argument("--output", default="extended_answers.jsonl", help="file for the extended conversations")
    parser.add_argument("--concurrency", type=int, default=8, help="maximum number of simultaneous requests")
    parser.add_argument("--max_revisions", type=int, default=3, help="maximum number of retries for a faulty reply")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for a reply")
    parser.add_argument("--max_tokens", type=int, default=4096, help="maximum number of tokens in a reply")
    arguments = parser.parse_args(argv)
    if Path(arguments.output).suffix != ".jsonl":
        parser.error(f"--output must end in .jsonl, got {arguments.output}")
    return arguments


@cache
def read_prompt() -> str:
    return PROMPT_FILE.read_text(encoding="utf-8").strip()


def extend_all(
    conversations: Sequence[Conversation], file: ResumableFile, ask: Ask, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Extend all conversations, several at once, and append each finished one to `file`; returns the failures."""
    failures = []

    def extend_one(conversation: Conversation) -> dict[str, Any] | str:
        return extend(conversation, ask, arguments.max_revisions)

    with file.open_for_append() as write_row:
        outcomes = in_threads(extend_one, conversations, arguments.concurrency)
        progress = tqdm(outcomes, total=len(conversations), desc="Extending", unit="row", disable=None)
        for conversation, outcome in progress:
            if isinstance(outcome, str):
                failures.append({"id": conversation.row_id, "reason": outcome})
            else:
                write_row(outcome)
    return sorted(failures, key=lambda failure: failure["id"])


def extend(conversation: Conversation, ask: Ask, max_revisions: int) -> dict[str, Any] | str:
    """
    The extended row of a conversation, or the reason why there is none.

    If a reply cannot be used, asks again with the reason, at most `max_revisions` times.
    """
    first = [
        {"role": "system", "content": read_prompt()},
        {"role": "user", "content": conversation.as_request()},
    ]
    messages, reason = first, ""
    for _ in range(max_revisions + 1):
        reply = ask(messages)
        if isinstance(reply, Fault):
            return reply.reason
        try:
            if reply.is_cut:
                raise ReplyError("The reply was cut off at `max_tokens`.")
            return conversation.extend(read_reply(reply.text, conversation.answers))
        except ReplyError as error:
            reason = str(error)
        told = f"That reply cannot be used. {reason} Reply again, to all turns, in the form asked for."
        messages = [*first, {"role": "assistant", "content": reply.text}, {"role": "user", "content": told}]
    return reason


def open_client(arguments: argparse.Namespace) -> JudgeClient:
    settings = JudgeSettings(
        url=arguments.endpoint,
        model=arguments.model,
        concurrency=arguments.concurrency,
        timeout=arguments.timeout,
        max_tokens=arguments.max_tokens,
    )
    return JudgeClient(settings, KEY_VARIABLE, {"response_format": REPLY_FORMAT})


def describe_settings(arguments: argparse.Namespace, fingerprint: str) -> dict[str, Any]:
    """Everything the extended answers depend on: the data, the model, and the prompt."""
    return {
        "data": fingerprint,
        "model": arguments.model,
        "endpoint": arguments.endpoint,
        "prompt_sha256": hashlib.sha256(PROMPT_FILE.read_bytes()).hexdigest(),
        "max_tokens": arguments.max_tokens,
    }


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
