"""Records a run's arguments, data, code, packages, seeds and hardware in `run.json` next to the model."""

import dataclasses
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from logramed.eval.files import write_json
from logramed.trainer.build_model import PARTS_NAME
from logramed.trainer.phantoms import ARGUMENTS_FILE


logger = logging.getLogger(__name__)

RECORD_NAME = "run.json"
PACKAGES = (
    *("logramed", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors"),
    *("bitsandbytes", "deepspeed", "numpy", "pillow"),
)
# Arguments that determine which weights a run has.
SHAPING = (
    *("use_peft", "lora_r", "lora_target_modules", "lora_modules_to_save", "use_dora"),
    *("train", "load_in_4bit", "load_in_8bit"),
)
# Arguments that do not affect the results of a run.
WITHOUT_EFFECT = ("resume_from_checkpoint", "disable_tqdm", "log_level", "report_to", "run_name", "push_to_hub")


def record_run(
    output_dir: str | Path, arguments: Sequence[Any], fingerprints: dict[str, str], checkpoint: str | None
) -> Path:
    """
    Add a start, with the dataclasses `arguments` and the fingerprint of each data source, to `run.json` in
    `output_dir`; a resumed run has several starts. Without a `checkpoint` to resume from, or with one in another
    folder, the file starts from scratch. Raises `ValueError` if a run is resumed with changed data, or with arguments
    that need other weights; other changes give a warning.
    """
    path = Path(output_dir) / RECORD_NAME
    start = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": checkpoint,
        "arguments": describe_arguments(arguments),
        "data": fingerprints,
        "base_models": find_base_models(next((group.model for group in arguments if hasattr(group, "model")), None)),
        "generated_data": find_phantoms(fingerprints),
        "code": describe_code(),
        "packages": describe_packages(),
        "hardware": describe_hardware(),
    }
    starts = []
    own = [path.parent.resolve(), path.parent.resolve() / "first_stage"]
    if checkpoint is not None and Path(checkpoint).resolve().parent in own and path.is_file():
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        compare_with_last_start(starts[-1], start)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, {"starts": [*starts, start]})


def compare_with_last_start(last: dict[str, Any], start: dict[str, Any]) -> None:
    """Raises `ValueError` for changed data or weights, and warns of other changed settings (see `record_run`)."""
    for source, fingerprint in start["data"].items():
        if last["data"].get(source, fingerprint) != fingerprint:
            raise ValueError(
                f"{source} has changed since this run began: its fingerprint was {last['data'][source][:12]} and is "
                f"now {fingerprint[:12]}. Resume with the original data, or start a new run with another "
                "`output_dir`, if you like from this run's model."
            )
    changes = {
        name: f"`{name}` {last['arguments'].get(name)!r} -> {start['arguments'].get(name)!r}"
        for name in sorted(last["arguments"].keys() | start["arguments"].keys())
        if name not in WITHOUT_EFFECT and last["arguments"].get(name) != start["arguments"].get(name)
    }
    unfit = [changes[name] for name in SHAPING if name in changes]
    if unfit:
        raise ValueError(
            f"The run to resume has other weights: {'; '.join(unfit)}. Resume with the arguments in "
            f"{RECORD_NAME}, or start a new run with another `output_dir`."
        )
    changed = list(changes.values())
    changed += [f"{part} {last[part]} -> {start[part]}" for part in ("code", "packages") if last[part] != start[part]]
    if changed:
        logger.warning(f"The run is resumed with changed settings: {'; '.join(changed)}.")


def find_base_models(model: str | None) -> list[str]:
    """The models that a model was made from: its own id on the Hub, or those that its folder records."""
    if model is None:
        return []
    folder = Path(model)
    if not folder.is_dir():
        return [model]
    if (folder / PARTS_NAME).is_file():
        parts = json.loads((folder / PARTS_NAME).read_text(encoding="utf-8"))
        if "base_models" in parts:  # converted
            return list(parts["base_models"])
        return [parts[name] for name in ("vision", "language") if name in parts]  # a new language model has no name
    if (folder / RECORD_NAME).is_file():
        return json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))["starts"][-1].get("base_models", [])
    return []


def find_phantoms(sources: Iterable[str]) -> dict[str, Any] | None:
    """The arguments that phantoms were drawn with, if all `sources` of data are phantoms; otherwise None."""
    records = [Path(source).parent / ARGUMENTS_FILE for source in sources]
    if not records or not all(record.is_file() for record in records):
        return None
    return json.loads(records[0].read_text(encoding="utf-8"))


def describe_arguments(arguments: list[Any]) -> dict[str, Any]:
    """All arguments by name, in JSON types, without secrets."""
    described = {}
    for group in arguments:
        values = group.to_dict() if hasattr(group, "to_dict") else dataclasses.asdict(group)
        described |= {name: value for name, value in values.items() if not name.endswith("token")}
    return json.loads(json.dumps(described, default=str))


def describe_code() -> dict[str, Any]:
    """The git revision of this package's folder, and whether tracked files differ; None outside a checkout."""
    folder = Path(__file__).parents[1]
    revision = _run_git(folder, "rev-parse", "HEAD")
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_revision": revision, "git_changes": None if changes is None else bool(changes)}


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def describe_packages() -> dict[str, str]:
    """Versions of the installed packages that training uses."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_hardware() -> dict[str, Any]:
    """Platform, CPU cores, memory, accelerators, and the number of processes of the run."""
    accelerators = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "num_cpu_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerators": accelerators,
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
