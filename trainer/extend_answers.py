"""
Make the extended answers that alignment needs: `python trainer/extend_answers.py DATA --endpoint URL --model NAME`.

Each conversation is sent to a chat model, which writes every answer again with more context. Replies are checked for
form, length, polarity and key terms (see `extension_checks`), and asked for again with the reason where they fail. The
output goes with the data: `python trainer/train.py --train_data DATA --extended_data OUTPUT`. A run that was stopped
goes on with the same command. The key of the endpoint, if it needs one, is read from `LOGRAMED_EXTEND_KEY`.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from logramed.eval.command_line import ArgumentParser, run_command
from logramed.eval.files import only_one_writer, write_json, write_json_lines
from logramed.eval.judge_client import Fault, JudgeClient, JudgeRefusedError, JudgeSettings, Reply
from logramed.eval.model_names import naming_model
from logramed.eval.resumable_file import ResumableFile
from logramed.trainer.collator import read_answer
from logramed.trainer.data import load_training_rows
from logramed.trainer.extension_checks import SCHEMA, ReplyError, read_reply


KEY_VARIABLE = "LOGRAMED_EXTEND_KEY"
PROMPT_FILE = Path(__file__).parent / "extension_prompt.txt"
# For the estimate alone: characters of English text to a token, and tokens of one extended answer.
CHARACTERS_PER_TOKEN, TOKENS_PER_ANSWER = 4, 45
REPLY_FORMAT = {"type": "json_schema", "json_schema": {"name": "extended_answers", "schema": SCHEMA, "strict": False}}
Ask = Callable[[list[dict]], Reply | Fault]


@dataclass(frozen=True)
class Conversation:
    """A row's id and its turns, in the roles and texts that the output repeats."""

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
        """The row of the output: the same conversation with the extended answers."""
        names, answers = {"user": "human", "assistant": "gpt", "system": "system"}, iter(extended)
        turns = [(role, next(answers) if role == "assistant" else text) for role, text in self.turns]
        return {
            "id": self.row_id,
            "conversations_long": [{"from": names[role], "value": text} for role, text in turns],
        }


class Totals:
    """What a run has used and made so far; threads share it."""

    def __init__(self, input_price: float, output_price: float):
        self.prices = (input_price, output_price)
        self.num_prompt_tokens = self.num_reply_tokens = self.num_requests = 0
        self._lock = threading.Lock()

    def add(self, reply: Reply) -> None:
        with self._lock:
            self.num_requests += 1
            self.num_prompt_tokens += reply.num_prompt_tokens
            self.num_reply_tokens += reply.num_reply_tokens

    @property
    def cost(self) -> float:
        return price_of(self.num_prompt_tokens, self.num_reply_tokens, *self.prices)


