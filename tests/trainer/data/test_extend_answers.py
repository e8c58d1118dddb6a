import json
import os
import signal
import subprocess
import sys
import time

import pytest

from logramed.eval.command_line import UserError
from logramed.trainer.data import extend_answers, load_training_rows
from logramed.trainer.data.extend_answers import KEY_VARIABLE, main
from tests.trainer.extension_server import ExtensionServer


ANSWERS = ["left lung", "left liver", "left heart", "left brain", "right lung", "right liver", "right heart"]


@pytest.fixture(autouse=True)
def _quick_and_without_a_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)


def run(server, data_file, folder, *options):
    output = folder / "extended.jsonl"
    argv = [str(data_file), "--endpoint", server.url, "--model", "extender", "--output", str(output), *options]
    return main(argv), output


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_extended_file_is_what_training_merges_with_its_data(tmp_path, data_file, capsys):
    rows = json.loads(data_file.read_text())
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{k: v for k, v in row.items() if k != "conversations_long"} for row in rows]))
    with ExtensionServer() as server:
        code, output = run(server, plain, tmp_path)
    assert code == 0
    merged = load_training_rows(plain, extended=output).dataset
    assert merged["id"] == [row["id"] for row in rows]
    assert merged[0]["extended_answers"][0].startswith("The organ in question is the left lung")
    assert merged[1]["extended_answers"][1].startswith("No, that is")
    assert "Wrote 8 extended conversations" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fault",
    ["429 after 0.05", "503", "drop", "cut", "not json", "no json", "one too few", "flipped", "other words",
     "too long", "empty", "cut off"],
)  # fmt: skip
def test_a_faulty_reply_is_asked_for_again_and_the_reason_told(tmp_path, data_file, fault):
    with ExtensionServer({"right lung": [fault]}) as server:
        code, output = run(server, data_file, tmp_path)
        assert code == 0
        assert len(read_lines(output)) == 8
        asked = [request.body["messages"] for request in server.requests if request.key == "right lung"]
    assert len(asked) == 2
    told = {
        "no json": "not valid JSON",
        "one too few": "has 1 extended answers, but the conversation has 2",
        "flipped": "does not say yes",
        "other words": "leaves out right, lung",
        "too long": "may have at most 80",
        "empty": "not of the form",
        "cut off": "The reply was cut off at `max_tokens`.",
    }
    if fault in told:
        assert told[fault] in asked[1][-1]["content"]
    else:
        assert len(asked[1]) == 2


def test_json_in_a_code_fence_is_taken(tmp_path, data_file):
    with ExtensionServer({"right lung": ["fenced"]}) as server:
        assert run(server, data_file, tmp_path)[0] == 0
        assert len(server.requests) == 8


def test_a_reply_that_does_not_come_is_not_waited_for(tmp_path, data_file):
    with ExtensionServer({"right lung": ["stall"]}) as server:
        assert run(server, data_file, tmp_path, "--timeout", "0.5")[0] == 0
        assert len(server.requests) == 9


def test_conversations_that_fail_for_good_are_listed_and_the_rest_is_kept(tmp_path, data_file, capsys):
    with ExtensionServer({"left heart": ["flipped"] * 9}) as server:
        code, output = run(server, data_file, tmp_path, "--max_revisions", "2")
        assert code == 1
        assert sum(request.key == "left heart" for request in server.requests) == 3
        [failure] = read_lines(tmp_path / "extended.failures.jsonl")
        assert failure["id"] == "2"
        assert "does not say yes" in failure["reason"]
        assert [row["id"] for row in read_lines(output)] == list("0134567")
        server.faults.clear()
        assert run(server, data_file, tmp_path)[0] == 0  # the same command asks for what is missing alone
        assert len(server.requests) == 7 + 3 + 1
    assert [row["id"] for row in read_lines(output)] == list("01234567")
    assert "1 failed, listed in" in capsys.readouterr().out


def test_a_request_that_the_server_cannot_take_is_not_repeated(tmp_path, data_file):
    with ExtensionServer({"left heart": ["413"] * 9}) as server:
        assert run(server, data_file, tmp_path)[0] == 1
        assert len(server.requests) == 8
    [failure] = read_lines(tmp_path / "extended.failures.jsonl")
    assert failure["reason"] == "HTTP 413: refused"


def test_a_wrong_key_stops_at_once_and_is_never_shown(tmp_path, data_file, monkeypatch, capsys, caplog):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret-of-ours-123")
    words = f"HTTP 401: {KEY_VARIABLE} is not accepted. Check .* the key in {KEY_VARIABLE}"
    with ExtensionServer({answer: ["401"] for answer in ANSWERS}) as server:
        with pytest.raises(UserError, match=words) as error:
            run(server, data_file, tmp_path, "--concurrency", "1")
        assert len(server.requests) == 1
        assert server.requests[0].authorization == "Bearer sk-secret-of-ours-123"
    printed = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json*"))
    assert "sk-secret" not in str(error.value) + printed.out + printed.err + caplog.text + written


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, data_file):
    output = tmp_path / "extended.jsonl"
    with ExtensionServer(delay=0.3) as server:
        argv = [str(data_file), "--endpoint", server.url, "--model", "extender", "--output", str(output)]
        command = [sys.executable, "-m", "logramed.trainer.data.extend_answers", *argv, "--concurrency", "2"]
        process = subprocess.Popen(command, env=dict(os.environ))
        done = output.with_suffix(".parts") / "done.jsonl"
        deadline = time.monotonic() + 240
        while not (done.is_file() and done.read_text().count("\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        num_done = done.read_text().count("\n")
        server.delay, num_asked = 0.0, len(server.requests)
        assert 2 <= num_done < 8
        assert main(argv) == 0
        assert len(server.requests) - num_asked == 8 - num_done
    assert num_asked - num_done <= 2  # those under way when it was killed
    assert [row["id"] for row in read_lines(output)] == list("01234567")


def test_other_settings_are_refused_and_only_one_process_writes(tmp_path, data_file):
    with ExtensionServer() as server:
        _, output = run(server, data_file, tmp_path)
        with pytest.raises(ValueError, match=r"answers of another run: `model` was 'extender' and now is 'other'"):
            main([str(data_file), "--endpoint", server.url, "--model", "other", "--output", str(output)])


def test_arguments_that_do_not_fit_are_refused(capsys):
    for argv, words in (
        (["data", "--endpoint", "http://x"], "required: --model"),
        (["data", "--endpoint", "http://x", "--model", "y", "--output", "x.json"], "--output must end in .jsonl"),
    ):
        with pytest.raises(SystemExit):
            extend_answers.parse_arguments(argv)
        assert words in capsys.readouterr().err
