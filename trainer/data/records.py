"""Reads training records: the LLaVA-Med instruct form with extended answers, and TRL's forms."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.utils import logging

from logramed.eval.image_check import decode
from logramed.eval.question_images import split_placeholders
from logramed.eval.text_values import number_repeated
from logramed.eval.volumes import VolumeOptions

from .rows import (
    BadRows,
    ImageFolder,
    ReadRow,
    RowError,
    RowLocation,
    Turn,
    check_alternation,
    check_contents,
    check_extended,
    check_questions,
    read_text,
    show_volumes,
)


logger = logging.get_logger(__name__)

# The alignment file of the LLaVA-Med release misspells its key, and so does the extended one.
CONVERSATION_KEYS = ("conversations", "conversatons")
EXTENDED_KEYS = ("conversations_long", "conversatons_long")
# Question and answer in LLaMA-Factory's "alpaca" form and in ms-swift's, with earlier turns in `history`.
INSTRUCTION_KEYS, QUERY_KEYS = ("instruction", "output"), ("query", "response")
# Keys under which a part of a message may name its image.
PART_IMAGE_KEYS = ("image", "path", "url")
FIELDS = (
    "id",
    "image",
    "images",
    *CONVERSATION_KEYS,
    "messages",
    "prompt",
    "completion",
    "system",
    *INSTRUCTION_KEYS,
    *QUERY_KEYS,
    "input",
    "history",
    *EXTENDED_KEYS,
    "extended_answers",
)
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class RecordReader:
    """
    Turns records into canonical rows. A record has `image` or `images` (a name, an embedded image, a list of these, or
    nothing for text only), and `conversations`, `messages`, `prompt` and `completion`, or LLaMA-Factory's and
    ms-swift's `instruction` and `output`, or `query` and `response`, with `history` and `system`. Extended answers are
    in `conversations_long` or `extended_answers`. Other fields are ignored. Without an `image_folder`, images stay
    unchanged. `rows_without_image` is "refuse", "language_only" (such rows need no extended answers), or None for
    training without alignment; `require_questions` requires words in every question.
    """

    image_folder: ImageFolder | None
    require_extended: bool
    rows_without_image: str | None = None
    require_questions: bool = False
    volumes: VolumeOptions | None = None

    def read(
        self,
        location: RowLocation,
        record: dict[str, Any],
        extension: tuple[RowLocation, dict[str, Any]] | None = None,
    ) -> ReadRow:
        """The canonical row of `record`, or a `RowError`; `extension` is the record of a file of extended answers."""
        image_field, images = find_images(location, record)
        found = [self._find_image(image, location, image_field) for image in images]
        turns_field, turns = read_turns(location, record)
        without_system, turns = turns, add_system(location, record, turns)
        if turns_field not in CONVERSATION_KEYS:
            turns = put_images_first(turns, len(images))
        check_alternation(location, turns, turns_field)
        check_contents(location, turns, len(images), turns_field, image_field)
        has_node = bool(images) or self.rows_without_image is None
        if not has_node and self.rows_without_image == "refuse":
            raise location.error(
                image_field, "no image, which alignment needs; `--rows_without_image language_only` trains such rows"
            )
        if has_node and self.require_questions:
            check_questions(location, turns)
        extended_field, extended_answers = read_own_extension(location, record, without_system)
        if extension is not None:
            if extended_answers is not None:
                raise location.error(extended_field, f"extended answers both here and in {extension[0].file}")
            extended_answers = read_second_file(*extension, record, without_system)
        if extended_answers is None and self.require_extended and has_node:
            raise location.error(extended_field, "missing extended answers, which these `alignment_texts` need")
        if extended_answers is not None:
            num_answers = sum(turn.role == "assistant" for turn in turns)
            extended_answers = check_extended(location, extended_answers, num_answers, extended_field)
        found, turns = show_volumes(location, found, turns, self.volumes or VolumeOptions(), image_field)
        row = {"id": location.row_id, "images": found, "extended_answers": extended_answers}
        row["messages"] = [{"role": turn.role, "content": turn.parts} for turn in turns]
        return ReadRow(location, row, image_field, images)

    def _find_image(self, image: Any, location: RowLocation, field: str) -> Any:
        if isinstance(image, dict) and image.get("bytes") is not None:
            return {"bytes": image["bytes"], "path": image.get("path")}
        name = image.get("path") if isinstance(image, dict) else image
        if self.image_folder is not None:
            return self.image_folder.find(name, location, field)
        if not isinstance(name, str | Path | Image.Image):
            raise location.error(field, f"expected a path or an image, got {name!r}")
        return name


def canonical_row(row: dict[str, Any], position: str) -> dict[str, Any]:
    """
    Turns a row in any form of `RecordReader` into a canonical row (`id`, `images`, `messages`, `extended_answers`).

    Args:
        row (`dict`): Its images are PIL images, paths, or `{"bytes", "path"}`. A canonical row stays as it is.
        position (`str`): Names the row in errors, and is its id if it has none.

    Returns:
        `dict`: its images are PIL images or paths, in the order of the placeholders; `extended_answers` may be `None`.

    Raises:
        RowError: If the row cannot be used.

    Example:
        >>> row = canonical_row({"images": ["/a.png"], "prompt": "Which organ?", "completion": "Lung"}, "row 17")
        >>> row["id"], row["messages"][0]["content"]
        ('row 17', [{'type': 'image'}, {'type': 'text', 'text': 'Which organ?'}])
    """
    location = locate(RowLocation("training data", position), row)
    found = RecordReader(None, require_extended=False).read(location, row).row
    return {**found, "images": [open_embedded(image, location) for image in found["images"]]}


def open_embedded(image: Any, location: RowLocation) -> Any:
    """Decodes an image embedded in its row as `{"bytes", "path"}`; returns any other unchanged."""
    if not isinstance(image, dict):
        return image
    try:
        return decode(image)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise location.error("images", f"unreadable image: {type(error).__name__}: {error}") from error


def locate(location: RowLocation, record: dict[str, Any]) -> RowLocation:
    """The location of a record with its id, or with its position as id if it has none."""
    row_id = record.get("id")
    return location.with_id(location.position if row_id is None else row_id)


def find_key(location: RowLocation, record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The one of `keys` that the record fills (Arrow writes `None` for missing keys); `RowError` if it fills two."""
    found = [key for key in keys if record.get(key) is not None]
    if len(found) > 1:
        raise location.error(found[1], f"given in addition to `{found[0]}`; keep one of them")
    return found[0] if found else None