class RateLimit:
    """
    Lets so many requests a minute begin, at even distances; threads wait their turn.

    Args:
        requests_per_minute (`float`): 0 for no limit.
    """

    def __init__(self, requests_per_minute: float):
        self.distance = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self.distance
        time.sleep(max(0.0, start - time.monotonic()))


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    rows = load_training_rows(
        arguments.data, image_folder=arguments.image_folder, require_extended=False, check_images=False
    )
    conversations = [read_conversation(row) for row in rows.dataset]
    if arguments.dry_run:
        print(describe_estimate(conversations, arguments))
        return 0
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_suffix(".parts")
    folder.mkdir(exist_ok=True)
    with only_one_writer(folder):
        check_settings(folder / "settings.json", describe_settings(arguments, rows.fingerprint))
        file = ResumableFile(folder / "done.jsonl", [c.row_id for c in conversations], lambda row: row["id"], "row")
        totals = Totals(arguments.price_per_million_input, arguments.price_per_million_output)
        missing = set(file.missing())
        wanted = [conversation for conversation in conversations if conversation.row_id in missing]
        try:
            failures = extend_all(wanted, file, choose_model(arguments), arguments, totals)
        except JudgeRefusedError as error:
            print(f"Stopped: {error}. What was made is kept; the same command goes on.", file=sys.stderr)
            return 1
        done = file.finish()
    write_json_lines(output, done.values())
    write_json_lines(failures_path(output), failures)
    print(describe_result(output, len(done), failures, totals))
    return 0 if not failures or arguments.allow_failures else 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="logramed-extend", description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("data", help="training data in any form that `train.py` takes but a stream")
    parser.add_argument("--image_folder", help="folder of the images, as for `train.py`")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--endpoint", help="URL of a server with OpenAI's chat completions")
    model.add_argument("--local_model", help="folder or Hub id of a chat model of transformers to run here")
    parser.add_argument("--model", help="name of the model at the endpoint")
    parser.add_argument("--output", default="extended_answers.jsonl", help="file of the extended conversations")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at the same time at most")
    parser.add_argument("--requests_per_minute", type=float, default=0.0, help="0 for no limit")
    parser.add_argument("--max_revisions", type=int, default=3, help="times that a faulty reply is asked for again")
    parser.add_argument("--max_attempts", type=int, default=6, help="attempts at a request that gets no reply")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds that a reply may take")
    parser.add_argument("--max_tokens", type=int, default=4096, help="tokens of a reply at most")
    parser.add_argument(
        "--price_per_million_input", type=float, default=0.0, help="of prompt tokens, in your currency"
    )
    parser.add_argument("--price_per_million_output", type=float, default=0.0, help="of reply tokens")
    parser.add_argument("--allow_failures", action="store_true", help="exit with 0 though some rows failed")
    parser.add_argument("--dry_run", action="store_true", help="print what it would take, and ask nothing")
    arguments = parser.parse_args(argv)
    if arguments.endpoint and not arguments.model:
        parser.error("--endpoint needs --model, the name of the model there")
    if Path(arguments.output).suffix != ".jsonl":
        parser.error(f"--output must end in .jsonl, got {arguments.output}")
    for name in ("concurrency", "max_attempts", "max_tokens"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return arguments


@cache
def read_prompt() -> str:
    return PROMPT_FILE.read_text(encoding="utf-8").strip()


def read_conversation(row: dict[str, Any]) -> Conversation:
    return Conversation(row["id"], [(message["role"], read_answer(message)) for message in row["messages"]])


def extend_all(
    conversations: Sequence[Conversation], file: ResumableFile, ask: Ask, arguments: argparse.Namespace, totals: Totals
) -> list[dict[str, Any]]:
    """Ask for all conversations at once, as far as that is allowed, and append each that is done; the failures."""
    failures = []
    progress = tqdm(total=len(conversations), desc="Extending", unit="row", disable=None)
    with ThreadPoolExecutor(arguments.concurrency) as pool, file.open_for_append() as write_row:
        futures = {
            pool.submit(extend, conversation, ask, arguments.max_revisions, totals): conversation
            for conversation in conversations
        }
        try:
            for future in as_completed(futures):
                outcome = future.result()
                if isinstance(outcome, str):
                    failures.append({"id": futures[future].row_id, "reason": outcome})
                else:
                    write_row(outcome)
                progress.update()
                progress.set_postfix(failed=len(failures), tokens=totals.num_reply_tokens, cost=f"{totals.cost:.2f}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.close()
    return sorted(failures, key=lambda failure: failure["id"])


def extend(conversation: Conversation, ask: Ask, max_revisions: int, totals: Totals) -> dict[str, Any] | str:
    """
    The extended row of a conversation, or why there is none.

    A reply that cannot be used is asked for again, at most `max_revisions` times, with the reason told to the model.
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
        totals.add(reply)
        try:
            if reply.is_cut:
                raise ReplyError("The reply was cut off at `max_tokens`.")
            return conversation.extend(read_reply(reply.text, conversation.answers))
        except ReplyError as error:
            reason = str(error)
        told = f"That reply cannot be used. {reason} Reply again, to all turns, in the form asked for."
        messages = [*first, {"role": "assistant", "content": reply.text}, {"role": "user", "content": told}]
    return reason


def choose_model(arguments: argparse.Namespace) -> Ask:
    if arguments.local_model:
        return ask_local_model(arguments.local_model, arguments.max_tokens)
    settings = JudgeSettings(
        url=arguments.endpoint,
        model=arguments.model,
        concurrency=arguments.concurrency,
        max_attempts=arguments.max_attempts,
        timeout=arguments.timeout,
        max_tokens=arguments.max_tokens,
    )
    limit = RateLimit(arguments.requests_per_minute)
    return JudgeClient(settings, KEY_VARIABLE, {"response_format": REPLY_FORMAT}, before_attempt=limit.wait).ask


def ask_local_model(name: str, max_tokens: int) -> Ask:
    """A model of transformers that runs here, one conversation at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # only a local model needs its weights

    with naming_model(name, "`--model`"):
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    lock = threading.Lock()

    def ask(messages: list[dict]) -> Reply:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        num_prompt_tokens = inputs["input_ids"].shape[1]
        with lock:
            sequence = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0, num_prompt_tokens:]
        text = tokenizer.decode(sequence, skip_special_tokens=True)
        return Reply(text, name, len(sequence) == max_tokens, num_prompt_tokens, len(sequence))

    return ask


def describe_settings(arguments: argparse.Namespace, fingerprint: str) -> dict[str, Any]:
    """What the extended answers depend on: the data, the model, and the prompt."""
    return {
        "data": fingerprint,
        "model": arguments.local_model or arguments.model,
        "endpoint": arguments.endpoint,
        "prompt_sha256": hashlib.sha256(PROMPT_FILE.read_bytes()).hexdigest(),
        "max_tokens": arguments.max_tokens,
    }


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run; refuse to go on with one that had others."""
    if not path.is_file():
        write_json(path, settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, value in settings.items() if before.get(name) != value]
    if changed:
        raise ValueError(
            f"{path.parent} holds answers made with another `{changed[0]}` ({before.get(changed[0])!r}, now "
            f"{settings[changed[0]]!r}). Give another `--output`, or delete that folder."
        )


def failures_path(output: Path) -> Path:
    return output.with_suffix(".failures.jsonl")


def price_of(num_prompt_tokens: int, num_reply_tokens: int, input_price: float, output_price: float) -> float:
    return (num_prompt_tokens * input_price + num_reply_tokens * output_price) / 1e6


def describe_estimate(conversations: Sequence[Conversation], arguments: argparse.Namespace) -> str:
    texts = sum(len(read_prompt()) + len(conversation.as_request()) for conversation in conversations)
    num_prompt = texts // CHARACTERS_PER_TOKEN
    num_reply = TOKENS_PER_ANSWER * sum(len(conversation.answers) for conversation in conversations)
    cost = price_of(num_prompt, num_reply, arguments.price_per_million_input, arguments.price_per_million_output)
    return (
        f"{len(conversations)} conversations, about {num_prompt:,} prompt tokens and {num_reply:,} reply tokens "
        f"(estimated from lengths, without retries): cost {cost:.2f}."
    )


def describe_result(output: Path, num_done: int, failures: list[dict], totals: Totals) -> str:
    listed = f"; {len(failures)} failed, listed in {failures_path(output)}" if failures else ""
    return (
        f"Wrote {num_done} extended conversations to {output}{listed}. This run: {totals.num_requests} requests, "
        f"{totals.num_prompt_tokens:,} prompt and {totals.num_reply_tokens:,} reply tokens, cost {totals.cost:.2f}."
    )


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
