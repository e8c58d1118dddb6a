"""
The benchmarks of `eval/run.py`, one module each.

A module has `TASK` ("vqa", "multiple_choice", "chat" or "report"), `SPLITS` (the first is the default),
`HUB_ID` (a data set of the Hugging Face Hub that it can also load, or `None`) and two functions:

- `load_questions(data, split="test", subset=None, skipped=None) -> list[dict]`: one row per question, in
  file order. `data` is a folder in the official layout or a Hub id. Raises `ValueError` for an unknown `split` or
  `subset`, a missing file or a bad row (with file, row and field); if `skipped` is a list, bad rows are left out and
  described there. Warns if row counts differ from the known ones;
- `count_differences(questions, split, subset=None) -> list[str]`: differences from the known size of the split.

A question row has `question_id` (str, unique), `image` (absolute path), `question` (without image placeholder),
`answer` and `groups`, the values to break figures down by; with task "vqa" also `answer_type` ("OPEN" or "CLOSED"),
with "multiple_choice" `options` (`answer` is one of them), with "chat" `context` and `domains`. A row about several
images has `images` (a list of paths) instead of `image`, and its `question` has one placeholder `<image>` for each
or, if all images come before the text, none.
"""

import importlib
from types import ModuleType


# Titles by module name.
BENCHMARKS = {
    "vqa_rad": "VQA-RAD",
    "slake": "SLAKE",
    "path_vqa": "PathVQA",
    "pmc_vqa": "PMC-VQA",
    "omnimedvqa": "OmniMedVQA",
    "chat": "LLaVA-Med's chat questions",
    "report": "image reports",
    "phantoms": "generated phantoms",
}


def get_benchmark(name: str) -> ModuleType:
    """
    The module of a benchmark. Raises `ValueError` for an unknown name.

    Example:
        >>> get_benchmark("vqa_rad").TASK
        'vqa'
    """
    if name not in BENCHMARKS:
        raise ValueError(f"`benchmark` must be one of {', '.join(BENCHMARKS)}, got {name!r}.")
    return importlib.import_module(f"logramed.eval.benchmarks.{name}")
