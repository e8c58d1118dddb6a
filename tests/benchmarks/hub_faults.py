"""
Publishing and loading while the Hub fails: what comes out of each fault.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.hub_faults

A tiny model in several files is pushed to, or downloaded from, a server that speaks the Hub's protocol and goes wrong
as asked. The table says whether the model was published, in how many commits, how many files were sent again, and, of
a failure, in which words.
"""

import hashlib
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download

from logramed.hub_cards.integrity import find_changes
from logramed.hub_cards.publications import prepare
from logramed.hub_cards.push import Push, PushError
from tests.hub_client import client_of
from tests.hub_server import READ_TOKEN, TOKEN, Fault, RunningHub, running_hub
from tests.tiny import tiny_processor
from tests.tiny_models import tiny_model


REPO = "tester/logramed-mini"
COMMIT, UPLOAD, PREUPLOAD, CDN = "/commit/", "/lfs/", "/preupload/", "/cdn/"
# More than huggingface_hub tries a single request.
PERSISTENT, FOREVER = 7, 10_000


@dataclass
class Trial:
    """
    One fault.

    Args:
        said (`str`): What goes wrong.
        faults (`Callable`): Gives it.
        outcome (`str`): What should come out: `"published"`, `"refused"`, `"loaded"` or `"noticed"`, or two of them
            with " or " between, where it depends on the moment.
        token (`str`): That the client has.
        restart_at (`str`, *optional*): The server is stopped at the first request with this in its path, and started
            anew.
        words (`str`): What a refusal says.
        again (`bool`): The same command afterwards, without the fault, must succeed.
    """

    said: str
    outcome: str
    faults: Callable[[], list[Fault]] = list
    token: str = TOKEN
    restart_at: str | None = None
    words: str = ""
    again: bool = False


PUSHES = [
    Trial("none", "published"),
    Trial("connection dropped once in an upload", "published", lambda: [Fault(UPLOAD, "drop", "PUT")]),
    Trial("dropped in an upload, longer", "published", lambda: [Fault(UPLOAD, "drop", "PUT", PERSISTENT)]),
    Trial("dropped before the commit", "published", lambda: [Fault(COMMIT, "drop")]),
    Trial("the commit's answer lost", "published", lambda: [Fault(COMMIT, "drop_after")]),
    Trial("a byte of an upload flipped", "published", lambda: [Fault(UPLOAD, "flip", "PUT")]),
    Trial(
        "429 with Retry-After, twice",
        "published",
        lambda: [Fault(PREUPLOAD, 429, times=2, headers={"Retry-After": "1"})],
    ),
    Trial("500 at the commit, twice", "published", lambda: [Fault(COMMIT, 500, times=2)]),
    Trial("503 of the LFS endpoint, once", "published", lambda: [Fault("/objects/batch", 503)]),
    Trial("server restarted in the upload", "published", restart_at=UPLOAD),
    Trial("server restarted before the commit", "published", restart_at=COMMIT),
    Trial("502 for ever", "refused", lambda: [Fault(COMMIT, 502, times=FOREVER)], words="goes on where", again=True),
    Trial(
        "dropped for ever in uploads",
        "refused",
        lambda: [Fault(UPLOAD, "drop", "PUT", FOREVER)],
        words="goes on where",
        again=True,
    ),
    Trial("401: unknown token", "refused", token="hf_unknown", words="does not know this token", again=True),
    Trial("403: token for reading", "refused", token=READ_TOKEN, words="may not write there", again=True),
]
DOWNLOADS = [
    Trial("none", "loaded"),
    Trial("connection dropped once", "loaded", lambda: [Fault(CDN, "drop", "GET")]),
    Trial("download cut in the middle", "loaded", lambda: [Fault(CDN, "cut", "GET")]),
    # huggingface_hub asks for a file once, whatever the status.
    Trial("503, once", "refused", lambda: [Fault(CDN, 503, "GET")], words="503", again=True),
    Trial("429, once", "loaded", lambda: [Fault("/tree/", 429, "GET")]),
    Trial("server restarted in the download", "loaded or refused", restart_at=CDN, again=True),
    Trial("a byte of a download flipped", "noticed", lambda: [Fault(CDN, "flip", "GET")], words="has another content"),
    Trial("401: private, no token", "refused", token="hf_unknown", words="401", again=True),
]


