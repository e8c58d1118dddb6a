"""
Medical visual chat: the questions of LLaVA-Med's `llava_med_eval_qa50_qa.jsonl`, about figures of articles.

Source: Li et al. 2023, arXiv:2306.00890, whose repository has the file in `data/eval/`; you provide the images.
The Hub has no commonly used copy. The reference answers are from GPT-4, which saw the caption and the sentences that
mention the figure, not the image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logramed.eval.benchmarks.hub import read_questions, require_file
from logramed.eval.benchmarks.rows import (
    check_ids,
    check_split,
    check_subset,
    describe_count_differences,
    find_images,
    read_question,
    read_text,
    warn_of_differences,
)
from logramed.eval.metrics.medical_chat_judge.judge_scoring import NO_DOMAIN
from logramed.eval.metrics.medical_chat_judge.judge_scoring import RELEASE_DOMAINS as DOMAINS


TASK = "chat"
SPLITS = ("test",)
HUB_ID = None
NAME = "llava_med_eval_qa50_qa.jsonl"
FILES = (NAME, f"eval/{NAME}", f"data/eval/{NAME}")
# Relative to the file's folder: next to it, and where LLaVA-Med's commands look (`data/images` for `data/eval/...`).
IMAGE_FOLDERS = ("images", "qa50_images", "../images", "../qa50_images", ".")
IMAGE_ARCHIVES = ("images.zip", "qa50_images.zip", "../qa50_images.zip")
# Source: the official file, with questions 0 to 192, of which 0 to 142 are conversation; the paper's table of the chat
# evaluation has the same 143 + 50 = 193.
EXPECTED_COUNTS = {"questions": 193, "images": 50}


def load_questions(
    data: str | Path, split: str = "test", subset: str | None = None, skipped: list[str] | None = None
) -> list[dict]:
    """
    The questions, with GPT-4's `answer`, `context` (what a judge may read about the figure) and `domains` in the order
    of `DOMAINS`; the first one counts, as in LLaVA-Med. `data` is the file, the folder with it, or LLaVA-Med's
    repository.
    """
    check_split(split, SPLITS)
    check_subset(subset, (), "chat")
    path = Path(data).expanduser().resolve()
    if not path.exists():
        raise ValueError(f"`data` must be LLaVA-Med's {NAME} or the folder with it; {str(data)!r} does not exist.")
    path = path if path.is_file() else require_file(path, FILES, "chat")
    questions = read_questions(
        path,
        _question_row,
        skipped,
        image_fields=("image", "images"),
        image_folders=IMAGE_FOLDERS,
        archives=IMAGE_ARCHIVES,
        id_field="question_id",
    )
    check_ids(questions, path)
    warn_of_differences("chat", split, count_differences(questions, split))
    return questions


def count_differences(questions: Sequence[dict], split: str, subset: str | None = None) -> list[str]:
    """Describe differences from the official file."""
    return describe_count_differences(questions, EXPECTED_COUNTS)


def _question_row(record: Mapping[str, Any], where: str, images: Path) -> dict:
    domains = read_domains(record, where)
    found = find_images(images, record, where)
    return {
        "question_id": read_text(record, "question_id", where),
        **found,
        "question": read_question(record, "text", where, found.get("images")),
        "answer": read_text(record, "gpt4_answer", where),
        "context": read_context(record, where),
        "domains": domains,
        "groups": {
            "question_type": read_text(record, "type", where).lower(),
            "domain": domains[0] if domains else NO_DOMAIN,
        },
    }


def read_domains(record: Mapping[str, Any], where: str) -> list[str]:
    """
    The true domains in `domain`, in the order of `DOMAINS`; `[]` if there are none or the row has no `domain`.

    Example:
        >>> read_domains({"domain": {"gross": True, "mri": False, "histology": True}}, "qa.jsonl, line 1")
        ['histology', 'gross']
    """
    domain = record.get("domain") or {}
    is_known = isinstance(domain, dict) and set(domain) <= set(DOMAINS)
    if not is_known or not all(value in (True, False, None) for value in domain.values()):
        raise ValueError(f"{where}, `domain`: expected {', '.join(DOMAINS)} with true or false, got {domain!r}.")
    return [name for name in DOMAINS if domain.get(name)]


def read_context(record: Mapping[str, Any], where: str) -> str:
    """
    What a judge may read about a figure: its caption and each sentence that mentions it, one per line.

    Example:
        >>> figure = {"fig_label": "Fig. 3", "fig_caption": "A mass."}
        >>> mentions = [{"tokens": "There was a mass ( Fig. 3 ) .", "entities": []}]
        >>> print(read_context(figure | {"in_text_mention": mentions}, "qa.jsonl, line 1"))
        Caption of Fig. 3: A mass.
        Mentioned in the text: There was a mass ( Fig. 3 ) .
    """
    label = str(record.get("fig_label") or "").strip().rstrip(".")
    lines = [f"Caption{f' of {label}' if label else ''}: {read_text(record, 'fig_caption', where)}"]
    mentions = record.get("in_text_mention") or []
    if not isinstance(mentions, list) or not all(isinstance(mention, dict) for mention in mentions):
        raise ValueError(f"{where}, `in_text_mention`: expected a list of objects or null, got {mentions!r}.")
    for number, mention in enumerate(mentions):
        lines.append(f"Mentioned in the text: {read_text(mention, 'tokens', f'{where}, `in_text_mention[{number}]`')}")
    return "\n".join(lines)
