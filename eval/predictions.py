"""The file of a model's answers, written as they come and completed by a later run if this one is stopped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from logramed.eval.files import write_json_lines
from logramed.eval.question_images import name_images
from logramed.eval.resumable_file import ResumableFile


class PredictionFile:
    """
    One JSON object a line: the question's row, with its images by file name, and the model's `prediction`.

    Lines are appended in the order of answering; `finish` puts them into the order of the questions.

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
        self.questions = {question["question_id"]: question for question in questions}
        self._lines = ResumableFile(path, list(self.questions), lambda row: row["question_id"], kind="answer")

    def resume(self) -> list[dict]:
        """
        The questions without an answer in the file. A last line that was cut off while being written is removed.

        Raises:
            ValueError: If another line is no answer, or answers a question that was not asked or is answered already.
        """
        return [self.questions[question_id] for question_id in self._lines.missing()]

    @contextmanager
    def open_for_append(self) -> Iterator[Callable[..., None]]:
        """
        Gives a function of a question row and its answer that appends them to the file at once.

        The row is told by its id, and may ask otherwise than the benchmark's, which is the one written. Further fields
        of the answer are passed by name.
        """
        with self._lines.open_for_append() as write_line:

            def write_answer(question: dict, answer: str, **fields) -> None:
                write_line(_answered(self.questions[question["question_id"]], answer) | fields)

            yield write_answer

    def replace(self, answers: Mapping[str, str]) -> list[dict]:
        """Write the answers, by question id, in place of what the file holds, and return the lines."""
        rows = [_answered(question, answers[question_id]) for question_id, question in self.questions.items()]
        write_json_lines(self.path, rows)
        return rows

    def finish(self) -> list[dict]:
        """
        Put the lines into the order of the questions and return them.

        Raises:
            ValueError: If a question has no answer.
        """
        answered = self._lines.finish()
        missing = [question_id for question_id in self.questions if question_id not in answered]
        if missing:
            raise ValueError(f"{self.path} lacks answers to {len(missing)} questions, among them {missing[:5]}.")
        return list(answered.values())


def _answered(question: dict, answer: str) -> dict:
    return question | name_images(question) | {"prediction": answer}
