"""Tests of asking a judge: when to ask again, how long to wait, when to stop, and that the key stays secret."""

import logging
import threading
import time
import traceback
from itertools import pairwise

import huggingface_hub.constants
import pytest

from logramed.eval import judge_client
from logramed.eval.judge_client import (
    KEY_VARIABLE,
    Fault,
    JudgeClient,
    JudgeRefusedError,
    JudgeSettings,
    redact,
    retry_after,
    within,
)
from logramed.eval.judging import build_messages, judge_answers
from logramed.eval.metrics.medical_chat_judge.reply_parsing import parse_scores
from tests.eval.judge_server import STALL, TEXTS, JudgeServer, make_prediction, make_question


SECRET = "sk-judge-4f9c21aa07b3"
HUB_TOKEN = "hf_invented0token0of0nobody"
KEY = ("q1", "reference_first")
MESSAGES = build_messages(make_question(1), make_prediction(1), "reference_first")
OTHER_MESSAGES = build_messages(make_question(2), make_prediction(2), "reference_first")


@pytest.fixture(autouse=True)
def _network_on_this_machine(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def make_client(server, **settings):
    return JudgeClient(JudgeSettings(**{"url": server.url, "model": "judge", "first_wait": 0.01} | settings))


def ask(server, messages=MESSAGES, **settings):
    return make_client(server, **settings).ask(messages, check=parse_scores, label="question q1")


# Asking again


@pytest.mark.parametrize("fault", [*TEXTS, "500", "502", "503", "408", "429", "drop", "cut", "unreadable", "empty"])
def test_faults_that_pass_are_asked_again(fault):
    with JudgeServer(faults={KEY: [fault] * 2}) as server:
        reply = ask(server)
        assert (reply.attempts, len(server.requests)) == (3, 3)
        assert reply.text.startswith("7 4\nOf q1")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("503", "HTTP 503: refused"),
        ("429", "HTTP 429: refused"),
        ("not json", "the response holds no reply"),
        ("no choices", "the response holds no reply"),
        ("null", "the response holds no reply"),
        ("drop", "the request failed (RemoteProtocolError: Server disconnected without sending a response.)"),
        ("off the scale", "scores 11 and 0 are not on the scale of 1 to 10: '11 0\\nBoth.'"),
    ],
)
def test_a_fault_that_does_not_pass_gives_its_reason_after_the_last_attempt(fault, reason):
    with JudgeServer(faults={KEY: [fault] * 9}) as server:
        assert ask(server, max_attempts=3).reason == reason
        assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_a_reply_that_stalls_is_given_up_in_time_and_asked_again(fault):
    with JudgeServer(faults={KEY: [fault]}) as server:
        start = time.monotonic()
        assert ask(server, timeout=0.3).attempts == 2
        assert 0.3 <= time.monotonic() - start < STALL


def test_a_stall_to_the_end_says_how_long_was_waited():
    with JudgeServer(faults={KEY: ["stall"] * 2}) as server:
        assert ask(server, timeout=0.2, max_attempts=2) == Fault("no reply within 0.2 s")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": " No such model. ", "code": 404}}', "No such model."),
        ('{"error": "No such model."}', "No such model."),
        ('{"object": "error", "message": "No such model."}', "No such model."),
        ('{"detail": "Not Found"}', "Not Found"),
        ("[]", ""),
        ("{}", ""),
        ('{"error": {}}', ""),
        ("<html>Not Found</html>", ""),
    ],
)
def test_an_error_says_what_the_server_said(body, message):
    with JudgeServer(faults={KEY: ["404"]}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "error_text", lambda: body)
        with pytest.raises(JudgeRefusedError) as refusal:
            ask(server)
    assert str(refusal.value) == ("HTTP 404: " + message if message else "HTTP 404")


def test_no_server_is_no_connection():
    with JudgeServer() as server:
        pass
    fault = ask(server, max_attempts=2)
    assert fault.reason.startswith("the request failed (ConnectError: ")


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_request_that_the_server_cannot_take_is_not_repeated(status):
    with JudgeServer(faults={KEY: [status]}) as server:
        fault = ask(server)
        assert (fault.reason, fault.passes) == (f"HTTP {status}: refused", False)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401", f"HTTP 401: {KEY_VARIABLE} is not set"),
        ("402", "HTTP 402: refused"),
        ("403", "HTTP 403: refused"),
        ("404", "HTTP 404: refused"),
    ],
)
def test_a_judge_that_cannot_be_asked_at_all_stops_everything(status, words):
    with JudgeServer(faults={KEY: [status]}) as server:
        client = make_client(server)
        with pytest.raises(JudgeRefusedError, match=words):
            client.ask(MESSAGES, check=parse_scores, label="")
        assert client.ask(OTHER_MESSAGES, check=parse_scores, label="").reason == "the run was stopped"
        assert len(server.requests) == 1


