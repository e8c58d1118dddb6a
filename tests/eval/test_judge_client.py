"""Tests of asking a judge: when to ask again, when to stop, and that the key stays secret."""

import logging
import sys
import time
import traceback

import pytest

from logramed.eval.judge_client import KEY_VARIABLE, Fault, JudgeClient, JudgeRefusedError, JudgeSettings
from logramed.eval.judging import build_messages, judge_answers
from tests.eval.judge_server import STALL, TEXTS, JudgeServer, make_prediction, make_question


SECRET = "sk-judge-4f9c21aa07b3"
KEY = ("q1", "reference_first")
MESSAGES = build_messages(make_question(1), make_prediction(1), "reference_first")
OTHER_MESSAGES = build_messages(make_question(2), make_prediction(2), "reference_first")


@pytest.fixture(autouse=True)
def _without_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def ask(server, messages=MESSAGES, **settings):
    return JudgeClient(JudgeSettings(**{"url": server.url, "model": "judge"} | settings)).ask(messages)


@pytest.mark.parametrize("fault", [*TEXTS, "500", "502", "503", "408", "429", "429 after 0.3", "drop", "cut"])
def test_faults_that_pass_are_asked_again(fault):
    with JudgeServer(faults={KEY: [fault]}) as server:
        assert ask(server).text.startswith("7 4\nOf q1")
        first, second = (request.time for request in server.requests)
    if "after" in fault:
        assert second - first >= 0.3


@pytest.mark.parametrize("fault", TEXTS)
def test_a_response_without_a_reply_is_no_reply(fault):
    with JudgeServer(faults={KEY: [fault] * 9}) as server:
        assert ask(server, max_attempts=2) == Fault("the response holds no reply")
        assert len(server.requests) == 2


def test_a_fault_that_does_not_pass_gives_its_reason_after_the_last_attempt():
    with JudgeServer(faults={KEY: ["503"] * 9}) as server:
        assert ask(server, max_attempts=3) == Fault("HTTP 503: refused")
        assert len(server.requests) == 3


def test_a_reply_that_stalls_is_given_up_in_time():
    with JudgeServer(faults={KEY: ["stall"]}) as server:
        start = time.monotonic()
        assert ask(server, timeout=0.3, max_attempts=1) == Fault("no reply within 0.3 s")
        assert 0.3 <= time.monotonic() - start < STALL


def test_no_server_stops_everything():
    with JudgeServer() as server:
        pass
    with pytest.raises(JudgeRefusedError, match=server.url):
        ask(server, max_attempts=1)


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_request_that_the_server_cannot_take_is_not_repeated(status):
    with JudgeServer(faults={KEY: [status]}) as server:
        assert ask(server) == Fault(f"HTTP {status}: refused")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "key", "words"),
    [
        ("401", "", f"HTTP 401: {KEY_VARIABLE} is not set"),
        ("401", SECRET, f"HTTP 401: {KEY_VARIABLE} is not accepted"),
        ("402", "", "HTTP 402: refused"),
        ("403", "", "HTTP 403: refused"),
        ("404", "", "HTTP 404: refused"),
    ],
)
def test_a_judge_that_cannot_be_asked_at_all_stops_everything(monkeypatch, status, key, words):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with JudgeServer(faults={KEY: [status]}) as server:
        client = JudgeClient(JudgeSettings(url=server.url, model="judge"))
        for messages in (MESSAGES, OTHER_MESSAGES):
            with pytest.raises(JudgeRefusedError, match=words):
                client.ask(messages)
        assert len(server.requests) == 1


def test_a_failed_attempt_is_followed_by_one_more():
    with JudgeServer(faults={KEY: ["503"]}) as server:
        ask(server)
    assert len(server.requests) == 2


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"logramed\[judge\]"):
        JudgeClient(JudgeSettings(url="http://host/v1", model="judge"))


# The key


@pytest.mark.parametrize("echo", [SECRET, f"Bearer {SECRET}"])
def test_the_key_is_sent_but_reaches_no_file_log_result_or_error(tmp_path, monkeypatch, caplog, capfd, echo):
    monkeypatch.setenv(KEY_VARIABLE, f" {SECRET}\n")
    caplog.set_level(logging.DEBUG)
    questions, predictions = [make_question(1), make_question(2)], {"q1": make_prediction(1), "q2": make_prediction(2)}
    faults = {KEY: ["503"], ("q2", "model_first"): ["400"], ("q1", "model_first"): ["429", "drop"]}
    said = []
    for status in ("400", "401", "403", "404"):
        faults[("q2", "model_first")] = [status]
        with JudgeServer(faults=faults) as server:
            server.error_text = lambda: f'{{"error": {{"message": "refused {echo}"}}}}'
            settings = JudgeSettings(url=server.url, model="judge")
            try:
                said.append(repr(judge_answers(questions, predictions, settings, tmp_path / "judgements.jsonl")))
            except JudgeRefusedError as error:
                said += traceback.format_exception(error)
            assert {request.authorization for request in server.requests} == {f"Bearer {SECRET}"}
    said += [file.read_bytes().decode() for file in tmp_path.iterdir()]
    said += [
        record.getMessage() + str(record.exc_text) for record in caplog.records if record.name.startswith("logra")
    ]
    said += capfd.readouterr()
    assert any("[key]" in text for text in said)
    assert not any(SECRET in text for text in said)


def test_without_a_key_no_other_one_is_sent(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_invented0token0of0nobody")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-invented")
    with JudgeServer() as server:
        ask(server)
        assert [request.authorization for request in server.requests] == ["Bearer no-key"]


@pytest.mark.parametrize("key", ["sk-\u00e9t\u00e9-4f9c21aa", "sk-judge 4f9c21aa", "sk-judge\n4f9c21aa"])
def test_a_key_that_no_request_can_carry_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=f"{KEY_VARIABLE} must be printable ASCII without spaces") as refusal:
        JudgeClient(JudgeSettings(url="http://host/v1", model="judge"))
    assert "4f9c21aa" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "`model` must name the model"),
        ({"concurrency": 0}, "`concurrency` must be at least 1, got 0"),
        ({"max_attempts": 0}, "`max_attempts` must be at least 1"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0, got 0"),
        ({"timeout": float("nan")}, "`timeout` must be a number of seconds above 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        JudgeSettings(**{"url": "http://host/v1", "model": "judge"} | settings)


@pytest.mark.parametrize("url", ["gpt-4", "http://", "HTTP://host"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match="must start with http:// or https:// and name a host"):
        JudgeSettings(url=url, model="judge")


@pytest.mark.parametrize("url", ["http://user:{}@host/v1", "https://host/v1?key={}", "https://host/v1#{}"])
def test_a_key_in_the_url_is_refused_unseen(url):
    with pytest.raises(ValueError, match=f"Put a key into {KEY_VARIABLE}") as refusal:
        JudgeSettings(url=url.format(SECRET), model="judge")
    assert SECRET not in str(refusal.value)
