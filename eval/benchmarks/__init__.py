"""
The benchmarks of `eval/run.py`: one module each, with `load_questions(data_folder, split="test") -> list[dict]`.

A question row has `question_id` (str, unique), `image` (absolute path), `question` (without image placeholder),
`answer`, `answer_type` ("OPEN" or "CLOSED") and `groups`, the values to break figures down by.
"""

import importlib
from types import ModuleType


BENCHMARKS = {
    "vqa_rad": "logramed.eval.benchmarks.vqa_rad",
    "phantoms": "logramed.eval.benchmarks.phantoms",
}


def get_benchmark(name: str) -> ModuleType:
    """
    The module of a benchmark.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> get_benchmark("vqa_rad").load_questions.__name__
        'load_questions'
    """
    if name not in BENCHMARKS:
        raise ValueError(f"`benchmark` must be one of {', '.join(BENCHMARKS)}, got {name!r}.")
    return importlib.import_module(BENCHMARKS[name])
