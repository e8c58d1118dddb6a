import json

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image

from logramed.trainer.data import sources
from logramed.trainer.data.rows import RowError
from logramed.trainer.data.sources import load_training_rows


def turns(*texts):
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def instruct_row(row_id="a", **changes):
    row = {
        "id": row_id,
        "image": "a.png",
        "conversations": turns("<image>\nWhat is this?", "CT", "Where?", "Left\nlung"),
        "conversations_long": turns("<image>\nWhat is this?", "A CT scan.", "Where?", "In the left lung."),
    }
    row.update(changes)
    return {key: value for key, value in row.items() if value is not ...}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("L", (8, 6), 128).save(tmp_path / "data" / "images" / f"{name}.png")
    return tmp_path / "data"


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(messages):
    """Messages without the nulls that Arrow adds, as (role, [text or None for an image])."""
    return [(message["role"], [part["text"] for part in message["content"]]) for message in messages]


EXPECTED_MESSAGES = [
    ("user", [None, "What is this?"]),
    ("assistant", ["CT"]),
    ("user", ["Where?"]),
    ("assistant", ["Left\nlung"]),
]


def test_an_instruct_file_becomes_canonical_rows(folder):
    rows = load_training_rows(write_json(folder / "train.json", [instruct_row()]))
    (row,) = rows.dataset
    assert row["id"] == "a"
    assert row["images"] == [str((folder / "images" / "a.png").resolve())]
    assert plain(row["messages"]) == EXPECTED_MESSAGES
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]
    assert row["extended_answers"] == ["A CT scan.", "In the left lung."]
    assert rows.skipped == []


def test_misspelled_keys_json_lines_and_a_byte_order_mark_give_the_same_rows(folder):
    row = instruct_row()
    misspelled = instruct_row(
        conversations=...,
        conversations_long=...,
        conversatons=row["conversations"],
        conversatons_long=row["conversations_long"],
    )
    path = write_lines(folder / "train.jsonl", [misspelled])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    expected = load_training_rows(write_json(folder / "train.json", [row]))
    got = load_training_rows(path)
    assert got.dataset.to_list() == expected.dataset.to_list()
    assert got.fingerprint == expected.fingerprint


def test_an_image_placeholder_after_the_question_stays_after_it(folder):
    row = instruct_row(conversations=turns("What is this?\n<image>", "CT"), conversations_long=...)
    rows = load_training_rows(write_json(folder / "train.json", [row]), require_extended=False)
    content = rows.dataset[0]["messages"][0]["content"]
    assert [(part["type"], part["text"]) for part in content] == [("text", "What is this?"), ("image", None)]
    assert rows.dataset[0]["extended_answers"] is None


def test_several_images_and_text_alone_are_rows_too(folder):
    two = instruct_row(
        "two",
        image=["a.png", "b.png"],
        conversations=turns("<image> then <image>: compare", "same"),
        conversations_long=...,
    )
    none = instruct_row("none", image=..., conversations=turns("What is CT?", "An X ray"), conversations_long=...)
    rows = load_training_rows(write_json(folder / "train.json", [two, none]), require_extended=False)
    assert [len(images) for images in rows.dataset["images"]] == [2, 0]
    parts = rows.dataset[0]["messages"][0]["content"]
    assert [part["text"] for part in parts] == [None, "then", None, ": compare"]


def test_numbers_as_ids_and_answers_become_text_and_a_system_turn_is_kept(folder):
    conversation = [{"from": "system", "value": "Be brief."}, *turns("<image>\nHow many?", 4)]
    row = instruct_row(17, conversations=conversation, conversations_long=...)
    rows = load_training_rows(write_json(folder / "train.json", [row]), require_extended=False)
    assert rows.dataset[0]["id"] == "17"
    assert plain(rows.dataset[0]["messages"]) == [
        ("system", ["Be brief."]),
        ("user", [None, "How many?"]),
        ("assistant", ["4"]),
    ]


@pytest.mark.parametrize("key", ["conversations", "conversations_long", "conversatons_long"])
def test_a_second_file_is_merged_by_id_in_both_forms_of_the_release(folder, key):
    """The generator overwrites `conversations`; the published files keep these and add `conversations_long`."""
    rows = [instruct_row(row_id, conversations_long=...) for row_id in ("a", "b")]
    second = [instruct_row(row_id, conversations_long=...) for row_id in ("b", "a")]
    for row in second:
        row[key] = turns("<image>\nWhat is this?", f"A CT of {row['id']}.", "Where?", "In the left lung.")
    write_json(folder / "train.json", rows)
    write_json(folder / "extended.json", second)
    merged = load_training_rows(folder / "train.json", extended=folder / "extended.json")
    assert merged.dataset["id"][:] == ["a", "b"]
    assert [answers[0] for answers in merged.dataset["extended_answers"]] == ["A CT of a.", "A CT of b."]
    assert plain(merged.dataset[0]["messages"]) == EXPECTED_MESSAGES