def find_images(location: RowLocation, record: dict[str, Any]) -> tuple[str, list[Any]]:
    field = find_key(location, record, ("image", "images")) or "image"
    images = record.get(field)
    if images is None or images == "" or images == []:
        return field, find_images_of_parts(record.get("messages"))
    return field, images if isinstance(images, list) else [images]


def find_images_of_parts(messages: Any) -> list[str]:
    """The names of images in the parts of messages, in their order, as ms-swift and Qwen-VL write them."""
    found = []
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "image":
                found.append(next((part[key] for key in PART_IMAGE_KEYS if part.get(key)), None))
    return [name for name in found if isinstance(name, str)]


def read_turns(location: RowLocation, record: dict[str, Any]) -> tuple[str, list[Turn]]:
    """The field that holds the conversation, and its turns in order."""
    field = find_key(location, record, (*CONVERSATION_KEYS, "messages"))
    if field == "messages":
        return field, read_messages(location, record, field)
    if field is not None:
        entries = read_entries(location, record, field)
        turns = [read_conversation_turn(location, entry, f"{field}[{n}]") for n, entry in enumerate(entries)]
        return field, turns
    if record.get("prompt") is None or record.get("completion") is None:
        for question, answer in (INSTRUCTION_KEYS, QUERY_KEYS):
            if record.get(question) is not None and record.get(answer) is not None:
                return question, read_pairs(location, record, question, answer)
        needed = "`conversations`, `messages`, `prompt` and `completion`, or a question and an answer"
        raise location.error("conversations", f"missing; a row needs {needed}")
    prompt = read_messages(location, record, "prompt", "user")
    if any(turn.role == "assistant" for turn in prompt):  # all answers of a row are learned
        raise location.error("prompt", "holds an answer, which would be learned too; write `messages` to learn both")
    return "prompt", prompt + read_messages(location, record, "completion", "assistant")


