import copy
import io
import itertools
import json

import pytest
from datasets import Dataset
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from logramed.trainer.data import sources
from logramed.trainer.data.records import canonical_row
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.sources import load_training_rows
from logramed.trainer.data.streaming import open_stream


def text(words):
    return {"type": "text", "text": words}


def message(role, content):
    return {"role": role, "content": content}


IMAGE = {"type": "image"}
USER, ANSWER = message("user", [text("What?")]), message("assistant", [text("CT")])
WITH_IMAGE = message("user", [IMAGE, text("What?")])
FORMS = {
    "plain messages": ({"messages": [message("user", "What?"), message("assistant", "CT")]}, [WITH_IMAGE, ANSWER]),
    "parts without an image": ({"messages": [USER, ANSWER]}, [WITH_IMAGE, ANSWER]),
    "parts with an image": (
        {"messages": [message("user", [text("What?"), IMAGE]), ANSWER]},
        [message("user", [text("What?"), IMAGE]), ANSWER],
    ),
    "an image in the second question": (
        {"messages": [USER, ANSWER, message("user", [text("And"), IMAGE]), ANSWER]},
        [USER, ANSWER, message("user", [text("And"), IMAGE]), ANSWER],
    ),
    "a placeholder": (
        {"messages": [message("user", "What?\n<image>"), message("assistant", "CT")]},
        [message("user", [text("What?"), IMAGE]), ANSWER],
    ),
    "system": (
        {"messages": [message("system", "Be brief."), message("user", "What?"), message("assistant", "CT")]},
        [message("system", [text("Be brief.")]), WITH_IMAGE, ANSWER],
    ),
    "prompt and completion": ({"prompt": "What?", "completion": "CT"}, [WITH_IMAGE, ANSWER]),
    "lists of prompt and completion": (
        {"prompt": [message("user", "What?")], "completion": [message("assistant", "CT")]},
        [WITH_IMAGE, ANSWER],
    ),
    "messages beside a prompt": (
        {"messages": [USER, ANSWER], "prompt": "extra", "source": "extra"},
        [WITH_IMAGE, ANSWER],
    ),
    "LLaMA-Factory": (
        {"messages": [message("user", "<image>What?"), message("assistant", "CT")], "system": "Be brief."},
        [message("system", [text("Be brief.")]), WITH_IMAGE, ANSWER],
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "<image>What", "input": "is it?", "output": "CT"},
        [message("user", [IMAGE, text("What\nis it?")]), ANSWER],
    ),
    "ms-swift": (
        {"query": "And?", "response": "CT", "history": [["<image>What?", "CT"]], "system": "Be brief."},
        [message("system", [text("Be brief.")]), WITH_IMAGE, ANSWER, message("user", [text("And?")]), ANSWER],
    ),
    "conversations": (
        {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "CT"}]},
        [WITH_IMAGE, ANSWER],
    ),
}


def without_nulls(messages):
    return [
        message(one["role"], [{name: value for name, value in part.items() if value is not None} for part in content])
        for one in messages
        for content in [one["content"]]
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 6), 128).save(tmp_path / "images" / "a.png")
    return tmp_path