def test_ids_in_one_of_two_files_only_are_refused_on_both_sides(folder):
    write_json(
        folder / "train.json", [instruct_row("a", conversations_long=...), instruct_row("b", conversations_long=...)]
    )
    write_json(folder / "extended.json", [instruct_row("a"), instruct_row("c")])
    arguments = {"extended": folder / "extended.json"}
    with pytest.raises(
        RowError, match=r"train\.json: row 1 \(id 'b'\), field `id`: no row with this id in .*extended\.json"
    ):
        load_training_rows(folder / "train.json", **arguments)
    rows = load_training_rows(folder / "train.json", **arguments, on_bad_row="skip")
    assert rows.dataset["id"][:] == ["a"]
    assert [(error.row_id, error.field) for error in rows.skipped] == [("b", "id"), ("c", "id")]
    assert "extended.json: row 1" in str(rows.skipped[1])
    # Without alignment a row may lack its extension, but an extension of nothing is still a fault.
    rows = load_training_rows(folder / "train.json", **arguments, on_bad_row="skip", require_extended=False)
    assert rows.dataset["id"][:] == ["a", "b"]
    assert [error.row_id for error in rows.skipped] == ["c"]


LONG = turns("<image>\nWhat is this?", "A CT scan.", "Where?", "In the left lung.")
BAD_ROWS = {
    "missing image": ({"image": "gone.png"}, "image", r"missing image: there is no file .*gone\.png"),
    "unreadable image": ({"image": "broken.png"}, "image", r"unreadable image .*broken\.png"),
    "truncated image": ({"image": "cut.png"}, "image", r"unreadable image .*cut\.png"),
    "no image name": ({"image": 3}, "image", "expected the name of an image file, got 3"),
    "parent folder": ({"image": "../../secret.png"}, "image", "outside the image folder"),
    "absolute path": ({"image": "/etc/hostname"}, "image", "outside the image folder"),
    "symbolic link": ({"image": "link.png"}, "image", r"'link\.png' leads to .*secret\.png, outside the image folder"),
    "null byte": ({"image": "a\0.png"}, "image", "not a usable path"),
    "no conversation": ({"conversations": ...}, "conversations", "missing"),
    "empty conversation": ({"conversations": []}, "conversations", "no turns"),
    "text for turns": ({"conversations": "CT"}, "conversations", "expected a list of turns"),
    "answer first": (
        {"conversations": turns("<image>\nWhat?", "CT")[::-1]},
        "conversations[0].value",
        "odd turns: turn 0 must come from the user, got 'assistant'",
    ),
    "two questions": (
        {"conversations": [*turns("<image>\nWhat?"), *turns("Where?", "Left")]},
        "conversations[1].value",
        "odd turns: turn 1 must come from the assistant, got 'user'",
    ),
    "no last answer": (
        {"conversations": turns("<image>\nWhat?", "CT", "Where?")},
        "conversations[2].value",
        "odd turns: the last of 3 turns has no answer",
    ),
    "unknown speaker": (
        {"conversations": [{"from": "robot", "value": "Hi"}]},
        "conversations[0].from",
        "expected human or gpt, got 'robot'",
    ),
    "empty answer": ({"conversations": turns("<image>\nWhat?", " \n")}, "conversations[1].value", "empty answer"),
    "null answer": ({"conversations": turns("<image>\nWhat?", None)}, "conversations[1].value", "empty answer"),
    "list answer": (
        {"conversations": turns("<image>\nWhat?", ["CT"])},
        "conversations[1].value",
        r"expected a text, got \[",
    ),
    "image in an answer": (
        {"conversations": turns("<image>\nWhat?", "CT <image>")},
        "conversations[1].value",
        "image placeholder in a turn of the assistant",
    ),
    "too few placeholders": (
        {"conversations": turns("What?", "CT")},
        "conversations",
        r"0 <image> placeholder\(s\) for 1 image\(s\)",
    ),
    "too many placeholders": (
        {"conversations": turns("<image><image>What?", "CT")},
        "conversations",
        r"2 <image> placeholder\(s\) for 1 image\(s\)",
    ),
    "no extension": ({"conversations_long": ...}, "conversations_long", "missing extended answers"),
    "short extension": ({"conversations_long": LONG[:2]}, "conversations_long", "2 turns that do not match the 4"),
    "empty extension": (
        {"conversations_long": [*LONG[:3], {"from": "gpt", "value": ""}]},
        "conversations_long[3].value",
        "empty answer",
    ),
    "extension of other questions": (
        {"conversations_long": turns("<image>\nWhat is this?", "A CT.", "When?", "Now.")},
        "conversations_long[2].value",
        r"the question differs: 'When\?' extends 'Where\?'",
    ),
    "both spellings": ({"conversatons": LONG}, "conversatons", "given in addition to `conversations`"),
    "odd id": ({"id": 1.5}, "id", "expected a text or a whole number, got 1.5"),
}


