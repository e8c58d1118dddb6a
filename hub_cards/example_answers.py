"""Example answers of a model for its card, with their images where these may be shown."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from logramed.eval.comparison.run_folder import RunFolder
from logramed.eval.question_images import list_images
from logramed.hub_cards.evaluation_section import data_sets
from logramed.hub_cards.results import Evaluation
from logramed.image_processing_logramed import load_image


EXAMPLES_FILE = "examples/examples.json"
NUM_EXAMPLES, EXAMPLE_SIDE = 4, 256


def choose_examples(
    evaluations: Sequence[Evaluation], share_images_of: Sequence[str] = ()
) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """
    The first questions about the first images of the first evaluation, and the files that go with them.

    Their images go along where they are generated, or `share_images_of` names the benchmark. An example shows one
    image, so questions about several are no examples.
    """
    unknown = [name for name in share_images_of if name not in data_sets()]
    if unknown:
        raise ValueError(f"`share_images_of` names {unknown[0]!r}, which is no benchmark: {', '.join(data_sets())}.")
    for evaluation in evaluations:
        shows = data_sets()[evaluation.benchmark]["shows_images"] or evaluation.benchmark in share_images_of
        rows = first_of_images(evaluation.run)
        files: dict[str, bytes] = {}
        examples = []
        for number, row in enumerate(rows):
            example = {key: str(row[key]) for key in ("question", "prediction", "answer")}
            path = Path(*evaluation.run.images.get(row["question_id"], []))
            if shows and path.is_file():
                example["image"] = f"examples/{number}.png"
                example["image_said"] = f"Image {number + 1}"
                files[example["image"]] = shrink_image(path)
            examples.append(example)
        if examples:
            files[EXAMPLES_FILE] = json.dumps(examples, indent=1, ensure_ascii=False).encode() + b"\n"
            return examples, files
    return [], {}


def first_of_images(run: RunFolder) -> list[dict[str, Any]]:
    """The first question about each of the first images."""
    first: dict[str, dict[str, Any]] = {}
    for row in run.rows.values():
        if len(list_images(row)) == 1:
            first.setdefault(list_images(row)[0], row)
    return list(first.values())[:NUM_EXAMPLES]


def shrink_image(path: Path) -> bytes:
    """A PNG of at most `EXAMPLE_SIDE` pixels a side, without what the file says beside its pixels."""
    image = load_image(path)
    bare = Image.new(image.mode, image.size)
    bare.paste(image)
    factor = EXAMPLE_SIDE / max(bare.size)
    size = (max(1, round(bare.width * factor)), max(1, round(bare.height * factor)))
    file = io.BytesIO()
    bare.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()


def escape_cell(text: str) -> str:
    """
    A text in a cell of a Markdown table.

    Example:
        >>> escape_cell("left | right\\nlung <b>")
        'left \\\\| right lung &lt;b>'
    """
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())