@pytest.mark.parametrize(("form", "expected"), FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("source", ["json", "jsonl", "dataset", "saved", "hub", "stream", "trainer"])
def test_every_form_is_read_from_every_source(folder, monkeypatch, caplog, source, form, expected):
    record = {"images": [str(folder / "images" / "a.png")], **copy.deepcopy(form)}
    options = {"image_folder": folder / "images", "require_extended": False}
    if source == "trainer":
        row = canonical_row(record, "row 0")
    elif source == "stream":
        (folder / "rows.jsonl").write_text(json.dumps(record) + "\n")
        row = next(iter(open_stream(folder / "rows.jsonl", **options)))
    else:
        target = Dataset.from_list([record])
        if source in ("json", "jsonl"):
            target = folder / f"rows.{source}"
            target.write_text(json.dumps([record] if source == "json" else record))
        if source == "saved":
            target.save_to_disk(str(folder / "saved"))
            target = folder / "saved"
        if source == "hub":
            monkeypatch.setattr(sources, "load_dataset", lambda *_, rows=target, **__: rows)
            target = "someone/rows"
        row = load_training_rows(target, **options).dataset[0]
    assert row["id"] == {"jsonl": "line 1", "stream": "row 0 of the stream"}.get(source, "row 0")
    assert row["images"] == [str(folder / "images" / "a.png")]
    assert without_nulls(row["messages"]) == expected
    assert row["extended_answers"] is None


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_images_without_a_place_stand_where_trl_puts_them(num_images):
    messages = [
        message(role, words)
        for role, words in (("system", "Be brief."), ("user", "What?"), ("assistant", "CT"), ("user", "Where?"))
    ] + [message("assistant", "Left")]
    images = [Image.new("L", (2, 2), number) for number in range(num_images)]
    row = canonical_row({"images": images, "messages": messages}, "row 0")
    numbers = itertools.count()
    filled = [
        message(
            one["role"],
            [part if part["type"] == "text" else {**part, "image": images[next(numbers)]} for part in one["content"]],
        )
        for one in row["messages"]
    ]
    assert filled == prepare_multimodal_messages(messages, images)
    assert row["images"] == images


def test_a_canonical_row_stays_equal_and_nothing_is_changed_in_place():
    row = {"id": "a", "images": ["/a.png"], "messages": [WITH_IMAGE, ANSWER], "extended_answers": ["A CT."]}
    before = copy.deepcopy(row)
    assert canonical_row(row, "row 3") == before == row
    plain = {"id": 7, "image": "/a.png", "messages": [USER, ANSWER]}
    before = copy.deepcopy(plain)
    assert canonical_row(plain, "row 3")["id"] == "7"
    assert plain == before


def test_embedded_images_are_decoded_and_paths_stay_paths():
    file = io.BytesIO()
    Image.new("L", (8, 6), 77).save(file, "PNG")
    images = [{"bytes": file.getvalue(), "path": None}, {"bytes": None, "path": "/a.png"}, "/b.png"]
    found = canonical_row({"images": images, "prompt": "Which?", "completion": "None"}, "row 0")["images"]
    assert (found[0].size, found[0].getpixel((0, 0))) == ((8, 6), 77)
    assert found[1:] == ["/a.png", "/b.png"]


BAD_ROWS = [
    (
        {"prompt": "What?"},
        "conversations",
        "a row needs `conversations`, `messages`, `prompt` and `completion`, or a question",
    ),
    ({"prompt": "What?", "completion": " "}, "completion", "empty answer"),
    ({"prompt": "What?", "completion": [USER]}, "completion[0].content", "odd turns: turn 1 must come from the assis"),
    ({"prompt": "<image><image>?", "completion": "CT"}, "prompt", r"2 <image> placeholder\(s\) for 1 image"),
    ({"prompt": [USER, ANSWER, USER], "completion": "CT"}, "prompt", "holds an answer, which would be learned too"),
    ({"messages": "What?"}, "messages", "expected a list of turns"),
    ({"messages": [USER, ANSWER], "images": [3]}, "images", "expected a path or an image, got 3"),
    ({"messages": [USER, ANSWER], "images": [{"bytes": b"no image"}]}, "images", "unreadable image"),
    ({"messages": [USER, ANSWER], "id": 1.5}, "id", "expected a text or a whole number"),
    ({"messages": [USER, ANSWER], "extended_answers": []}, "extended_answers", "0 extended answer"),
]


@pytest.mark.parametrize(("changes", "field", "reason"), BAD_ROWS)
def test_a_row_that_cannot_be_used_is_refused_by_position_and_field(changes, field, reason):
    with pytest.raises(RowError, match=reason) as refusal:
        canonical_row({"images": ["/a.png"], **changes}, "row 17")
    assert (refusal.value.position, refusal.value.field) == ("row 17", field)


def test_rows_without_ids_and_ids_that_several_share_are_counted_once(folder, caplog):
    ids = ({}, {"id": "b"}, {}, {"id": "b"}, {"id": "b-2"}, {"id": "c"})
    rows = [{"prompt": "What?", "completion": "CT", **changes} for changes in ids]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_training_rows(path, require_extended=False)
    assert loaded.dataset["id"][:] == ["line 1", "b-1", "line 3", "b-3", "b-2", "c"]
    (said,) = [one for one in caplog.messages if "share their id" in one]
    assert "2 row(s) share their id with another, and get a number appended, such as b-1." in said
    (said,) = [one for one in caplog.messages if "without `id`" in one]
    assert "2 row(s) without `id` use their position as id, such as 'line 1'" in said


def test_a_second_file_of_extended_answers_needs_ids_on_both_sides(folder):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "CT"}]
    for name, rows in {"with": [{"id": "a", "conversations": turns}], "without": [{"conversations": turns}]}.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    for first, second in (("with", "without"), ("without", "with")):
        with pytest.raises(RowError, match=rf"{folder}/without\.json: row 0 \(no id\), field `id`"):
            load_training_rows(folder / f"{first}.json", extended=folder / f"{second}.json")


LOCATIONS = {
    "conversation": lambda value: {
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": value}]
    },
    "question": lambda value: {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "CT"}]},
    "message": lambda value: {"messages": [message("user", "What?"), message("assistant", value)]},
    "system": lambda value: {"messages": [message("system", value), message("user", "What?"), ANSWER]},
    "part": lambda value: {"messages": [WITH_IMAGE, message("assistant", [text(value)])]},
    "completion": lambda value: {"prompt": "What?", "completion": value},
    "extended answer": lambda value: {"messages": [USER, ANSWER], "extended_answers": [value]},
}