@pytest.fixture
def bad_images(folder):
    (folder / "images" / "broken.png").write_text("no image")
    whole = (folder / "images" / "a.png").read_bytes()
    (folder / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (8, 8)).save(folder.parent / "secret.png")
    (folder / "images" / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


@pytest.mark.parametrize(("changes", "field", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_refused_with_its_place_or_skipped_and_listed(bad_images, changes, field, reason):
    bad = instruct_row(**{"id": "bad", **changes})
    path = write_json(bad_images / "train.json", [instruct_row("good"), bad])
    with pytest.raises(RowError, match=reason) as refusal:
        load_training_rows(path)
    error = refusal.value
    row_id = None if bad["id"] == 1.5 else bad["id"]
    assert (error.file, error.position, error.row_id, error.field) == (str(path), "row 1", row_id, field)
    assert all(part in str(error) for part in (str(path), "row 1", field))
    rows = load_training_rows(path, on_bad_row="skip")
    assert rows.dataset["id"][:] == ["good"]
    assert [str(skipped) for skipped in rows.skipped] == [str(error)]


def test_the_skipped_rows_can_be_written_as_json_lines(bad_images):
    path = write_json(bad_images / "train.json", [instruct_row("good"), instruct_row("bad", image="gone.png")])
    load_training_rows(path, on_bad_row="skip").write_skipped(bad_images / "skipped.jsonl")
    (line,) = (bad_images / "skipped.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["file"], entry["position"], entry["row_id"], entry["field"]) == (str(path), "row 1", "bad", "image")


def test_a_damaged_image_passes_only_without_check_images(bad_images):
    path = write_json(bad_images / "train.json", [instruct_row(image="broken.png")])
    assert len(load_training_rows(path, check_images=False)) == 1
    with pytest.raises(RowError, match="missing image"):
        load_training_rows(write_json(path, [instruct_row(image="gone.png")]), check_images=False)


def test_a_bad_line_is_named_by_its_number(folder):
    path = write_lines(folder / "train.jsonl", [instruct_row("a")])
    path.write_text(path.read_text() + '\n{"id": "b",\n["c"]\n' + json.dumps(instruct_row("d")) + "\n")
    with pytest.raises(RowError, match=r"train\.jsonl: line 3 .*not valid JSON"):
        load_training_rows(path)
    rows = load_training_rows(path, on_bad_row="skip")
    assert rows.dataset["id"][:] == ["a", "d"]
    assert [error.position for error in rows.skipped] == ["line 3", "line 4"]


def test_files_that_are_no_training_data_are_refused_also_when_skipping(folder):
    with pytest.raises(ValueError, match="must hold a JSON list of rows, got dict"):
        load_training_rows(write_json(folder / "dict.json", {}), on_bad_row="skip")
    (folder / "lines.json").write_text("{}\n{}\n")
    with pytest.raises(ValueError, match=r"not valid JSON.*needs the ending \.jsonl"):
        load_training_rows(folder / "lines.json", on_bad_row="skip")
    with pytest.raises(ValueError, match=r"no usable training rows \(1 skipped\)"):
        load_training_rows(write_json(folder / "all_bad.json", [instruct_row(image="gone.png")]), on_bad_row="skip")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        load_training_rows(str(folder / "gone.json"))
    with pytest.raises(ValueError, match=r"must end in \.json"):
        load_training_rows(folder / "images" / "a.png")
    with pytest.raises(ValueError, match='`on_bad_row` must be "raise" or "skip", got \'ignore\''):
        load_training_rows(folder / "dict.json", on_bad_row="ignore")


def test_the_fingerprint_follows_ids_texts_and_names_but_not_the_folder(folder, tmp_path):
    def fingerprint(**changes):
        return load_training_rows(write_json(folder / "train.json", [instruct_row(**changes)])).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert (
        len(
            {
                first,
                fingerprint(row_id="b"),
                fingerprint(image="b.png"),
                fingerprint(conversations_long=[*LONG[:3], {"from": "gpt", "value": "Right."}]),
            }
        )
        == 4
    )
    folder.rename(tmp_path / "moved")
    write_json(tmp_path / "moved" / "train.json", [instruct_row()])
    assert load_training_rows(tmp_path / "moved" / "train.json").fingerprint == first


def test_rows_survive_a_saved_dataset_and_are_read_back_from_it(folder):
    rows = load_training_rows(write_json(folder / "train.json", [instruct_row("a"), instruct_row("b", image="b.png")]))
    rows.dataset.save_to_disk(str(folder / "saved"))
    with pytest.raises(RowError, match="outside the image folder"):
        load_training_rows(folder / "saved")
    again = load_training_rows(folder / "saved", image_folder=folder / "images")
    assert again.dataset.to_list() == rows.dataset.to_list()
    in_memory = load_training_rows(load_from_disk(str(folder / "saved")))
    assert in_memory.dataset.to_list() == rows.dataset.to_list()


def test_a_saved_dataset_with_embedded_images_keeps_their_bytes(folder):
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "CT"}]},
    ]
    features = Features(
        {
            "id": Value("string"),
            "images": List(ImageFeature()),
            "messages": List(
                {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
            ),
            "extended_answers": List(Value("string")),
        }
    )
    image = Image.new("L", (8, 6), 77)
    row = {"id": "a", "images": [image], "messages": messages, "extended_answers": ["A CT."]}
    splits = DatasetDict({"train": Dataset.from_list([row], features=features)})
    splits.save_to_disk(str(folder / "saved"))
    rows = load_training_rows(str(folder / "saved"))
    (stored,) = rows.dataset[0]["images"]
    assert (stored.size, stored.getpixel((0, 0))) == ((8, 6), 77)
    with pytest.raises(ValueError, match="has no split 'test'; it has 'train'"):
        load_training_rows(str(folder / "saved"), split="test")
    broken = splits["train"].cast_column("images", List(ImageFeature(decode=False)))
    broken = broken.map(lambda row: {"images": [{"bytes": b"no image", "path": None}]})
    with pytest.raises(RowError, match=r"the given dataset: row 0 \(id 'a'\), field `images`: unreadable image"):
        load_training_rows(broken)


def test_a_folder_for_load_dataset_with_conversations_is_read(folder):
    (folder / "hub").mkdir()
    write_lines(folder / "hub" / "train.jsonl", [instruct_row("a"), instruct_row("b", conversations_long=...)])
    rows = load_training_rows(folder / "hub", image_folder=folder / "images", on_bad_row="skip")
    assert rows.dataset["id"][:] == ["a"]
    assert "row 1 (id 'b'), field `conversations_long`: missing extended answers" in str(rows.skipped[0])


def test_a_hub_id_goes_to_load_dataset_with_its_split(folder, monkeypatch):
    calls = []

    def load_dataset(*arguments, **keywords):
        calls.append((arguments, keywords))
        return Dataset.from_list([instruct_row()])

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    rows = load_training_rows("someone/medical-chat", split="validation", image_folder=folder / "images")
    assert calls == [(("someone/medical-chat",), {"split": "validation"})]
    assert len(rows) == 1
    with pytest.raises(RowError, match=r"someone/medical-chat \(split train\): row 0"):
        load_training_rows("someone/medical-chat")


MESSAGES = [
    {"role": "user", "content": "<image>\nWhat?"},
    {"role": "assistant", "content": [{"type": "text", "text": "CT"}]},
]
BAD_MESSAGES = [
    ({"extended_answers": None}, "extended_answers", "missing extended answers"),
    ({"extended_answers": ["A CT.", "Left."]}, "extended_answers", r"2 extended answer\(s\) for 1 answer\(s\)"),
    ({"extended_answers": [""]}, "extended_answers[0]", "empty extended answer"),
    ({"extended_answers": "A CT."}, "extended_answers", "expected a list, got str"),
    (
        {"messages": [MESSAGES[0], {"role": "assistant", "content": [{"type": "video"}]}]},
        "messages[1].content[0]",
        "expected a part of type image or text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "<image> What?"}]}, MESSAGES[1]]},
        "messages[0].content",
        "a text part holds <image>",
    ),
    ({"messages": [{"role": "user", "content": []}, MESSAGES[1]]}, "messages[0].content", "empty turn"),
]


@pytest.mark.parametrize(("changes", "field", "reason"), BAD_MESSAGES)
def test_rows_of_messages_are_checked_like_conversations(folder, changes, field, reason):
    row = {"id": "a", "images": ["a.png"], "messages": MESSAGES, "extended_answers": ["A CT."]}
    good = load_training_rows(write_lines(folder / "good.jsonl", [row]))
    assert plain(good.dataset[0]["messages"]) == [("user", [None, "What?"]), ("assistant", ["CT"])]
    with pytest.raises(RowError, match=reason) as refusal:
        load_training_rows(write_lines(folder / "bad.jsonl", [{**row, **changes}]))
    assert (refusal.value.position, refusal.value.field) == ("line 1", field)