def read_pairs(location: RowLocation, record: dict[str, Any], question: str, answer: str) -> list[Turn]:
    """The turns of `history`, a list of pairs, and of the fields `question` (followed by `input`) and `answer`."""
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise location.error("history", f"expected a list of pairs of question and answer, got {history!r:.100}")
    asked = read_text(record[question], location, question, "turn")
    if record.get("input") not in (None, ""):
        asked = f"{asked}\n{read_text(record['input'], location, 'input', 'turn')}"
    pairs = [(*pair, f"history[{number}]") for number, pair in enumerate(history)]
    turns = []
    for said, replied, field in [*pairs, (asked, record[answer], answer)]:
        turns.append(Turn("user", split_placeholders(read_text(said, location, field, "turn")), field))
        turns.append(Turn("assistant", split_placeholders(read_text(replied, location, field, "answer")), field))
    return turns


def add_system(location: RowLocation, record: dict[str, Any], turns: list[Turn]) -> list[Turn]:
    """`turns` after a system turn from the field `system`, if a row has one."""
    if record.get("system") in (None, "") or (turns and turns[0].role == "system"):
        return turns
    text = read_text(record["system"], location, "system", "turn")
    return [Turn("system", split_placeholders(text), "system"), *turns]


def read_messages(location: RowLocation, record: dict[str, Any], field: str, role: str | None = None) -> list[Turn]:
    """The turns of a list of messages; with `role`, the field may also be a text: one turn of that role."""
    if role is not None and not isinstance(record[field], list):
        text = read_text(record[field], location, field, "answer" if role == "assistant" else "turn")
        return [Turn(role, split_placeholders(text), field)]
    entries = read_entries(location, record, field)
    return [read_message(location, entry, f"{field}[{number}]") for number, entry in enumerate(entries)]


def put_images_first(turns: list[Turn], num_images: int) -> list[Turn]:
    """Puts images at the start of the user's first turn, as TRL does, if no turn has a place for images."""
    number = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if number is None or not turns[number].parts or any(turn.num_images for turn in turns):
        return turns
    turn = turns[number]._replace(parts=[{"type": "image"}] * num_images + turns[number].parts)
    return [*turns[:number], turn, *turns[number + 1 :]]