@pytest.mark.parametrize("place", LOCATIONS)
@pytest.mark.parametrize("value", ["\ud83d", True, None, [2], {"a": 1}, float("nan")], ids=repr)
def test_what_is_no_text_is_refused_in_every_place_or_left_out(tmp_path, place, value):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [LOCATIONS[place](value) | {"id": "bad", "image": "a.png"}]
    rows += [{"id": "good", "image": "a.png", "messages": [USER, ANSWER]}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(RowError, match="row 0") as refused:
        load_training_rows(path, require_extended=False)
    assert refused.value.field.split(".")[0].split("[")[0] in rows[0] or refused.value.field == "conversations"
    str(refused.value).encode()  # it can be printed
    found = load_training_rows(path, require_extended=False, on_bad_row="skip")
    assert found.dataset["id"] == ["good"]
    found.write_skipped(tmp_path / "skipped.jsonl")
    [line] = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["position"] == "row 0"


@pytest.mark.parametrize("place", [place for place in LOCATIONS if place != "question"])
@pytest.mark.parametrize(("value", "expected"), [(2, "2"), (2.0, "2"), (0.5, "0.5")])
def test_numbers_become_text_in_every_place(tmp_path, place, value, expected):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(LOCATIONS[place](value) | {"image": "a.png"}))
    for row in (load_training_rows(path, require_extended=False).dataset[0], stream_one(path)):
        texts = [part["text"] for one in row["messages"] for part in one["content"] if part["type"] == "text"]
        assert expected in [*texts, *(row["extended_answers"] or [])]


def stream_one(path):
    return next(iter(open_stream(path, require_extended=False)))


@pytest.mark.parametrize("field", ["id", "image"])
def test_half_a_surrogate_pair_is_refused_in_ids_and_names_too(tmp_path, field):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {"id": "1", "image": "a.png", "messages": [USER, ANSWER], field: "x\ud83d"}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(RowError, match=rf"field `{field}`") as refused:
        load_training_rows(path, require_extended=False)
    str(refused.value).encode()


def test_two_files_whose_ids_are_those_of_images_are_merged_in_their_order(folder):
    def conversation(question, answer):
        return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]

    for name, words in {"short": "", "long": "It is a "}.items():
        rows = [
            {"id": "7", "image": "a.png", "conversations": conversation(question, words + answer)}
            for question, answer in (("What?", "CT"), ("Where?", "head"))
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    rows = load_training_rows(folder / "short.json", extended=folder / "long.json").dataset
    assert rows["id"][:] == ["7-1", "7-2"]
    assert rows["extended_answers"][:] == [["It is a CT"], ["It is a head"]]


def test_images_are_found_in_parts_and_by_names_that_begin_with_their_folder(folder):
    part = {"type": "image", "image": "images/a.png"}
    rows = [{"messages": [message("user", [part, text("What?")]), ANSWER]}]
    rows += [{"messages": [USER, ANSWER], "images": ["images/a.png"]}, {"messages": [USER, ANSWER], "image": "a.png"}]
    (folder / "rows.json").write_text(json.dumps(rows))
    loaded = load_training_rows(folder / "rows.json", require_extended=False).dataset
    assert loaded["images"][:] == [[str(folder / "images" / "a.png")]] * 3
    assert [without_nulls(messages) for messages in loaded["messages"]] == [[WITH_IMAGE, ANSWER]] * 3


def test_a_tag_that_would_be_read_as_text_is_refused(folder):
    rows = [{"messages": [message("user", "<img>a.png</img>What?"), ANSWER]}]
    (folder / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(RowError, match=r"<img> would be read as text: write <image>"):
        load_training_rows(folder / "rows.json", require_extended=False)


def test_a_system_text_is_no_part_of_what_an_extension_repeats(folder):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "CT"}]
    longer = [turns[0], {"from": "gpt", "value": "It is a CT."}]
    row = {"id": "1", "image": "a.png", "system": "Be kind.", "conversations": turns, "conversations_long": longer}
    (folder / "own.json").write_text(json.dumps([row]))
    (folder / "first.json").write_text(json.dumps([{**row, "conversations_long": None}]))
    (folder / "second.json").write_text(json.dumps([{"id": "1", "conversations": longer}]))
    second = {"source": folder / "first.json", "extended": folder / "second.json"}
    for options in ({"source": folder / "own.json"}, second):
        [found] = load_training_rows(**options).dataset
        assert [one["role"] for one in found["messages"]] == ["system", "user", "assistant"]
        assert found["extended_answers"] == ["It is a CT."]


@pytest.mark.parametrize("messages", [5, "What?", {"role": "user"}, [5], [[]]])
def test_messages_of_another_kind_are_refused_by_row(messages):
    with pytest.raises(RowError, match="row 3"):
        canonical_row({"messages": messages}, "row 3")
