"""A stand-in for a judge on this machine: OpenAI's chat completions over HTTP, with faults by script."""

import contextlib
import json
import re
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


ORDERS = ("reference_first", "model_first")
STALL = 20.0  # seconds at most; a stalled request ends with the server
TEXTS = {
    "not json": "<html>busy</html>",
    "half json": '{"choices": [{"message"',
    "a list": "[]",
    "null": "null",
    "no choices": '{"choices": [], "model": "judge-7"}',
    "choices null": '{"choices": null}',
    "no message": '{"choices": [{}]}',
    "no text": '{"choices": [{"message": {"role": "assistant", "content": null}}]}',
    "an error with status 200": '{"error": {"message": "overloaded", "code": 503}}',
}
CONTENTS = {"unreadable": "I cannot decide.", "off the scale": "11 0\nBoth.", "empty": ""}


@dataclass(frozen=True)
class Request:
    """What came in, and when: `key` is question id and order, `time` of `time.monotonic`."""

    key: tuple[str, str]
    time: float
    authorization: str | None
    body: dict = field(repr=False)


def make_question(number: int) -> dict:
    """A chat row whose texts tell the server which question it is, and which answer stands where."""
    return {
        "question_id": f"q{number}",
        "image": f"/images/{number}.png",
        "question": f"What does item q{number} show?",
        "answer": f"REFERENCE answer {number}, \u80ba.",
        "context": f"Fig. {number}. An invented case.",
        "domains": [["chest_xray"], ["histology", "gross"], ["mri"], []][number % 4],
        "groups": {"question_type": ("conversation", "detailed_description")[number % 2]},
    }


def make_prediction(number: int) -> str:
    return f"MODEL answer {number}."


def scores_of(question_id: str) -> tuple[int, int, int]:
    """Points of the reference, of the model, and what standing first adds to either: what the server judges by."""
    number = int(question_id.removeprefix("q"))
    return 5 + number % 4, 3 + number % 5, number % 2


class JudgeServer:
    """
    Context manager; `url` is where it listens.

    Args:
        faults: By question id and order, what happens to the first requests for it, one entry each: a status with or
            without `Retry-After` ("503", "429 after 0.5"), "stall", "drop", "cut", or a name in `TEXTS` or `CONTENTS`.
            Then it is answered. Without `Retry-After` a status asks for 10 ms.
        delay (`float`): Seconds that an answer takes.
        echo (`str`): Stands in every message of an error, in every reply and in the name of the model.
    """

    def __init__(self, faults=None, delay=0.0, echo=""):
        self.faults = defaultdict(list, {key: list(of_key) for key, of_key in (faults or {}).items()})
        self.delay, self.echo = delay, echo
        self.requests: list[Request] = []
        self.num_thinking = self.most_thinking = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.handle(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def count(self) -> Counter:
        """Number of requests by question id and order."""
        return Counter(request.key for request in self.requests)

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        arrived = time.monotonic()
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        order = ORDERS[content.index("MODEL answer") < content.index("REFERENCE answer")]
        key = re.search(r"item (q\d+)", content)[1], order
        with self.lock:
            self.requests.append(Request(key, arrived, http.headers["Authorization"], body))
            fault = self.faults[key].pop(0) if self.faults[key] else None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.respond(http, key, fault)

    def respond(self, http: BaseHTTPRequestHandler, key: tuple[str, str], fault: str | None) -> None:
        if fault is None:
            self.think()
            self.send(http, 200, self.completion(self.judge(*key)))
        elif fault in TEXTS:
            self.send(http, 200, TEXTS[fault])
        elif fault in CONTENTS:
            self.send(http, 200, self.completion(CONTENTS[fault]))
        elif fault == "stall":
            self.closing.wait(STALL)
        elif fault == "drop":
            http.connection.close()
        elif fault == "cut":
            self.send(http, 200, '{"choices"', length=1000)
        else:
            status, _, after = fault.partition(" ")
            headers = {"Retry-After": after.removeprefix("after ")} if after else {"retry-after-ms": "10"}
            self.send(http, int(status), self.error_text(), headers)

    def think(self) -> None:
        with self.lock:
            self.num_thinking += 1
            self.most_thinking = max(self.most_thinking, self.num_thinking)
        time.sleep(self.delay)
        with self.lock:
            self.num_thinking -= 1

    def judge(self, question_id: str, order: str) -> str:
        reference, model, first = scores_of(question_id)
        scores = (reference + first, model) if order == "reference_first" else (model + first, reference)
        return f"{scores[0]} {scores[1]}\nOf {question_id}, in 3 of 4 points.\u2028{self.echo}"

    def error_text(self) -> str:
        return json.dumps({"error": {"message": f"refused {self.echo}"}})

    def completion(self, text: str) -> str:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return json.dumps({"id": "1", "model": f"judge-7{self.echo}", "created": 0, "choices": [choice]})

    def send(self, http: BaseHTTPRequestHandler, status: int, text: str, headers=(), length=None) -> None:
        http.send_response(status)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(length or len(text.encode())))
        for name, value in dict(headers).items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(text.encode())