def read_entries(location: RowLocation, record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    entries = record[field]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise location.error(field, "expected a list of turns")
    return entries


def read_conversation_turn(location: RowLocation, entry: dict[str, Any], field: str) -> Turn:
    role = read_role(location, entry.get("from"), f"{field}.from")
    what = "answer" if role == "assistant" else "turn"
    text = read_text(entry.get("value"), location, f"{field}.value", what)
    return Turn(role, split_placeholders(text), f"{field}.value")


def read_message(location: RowLocation, entry: dict[str, Any], field: str) -> Turn:
    role = read_role(location, entry.get("role"), f"{field}.role")
    content, field = entry.get("content"), f"{field}.content"
    if not isinstance(content, list):
        text = read_text(content, location, field, "answer" if role == "assistant" else "turn")
        return Turn(role, split_placeholders(text), field)
    parts = [read_part(location, part, f"{field}[{number}]") for number, part in enumerate(content)]
    return Turn(role, parts, field)


def read_part(location: RowLocation, part: Any, field: str) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image":
        return {"type": "image"}
    if kind == "text":
        return {"type": "text", "text": read_text(part.get("text"), location, f"{field}.text", "text part")}
    raise location.error(field, f"expected a part of type image or text, got {part!r}")


def read_role(location: RowLocation, role: Any, field: str) -> str:
    if role not in ROLES:
        raise location.error(field, f"odd turns: expected human or gpt, got {role!r}")
    return ROLES[role]


def read_own_extension(
    location: RowLocation, record: dict[str, Any], turns: list[Turn]
) -> tuple[str, list[Any] | None]:
    """The field for a record's own extended answers, and these answers (`None` if it has none)."""
    field = find_key(location, record, (*EXTENDED_KEYS, "extended_answers"))
    if field is None:
        return EXTENDED_KEYS[0] if find_key(location, record, CONVERSATION_KEYS) else "extended_answers", None
    if field == "extended_answers":
        return field, record[field]
    return field, read_extended_answers(location, record, field, turns)


def read_second_file(
    extension_location: RowLocation, extension: dict[str, Any], record: dict[str, Any], turns: list[Turn]
) -> list[str]:
    """
    The extended answers of a second file's record, in `conversations_long` or, as the release's generator writes them,
    in `conversations`. If both records name an image, it must be the same.
    """
    field = find_key(extension_location, extension, EXTENDED_KEYS)
    field = field or find_key(extension_location, extension, CONVERSATION_KEYS)
    if field is None:
        raise extension_location.error("conversations", "missing; extended answers are read from this field")
    image, extended_image = record.get("image"), extension.get("image")
    if image and extended_image and image != extended_image:
        raise extension_location.error("image", f"{extended_image!r} here, {image!r} in the row it extends")
    return read_extended_answers(extension_location, extension, field, turns)


def read_extended_answers(location: RowLocation, record: dict[str, Any], field: str, turns: list[Turn]) -> list[str]:
    """The answers of an extended conversation, which must repeat the turns and the questions of `turns`."""
    extended_turns = [
        read_conversation_turn(location, entry, f"{field}[{number}]")
        for number, entry in enumerate(read_entries(location, record, field))
    ]
    if [turn.role for turn in extended_turns] != [turn.role for turn in turns]:
        raise location.error(field, f"{len(extended_turns)} turns that do not match the {len(turns)} they extend")
    for turn, extended_turn in zip(turns, extended_turns, strict=True):
        if turn.role == "user" and turn.text != extended_turn.text:
            raise location.error(
                extended_turn.field, f"the question differs: {extended_turn.text!r} extends {turn.text!r}"
            )
        if turn.role == "assistant" and extended_turn.num_images:
            raise location.error(extended_turn.field, "an image placeholder in an extended answer")
    return [turn.text for turn in extended_turns if turn.role == "assistant"]


def index_by_id(
    records: Iterable[tuple[RowLocation, dict[str, Any]]], bad_rows: BadRows, make_ids: bool = False
) -> dict[str, tuple[RowLocation, dict[str, Any]]]:
    """
    Records by id, in order; unless `make_ids`, a record without an id is a bad row. Ids that several records share (an
    image's, for example, in PathVQA's converted files) get "-1", "-2", ... appended, as evaluation numbers questions.
    """
    read = []
    for location, record in records:
        try:
            read.append((locate(location, record) if make_ids else location.with_id(record.get("id")), record))
        except RowError as error:
            bad_rows.add(error)
    ids = [location.row_id for location, _ in read]
    numbered = number_repeated(ids)
    changed = [new for own_id, new in zip(ids, numbered, strict=True) if new != own_id]
    if changed:
        logger.warning(
            f"{read[0][0].file}: {len(changed)} row(s) share their id with another, and get a number appended, such "
            f"as {changed[0]}."
        )
    return {new: (location.with_id(new), record) for new, (location, record) in zip(numbered, read, strict=True)}
