"""What of a folder travels to the Hub, what stays here and why."""

import fnmatch
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from logramed.chat_templates_logramed import CHAT_TEMPLATES


CODE = ("*_logramed.py",)
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "logramed.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.*",
    "LICENSE*",
    "NOTICE*",
)
# What stays here without being asked for, and why.
STAYS = {
    "checkpoint-*": "state of training",
    "first_stage": "state of training",
    "unfinished": "state of training",
    "earlier-*": "state of training",
    "optimizer*": "state of training",
    "scheduler.pt": "state of training",
    "rng_state*": "state of training",
    "logramed_state*": "state of training",
    "trainer_state.json": "state of training",
    "global_step*": "state of training",
    "training_args.bin": "a pickle with paths of this machine",
    "runs": "logs of TensorBoard, which name this machine",
    "matchings": "pictures that show images of the training data",
    "README.md": "written anew",
    "SHA256SUMS": "written anew",
    "card_figures.json": "written anew",
    "model.sig": "written anew",
    "run.json": "read for the card; travels without paths",
    "parts.json": "read for the card",
    "training": "a graph network, for training on",
    "train_metrics.json": "read for the card; travels without paths",
    "curves.png": "read for the card",
    "evaluation*": "read for the card; its figures travel",
    "skipped_rows*": "rows of the training data",
    "run.lock": "state of a run",
}
ALWAYS_LEFT = ("__pycache__", ".git", ".cache", ".DS_Store", "*.pyc")


@dataclass
class Contents:
    """
    What is to be uploaded.

    Attributes:
        files (`dict[str, Path | bytes]`): Paths in the repository, and the file or the content that comes there.
        left_out (`dict[str, str]`): What stays here of the folder, and why.
        shareable_images (`set[str]`): Paths in the repository of images known to be fit for sharing.
    """

    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    shareable_images: set[str] = field(default_factory=set)

    def size(self, name: str) -> int:
        """In bytes."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def stage(self, folder: Path) -> None:
        """Lay all files into an empty folder: linked where the disk can, copied otherwise."""
        for name, content in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
                continue
            try:
                os.link(content.resolve(), target)
            except OSError:
                shutil.copyfile(content, target)

    def describe(self) -> str:
        """A list with sizes, for people."""
        width = max(map(len, self.files), default=0)
        lines = [f"  {name:<{width}}  {format_size(self.size(name)):>9}" for name in sorted(self.files)]
        total = sum(map(self.size, self.files))
        lines.append(f"  {f'{len(self.files)} files':<{width}}  {format_size(total):>9}")
        if self.left_out:
            lines.append("Stays here:")
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.left_out.items())]
        return "\n".join(lines)


def format_size(size: int) -> str:
    """
    Example:
        >>> format_size(512), format_size(1536), format_size(3 * 2**30)
        ('512 B', '1.5 KiB', '3.0 GiB')
    """
    number = float(size)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def choose_model_files(folder: Path, include: Iterable[str] = (), share_images: bool = False) -> Contents:
    """
    Weights, code, settings and processor of a model's or adapter's folder, and what `include` names.

    Args:
        folder (`Path`): As `save_pretrained` or a training run writes it.
        include: Patterns of further files, relative to the folder; `**` goes into folders.
        share_images (`bool`, *optional*, defaults to `False`): Images among these may be shared, by their terms.

    Raises:
        ValueError: If there are no weights as safetensors, or `include` fits nothing.
    """
    contents = Contents()
    wanted = (*CODE, *WEIGHTS, *SETTINGS)
    for path in sorted(folder.iterdir()):
        reason = next((why for pattern, why in STAYS.items() if fnmatch.fnmatch(path.name, pattern)), None)
        if path.is_file() and reason is None and any(fnmatch.fnmatch(path.name, pattern) for pattern in wanted):
            contents.files[path.name] = path
        elif not _is_always_left(path):
            name = f"{path.name}/" if path.is_dir() else path.name
            contents.left_out[name] = reason or "not known here; `--include` takes it"
    if not any(name.endswith(".safetensors") for name in contents.files):
        pickled = [path.name for path in folder.glob("*.bin") if path.name != "training_args.bin"]
        found = f" {', '.join(pickled)} is a pickle: save the model again with `save_pretrained`." if pickled else ""
        raise ValueError(f"{folder} holds no weights as safetensors.{found}")
    contents.left_out.pop("additional_chat_templates/", None)
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        name = path.relative_to(folder).as_posix()
        if path.read_text(encoding="utf-8") == CHAT_TEMPLATES.get(path.stem):
            contents.left_out[name] = "in the code that travels"
        else:
            contents.files[name] = path
    _include(contents, folder, include, share_images)
    return contents


def choose_all_files(folder: Path) -> Contents:
    """Every file of a folder that is published as it is, such as a Space's."""
    contents = Contents()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(_is_always_left(part) for part in [path, *path.relative_to(folder).parents]):
            contents.files[path.relative_to(folder).as_posix()] = path
    return contents


def _include(contents: Contents, folder: Path, patterns: Iterable[str], share_images: bool) -> None:
    for pattern in patterns:
        found = [path for path in folder.glob(pattern) if path.is_file() and not _is_always_left(path)]
        if not found:
            raise ValueError(f"`include` {pattern!r} fits no file in {folder}.")
        for path in found:
            name = path.relative_to(folder).as_posix()
            contents.files[name] = path
            contents.left_out.pop(name, None)
            if share_images:
                contents.shareable_images.add(name)


def _is_always_left(path: Path) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in ALWAYS_LEFT)
