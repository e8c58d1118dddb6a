"""Which files of a folder are published."""

import fnmatch
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from logramed.chat_templates_logramed import CHAT_TEMPLATES


# Files of a model's folder that are published unchanged; cards add result files.
MODEL_FILES = (
    *("*_logramed.py", "*.safetensors", "*.safetensors.index.json", "LICENSE*", "NOTICE*", "chat_template.*"),
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
)
# Files of an earlier push, removed from the repository if the new push does not have them.
REPLACED = (
    *MODEL_FILES,
    "additional_chat_templates/*",
    "evaluation/*",
    "run.json",
    "train_metrics.json",
    "curves.png",
)
NEVER_PUBLISHED = ("__pycache__", ".*", "*.pyc")


@dataclass
class Contents:
    """
    What to upload: `files`, a path or content by path in the repository; `left_out`, names in the folder that are not
    published; and `generated_images`, repository paths of images that show no patient.
    """

    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    generated_images: set[str] = field(default_factory=set)

    def describe(self) -> str:
        """List the files with their sizes."""
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }
        lines = [f"{sizes[name] / 2**10:12,.1f} KiB  {name}" for name in sorted(sizes)]
        lines.append(f"{sum(sizes.values()) / 2**10:12,.1f} KiB  in {len(sizes)} files")
        if self.left_out:
            lines.append(f"Not published: {', '.join(sorted(self.left_out))}")
        return "\n".join(lines)


def choose_model_files(folder: Path, include: Iterable[str] = ()) -> Contents:
    """
    Choose weights, code, settings and processor of a model's or adapter's folder, and additional files by the patterns
    of `include`, relative to the folder (`**` matches subfolders). Raises `ValueError` if weights are missing or not
    safetensors, or `include` matches no file.
    """
    contents = Contents()
    for path in sorted(folder.iterdir()):
        if path.is_file() and matches(path.name, MODEL_FILES):
            contents.files[path.name] = path
        elif not matches(path.name, NEVER_PUBLISHED):
            contents.left_out.append(f"{path.name}/" if path.is_dir() else path.name)
    check_weights(folder)
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        if path.read_text(encoding="utf-8") != CHAT_TEMPLATES.get(path.stem):  # else the code has it
            contents.files[path.relative_to(folder).as_posix()] = path
    for pattern in include:
        found = [path for path in folder.glob(pattern) if path.is_file() and not matches(path.name, NEVER_PUBLISHED)]
        if not found:
            raise ValueError(f"`include` {pattern!r} matches no file in {folder}.")
        contents.files |= {path.relative_to(folder).as_posix(): path for path in found}
    return contents


def check_weights(folder: Path) -> None:
    """Raise `ValueError` if `folder` has no safetensors weights, or lacks a file named in their index."""
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no safetensors weights: save the model with `save_pretrained`.")
    for path in folder.glob("*.safetensors.index.json"):
        missing = sorted(
            {
                name
                for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
                if not (folder / name).is_file()
            }
        )
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which {path.name} names.")


def choose_all_files(folder: Path) -> Contents:
    """Choose all files of a folder that is published unchanged, such as a Space."""
    contents = Contents()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(matches(part, NEVER_PUBLISHED) for part in name.parts):
            contents.files[name.as_posix()] = path
    return contents


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
