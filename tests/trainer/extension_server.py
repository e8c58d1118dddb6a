"""A stand-in for a chat model that extends answers, on this machine, with faults by script."""

import contextlib
import json
import time

from tests.eval.judge_server import JudgeServer, Request


class ExtensionServer(JudgeServer):
    """
    As `JudgeServer`, which conversations are told apart by their first answer. Further faults are of what is replied:
    "fenced" (no fault), "no json", "one too few", "flipped", "other words", "too long", "empty", "cut off".
    """

    def handle(self, http):
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        turns = json.loads(body["messages"][1]["content"])
        key = turns[0]["answer"]
        with self.lock:
            self.requests.append(Request(key, time.monotonic(), http.headers["Authorization"], body))
            fault = self.faults[key].pop(0) if self.faults[key] else None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.answer(http, key, turns, fault)

    def answer(self, http, key, turns, fault):
        extended = [extend(turn["answer"]) for turn in turns]
        if fault == "one too few":
            extended = extended[:-1]
        elif fault == "flipped":
            extended[1] = extended[1].translate(str.maketrans("", "")).replace("Yes", "?").replace("No,", "Yes,")
            extended[1] = extended[1].replace("?", "No")
        elif fault == "other words":
            extended[0] = "The picture shows something that a reader of such pictures would know at once."
        elif fault == "too long":
            extended[0] += " and so on" * 40
        elif fault == "empty":
            extended[0] = ""
        elif fault not in (None, "fenced", "no json", "cut off"):
            self.respond(http, key, fault)
            return
        self.think()
        text = json.dumps({"extended_answers": extended})
        text = {"fenced": f"```json\n{text}\n```", "no json": "Certainly! Here they are."}.get(fault, text)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        choice["finish_reason"] = "length" if fault == "cut off" else "stop"
        usage = {"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 140}
        body = {"id": "1", "model": "extender", "created": 0, "choices": [choice], "usage": usage}
        self.send(http, 200, json.dumps(body))


def extend(answer):
    """A good extended answer."""
    if answer in ("yes", "no"):
        return f"{answer.capitalize()}, that is what a careful look at such an organ would tell a reader."
    return f"The organ in question is the {answer}, which lies where one would look for it in the body."