@dataclass
class Outcome:
    """What came of a trial."""

    result: str
    num_commits: int = 0
    num_uploads: dict[str, int] = field(default_factory=dict)
    words: str = ""


def save_model(folder: Path) -> Path:
    """A tiny model in several weight files, and its processor."""
    tiny_model(text_sizes={"vocab_size": 84}).save_pretrained(folder, max_shard_size="40KB")
    tiny_processor().save_pretrained(folder)
    return folder


def restart_at_request(hub: RunningHub, text: str) -> threading.Thread:
    """Stop and start `hub` as soon as a request with `text` in its path has come; the thread that does it."""

    def restart():
        while not any(text in request for request in hub.hub.requests):
            time.sleep(0.002)
        hub.stop()
        hub.start()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    return thread


def try_push(trial: Trial, model: Path, hub: RunningHub) -> Outcome:
    """Publish `model` while `trial` goes wrong."""
    hub.hub.faults, hub.hub.requests = trial.faults(), []
    thread = restart_at_request(hub, trial.restart_at) if trial.restart_at else None
    said: list[str] = []
    with client_of(hub, trial.token, waits=trial.restart_at is not None):
        try:
            Push(prepare(model, REPO, license="apache-2.0"), REPO).run(lambda question: True, said.append)
            result, words = "published", ""
        except PushError as error:
            result, words = "refused", str(error)
    if thread is not None:
        thread.join()
    hub.hub.faults = []
    repo = hub.hub.read("models", REPO)
    uploads: dict[str, int] = {}
    for request in hub.hub.requests:
        if request.startswith(f"PUT {UPLOAD}"):
            uploads[request] = uploads.get(request, 0) + 1
    return Outcome(result, len(repo["commits"]) - 1 if repo else 0, uploads, words)


def try_download(trial: Trial, hub: RunningHub, cache: Path) -> Outcome:
    """Download what `hub` has while `trial` goes wrong, and check it."""
    hub.hub.faults, hub.hub.requests = trial.faults(), []
    thread = restart_at_request(hub, trial.restart_at) if trial.restart_at else None
    with client_of(hub, trial.token, waits=trial.restart_at is not None):
        try:
            folder = Path(snapshot_download(REPO, cache_dir=cache, max_workers=1))
            changes = find_changes(folder)
            outcome = Outcome("noticed" if changes else "loaded", words=" ".join(changes))
        except Exception as error:  # the client's own errors, of many types
            outcome = Outcome("refused", words=f"{type(error).__name__}: {error}")
    if thread is not None:
        thread.join()
    hub.hub.faults = []
    return outcome


def holds(model: Path, hub: RunningHub) -> bool:
    """Whether what `hub` has are the weights of `model`."""
    files = hub.hub.files("models", REPO)
    return all(
        hashlib.sha256(files.get(path.name, b"")).digest() == hashlib.sha256(path.read_bytes()).digest()
        for path in model.glob("*.safetensors")
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = save_model(folder / "model")
        print("| fault | outcome | commits | files sent more than once | words |")
        print("| --- | --- | --- | --- | --- |")
        for number, trial in enumerate(PUSHES):
            with running_hub(folder / f"hub_{number}") as hub:
                outcome = try_push(trial, model, hub)
                again = try_push(Trial("", ""), model, hub).result if trial.again else ""
                is_whole = outcome.result == "refused" or holds(model, hub)
            repeated = sum(count > 1 for count in outcome.num_uploads.values())
            result = f"{outcome.result}{'' if is_whole else ', NOT WHOLE'}{f'; again: {again}' if again else ''}"
            print(f"| push: {trial.said} | {result} | {outcome.num_commits} | {repeated} | {shorten(outcome.words)} |")
        with running_hub(folder / "hub") as hub:
            try_push(PUSHES[0], model, hub)
            for number, trial in enumerate(DOWNLOADS):
                outcome = try_download(trial, hub, folder / f"cache_{number}")
                again = ""
                if trial.again and outcome.result == "refused":
                    again = try_download(Trial("", ""), hub, folder / f"cache_{number}").result
                result = f"{outcome.result}{f'; again: {again}' if again else ''}"
                print(f"| load: {trial.said} | {result} | | | {shorten(outcome.words)} |")


def shorten(words: str) -> str:
    return " ".join(words.split())[:160].replace("|", "\\|")


if __name__ == "__main__":
    main()