def test_offline_mode_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with JudgeServer() as server, pytest.raises(JudgeRefusedError, match="unset HF_HUB_OFFLINE"):
        ask(server)


def test_a_judge_that_only_fails_is_not_asked_for_ever():
    with JudgeServer(faults={KEY: ["503"] * 99}) as server:
        client = make_client(server, max_attempts=1)
        reasons = [client.ask(MESSAGES, check=parse_scores, label="").reason for _ in range(21)]
        assert reasons == ["HTTP 503: refused"] * 20 + ["not asked: 20 judgements in a row before it failed"]
        assert len(server.requests) == 20


def test_a_reply_starts_the_count_of_failures_anew():
    with JudgeServer(faults={KEY: ["503"] * 38}) as server:
        client = make_client(server, max_attempts=1)
        for messages in [MESSAGES] * 19 + [OTHER_MESSAGES] + [MESSAGES] * 19:
            client.ask(messages, check=parse_scores, label="")
        assert client.ask(MESSAGES, check=parse_scores, label="").text.startswith("7 4")


# Waiting


def test_waits_double_and_have_a_random_part(monkeypatch):
    waits = []
    monkeypatch.setattr(JudgeClient, "_wait", lambda self, seconds: waits.append(seconds))
    with JudgeServer(faults={KEY: ["503"] * 8}) as server:
        ask(server, max_attempts=9, first_wait=1.0)
    assert waits[0] == 0.0
    for number, wait in enumerate(waits[1:]):
        assert 0.5 * min(2**number, 60) <= wait <= min(2**number, 60)
    assert len({wait / 2**number for number, wait in enumerate(waits[1:7])}) == 6


@pytest.mark.parametrize(
    ("fault", "seconds"), [("429 after 0.5", 0.5), ("503 after 0.5", 0.5), ("429 at a date", 0.0)]
)
def test_retry_after_is_honoured(fault, seconds):
    with JudgeServer(faults={KEY: [fault]}) as server:
        assert ask(server).attempts == 2
    first, second = (request.time for request in server.requests)
    assert seconds <= second - first < 3.0


def test_a_rate_limit_silences_all_threads():
    with JudgeServer(faults={KEY: ["429 after 1"]}) as server:
        client = make_client(server)
        limited = threading.Thread(target=client.ask, args=(MESSAGES, parse_scores, ""))
        limited.start()
        while not server.requests:
            time.sleep(0.005)
        time.sleep(0.3)
        client.ask(OTHER_MESSAGES, check=parse_scores, label="")
        limited.join()
    limited_at, *later = (request.time for request in server.requests)
    assert len(later) == 2
    assert min(later) - limited_at >= 1.0


def test_a_server_that_wants_too_long_a_pause_is_not_waited_for():
    with JudgeServer(faults={KEY: ["429 after 3600"]}) as server:
        client = make_client(server)
        for messages in (MESSAGES, OTHER_MESSAGES):
            fault = client.ask(messages, check=parse_scores, label="")
            assert fault.reason in (
                "the server asks to be left alone for 3600 s",
                "the server asks to be left alone for 3599 s",
            )
        assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["", "soon", "-5", "nan", "inf", "Wed, 99 Oct 2015 07:28:00 GMT"])
def test_retry_after_that_makes_no_sense_is_none(value):
    assert retry_after(value) == 0.0


def test_within_passes_on_what_a_function_raises_and_gives_up_in_time():
    assert isinstance(within(1.0, lambda: 1 / 0)[1], ZeroDivisionError)
    may_end = threading.Event()
    assert isinstance(within(0.05, lambda: may_end.wait(STALL))[1], TimeoutError)
    may_end.set()


# The key


