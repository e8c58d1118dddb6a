"""Tests of files that a later run completes. Those of predictions and judgements are tested by themselves too."""

import json
import threading

import pytest

from logramed.eval.resumable_file import ResumableFile


def make_file(tmp_path, keys):
    return ResumableFile(tmp_path / "lines.jsonl", keys, key_of=lambda row: row["key"], kind="line")


def test_lines_of_many_threads_stay_whole_and_finish_in_the_order_of_the_keys(tmp_path):
    keys = [f"{thread}-{number}" for number in range(50) for thread in range(4)]
    file = make_file(tmp_path, keys)

    def write(thread):
        for number in range(50):
            write_line({"key": f"{thread}-{number}", "text": "x" * 500})

    with file.open_for_append() as write_line:
        threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert file.missing() == []
    assert list(file.finish()) == keys
    assert [json.loads(line)["key"] for line in file.path.read_text().splitlines()] == keys


def test_finish_keeps_what_is_there_and_says_nothing_of_the_rest(tmp_path):
    file = make_file(tmp_path, ["a", "b"])
    assert file.finish() == {}
    with file.open_for_append() as write_line:
        write_line({"key": "b"})
    assert (file.finish(), file.missing()) == ({"b": {"key": "b"}}, ["a"])


@pytest.mark.parametrize("line", ["[]", "3", '{"key": ["a"]}', '{"other": "a"}'])
def test_lines_without_a_usable_key_are_refused_with_their_number(tmp_path, line):
    file = make_file(tmp_path, ["a"])
    file.path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"lines.jsonl, line 1 is not a valid line: .*Delete the line to ask again"):
        file.missing()
