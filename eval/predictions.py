"""The file of a model's answers, written as they come and completed by a later run if this one is stopped."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from logramed.eval.files import to_json_line, write_json_lines, write_whole


class PredictionFile:
    """
    One JSON object a line: the question's row, with the image by file name, and the model's `prediction`.

    Lines are appended in the order of answering; `finish` puts them into the order of the questions, so that the
    finished file is the same whether or not the run was stopped in between.

    Args:
        path (`Path`): The file; it need not exist.
        questions: Question rows (see `eval/benchmarks`), their `question_id` unique.

    Example:
        >>> import tempfile
        >>> question = {"question_id": "1", "image": "/data/a.jpg", "question": "Side?", "answer": "left"}
        >>> question |= {"answer_type": "OPEN", "groups": {}}
        >>> predictions = PredictionFile(Path(tempfile.mkdtemp()) / "predictions.jsonl", [question])
        >>> [row["question_id"] for row in predictions.resume()]
        ['1']
        >>> with predictions.open_for_append() as write_answer:
        ...     write_answer(question, "right")
        >>> predictions.resume(), predictions.finish()[0]["prediction"]
        ([], 'right')
    """

    def __init__(self, path: Path, questions: Sequence[dict]):
        self.path = path
        self.questions = questions

    def resume(self) -> list[dict]:
        """
        The questions without an answer in the file. A last line that was cut off while being written is removed.

        Raises:
            ValueError: If another line is no answer, or answers a question that was not asked or is answered already.
        """
        written = self.path.read_bytes() if self.path.is_file() else b""
        # Bytes: the cut may go through a character.
        whole_lines = written[: written.rfind(b"\n") + 1].decode()
        if len(whole_lines.encode()) < len(written):
            write_whole(self.path, whole_lines)
        answered = self._read(whole_lines)
        return [question for question in self.questions if question["question_id"] not in answered]

    @contextmanager
    def open_for_append(self) -> Iterator[Callable[..., None]]:
        """
        Gives a function of a question row and its answer that appends them to the file at once.

        The row is told by its id, and may ask otherwise than the benchmark's, which is the one written. Further fields
        of the answer are passed by name.
        """
        rows = {question["question_id"]: question for question in self.questions}
        with self.path.open("a", encoding="utf-8") as file:

            def write_answer(question: dict, answer: str, **fields) -> None:
                file.write(to_json_line(_answered(rows[question["question_id"]], answer) | fields))
                file.flush()

            yield write_answer

    def replace(self, answers: Mapping[str, str]) -> list[dict]:
        """Write the answers, by question id, in place of what the file holds, and return the lines."""
        rows = [_answered(question, answers[question["question_id"]]) for question in self.questions]
        write_json_lines(self.path, rows)
        return rows

    def finish(self) -> list[dict]:
        """
        Put the lines into the order of the questions and return them.

        Raises:
            ValueError: If a question has no answer.
        """
        answered = self._read(self.path.read_text(encoding="utf-8"))
        missing = [question["question_id"] for question in self.questions if question["question_id"] not in answered]
        if missing:
            raise ValueError(f"{self.path} lacks answers to {len(missing)} questions, among them {missing[:5]}.")
        rows = [answered[question["question_id"]] for question in self.questions]
        write_json_lines(self.path, rows)
        return rows

    def _read(self, text: str) -> dict[str, dict]:
        asked = {question["question_id"] for question in self.questions}
        answered = {}
        # Not `splitlines`: answers may hold other line separators than "\n".
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            where = f"{self.path}, line {number}"
            try:
                row = json.loads(line)
                question_id = row["question_id"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{where} is no answer: {line[:80]!r}. Delete the line to ask again.") from error
            if question_id not in asked:
                raise ValueError(f"{where} answers question {question_id!r}, which was not asked. Delete the line.")
            if question_id in answered:
                raise ValueError(f"{where} answers question {question_id!r} a second time. Delete one of the lines.")
            answered[question_id] = row
        return answered


def _answered(question: dict, answer: str) -> dict:
    return question | {"image": Path(question["image"]).name, "prediction": answer}