def everything_said(error):
    chain = []
    while error is not None:
        chain += [str(error), repr(error), *traceback.format_exception(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(chain)


@pytest.mark.parametrize("echo", [SECRET, f"Bearer {SECRET}", f"{SECRET[:12]}...", f"...{SECRET[-9:]}"])
def test_the_key_is_sent_but_reaches_no_file_log_result_or_error(tmp_path, monkeypatch, caplog, capfd, echo):
    monkeypatch.setenv(KEY_VARIABLE, f" {SECRET}\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_DEBUG", True)
    caplog.set_level(logging.DEBUG)
    questions, predictions = [make_question(1), make_question(2)], {"q1": make_prediction(1), "q2": make_prediction(2)}
    faults = {KEY: ["503"], ("q2", "model_first"): ["400"], ("q1", "model_first"): ["not json", "429", "drop"]}
    with JudgeServer(faults=faults, echo=echo) as server:
        settings = JudgeSettings(url=server.url, model="judge", first_wait=0.01)
        results = judge_answers(questions, predictions, settings, tmp_path / "judgements.jsonl")
        assert {request.authorization for request in server.requests} == {f"Bearer {SECRET}"}
        client = JudgeClient(settings)
        said = [repr(results), repr(settings), repr(client), str(vars(settings)), repr(client._client)]
    for status in ("401", "403", "404"):
        with (
            JudgeServer(faults={("q2", "model_first"): [status]}, echo=echo) as server,
            pytest.raises(JudgeRefusedError) as refusal,
        ):
            judge_answers(
                questions, predictions, JudgeSettings(url=server.url, model="judge"), tmp_path / "judgements.jsonl"
            )
        said.append(everything_said(refusal.value))
    said += [file.read_bytes().decode() for file in tmp_path.iterdir()]
    said += [record.getMessage() + str(record.args) + str(record.exc_text) for record in caplog.records]
    said += capfd.readouterr()
    assert any("[key]" in text for text in said)
    assert len(caplog.records) > 10
    for text in said:
        assert not any(SECRET[start : start + 8] in text for start in range(len(SECRET) - 7))


def test_without_a_key_the_hub_token_is_not_sent(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    (tmp_path / "token").write_text(HUB_TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with JudgeServer() as server:
        ask(server)
        assert HUB_TOKEN not in str([request.authorization for request in server.requests])


@pytest.mark.parametrize("key", ["sk-\u00e9t\u00e9-4f9c21aa", "sk-judge 4f9c21aa", "sk-judge\n4f9c21aa"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with JudgeServer() as server, pytest.raises(ValueError, match="printable ASCII") as refusal:
        make_client(server)
    assert "4f9c21aa" not in everything_said(refusal.value)


def test_a_refused_key_is_named():
    with JudgeServer(faults={KEY: ["401"]}) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, SECRET)
        with pytest.raises(JudgeRefusedError, match=f"{KEY_VARIABLE} is not accepted"):
            ask(server)


def test_redact_leaves_other_texts_and_keys_too_short_to_be_secret_alone():
    assert redact("8 7\nAn x-ray.", SECRET) == redact("8 7\nAn x-ray.", "x") == "8 7\nAn x-ray."
    assert redact(f"a {SECRET}{SECRET} b", SECRET) == "a [key] b"


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "gpt-4"}, "must start with http:// or https:// and name a host, got 'gpt-4'"),
        ({"url": "http://"}, "name a host"),
        ({"url": "HTTP://host"}, "must start with http://"),
        ({"model": ""}, "`model` must name the judge"),
        ({"concurrency": 0}, "`concurrency` must be at least 1, got 0"),
        ({"max_attempts": 0}, "`max_attempts` must be at least 1"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0, got 0"),
        ({"first_wait": float("nan")}, "`first_wait` must be a number of seconds above 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        JudgeSettings(**{"url": "http://host/v1", "model": "judge"} | settings)


@pytest.mark.parametrize("url", ["http://user:{}@host/v1", "https://host/v1?key={}", "https://host/v1#{}"])
def test_a_key_in_the_url_is_refused_unseen(url):
    with pytest.raises(ValueError, match=f"Put a key into {KEY_VARIABLE}") as refusal:
        JudgeSettings(url=url.format(SECRET), model="judge")
    assert SECRET not in str(refusal.value)


def test_an_unknown_failure_stops_rather_than_repeats(monkeypatch):
    def fail(self, messages):
        raise RuntimeError("out of threads")

    monkeypatch.setattr(judge_client.JudgeClient, "_request", fail)
    with JudgeServer() as server, pytest.raises(JudgeRefusedError, match="RuntimeError: out of threads"):
        ask(server)


def test_long_waits_end_when_the_run_is_stopped():
    with JudgeServer(faults={KEY: ["503"] * 9}) as server:
        client = make_client(server, first_wait=1000.0)
        threading.Timer(0.2, client.stop).start()
        assert client.ask(MESSAGES, check=parse_scores, label="").reason == "the run was stopped"
    assert all(later.time > earlier.time for earlier, later in pairwise(server.requests))
