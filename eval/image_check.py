"""Check that images can be decoded, in one parallel pass over those not checked by an earlier run."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import PIL
import torch
from datasets import config as datasets_config
from huggingface_hub.utils import WeakFileLock
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from logramed.eval.volumes import image_status, open_if_volume
from logramed.image_files_logramed import open_pixels
from logramed.image_processing_logramed import convert_to_rgb


# Raise the number when the check changes; another version of Pillow may reject other images.
CHECK = f"2 Pillow {PIL.__version__}"
# Readable images by `image_key`, one per line, in the Hugging Face cache.
MEMORY = Path("logramed", "readable_images.txt")
CHUNK_SIZE = 64  # images; up to this many are checked without workers and not remembered

EncodedImage = str | dict  # a path (see `logramed.eval.volumes`), or `{"bytes", "path"}` as in `datasets`


def find_unreadable(images: Iterable[EncodedImage]) -> dict[str, str]:
    """
    Decode all `images` and report the errors of those that fail.

    Uses several processes, as Pillow decodes under the GIL. Readable images are recorded in the Hugging Face cache by
    path, size and modification time (embedded ones by their bytes) during the pass, so that later or resumed runs only
    check the rest. If several processes start together, one decodes; the others wait and use its results.

    Returns:
        `dict[str, str]`: the reason for each unreadable image, by its `image_key`.
    """
    by_key = {image_key(image): image for image in images}
    path = Path(datasets_config.HF_CACHE_HOME) / MEMORY
    unknown = _leave_out_known(by_key, path)
    if len(unknown) <= CHUNK_SIZE:
        return {key: problem for key, image in unknown.items() if (problem := find_decoding_problem(image))}
    problems = {}
    with _lock(path) as path:
        unknown = _leave_out_known(by_key, path)
        with path.open("a", encoding="ascii") as memory:
            for keys, found in _decode_in_chunks(unknown):
                problems |= {key: problem for key, problem in zip(keys, found, strict=True) if problem}
                memory.write("".join(f"{key}\n" for key in keys if key not in problems))
                memory.flush()
    return problems


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[Path]:
    """Lock `path` against other processes; yields a temporary file instead if the cache is not writable."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(path.with_suffix(".lock")))
        except OSError:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
        yield path


def image_key(image: EncodedImage) -> str:
    """The cache key of an image, 64 hexadecimal digits. The file of a path must exist."""
    if isinstance(image, dict):
        return hashlib.sha256(CHECK.encode() + b"\0" + image["bytes"]).hexdigest()
    size, time_of_change = image_status(image)
    return hashlib.sha256(f"{CHECK}\0{image}\0{size}\0{time_of_change}".encode()).hexdigest()


def decode(image: EncodedImage) -> Image.Image:
    """Decode an image at full depth, upright (see `read_pixels`), or the slice that a volume reference names."""
    if isinstance(image, dict):
        return open_pixels(image["bytes"])
    return open_if_volume(image) or open_pixels(Path(image).read_bytes())


def find_decoding_problem(image: EncodedImage) -> str | None:
    """Process an image as training does before resizing. Returns the error as text, or `None`."""
    try:
        convert_to_rgb(decode(image), background_color=(0, 0, 0), name="It")
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return None


def _find_problems(images: list[EncodedImage]) -> list[str | None]:
    return [find_decoding_problem(image) for image in images]


def _decode_in_chunks(images: dict[str, EncodedImage]) -> Iterator[tuple[list[str], list[str | None]]]:
    """Keys and problems of each chunk of `CHUNK_SIZE` images, decoded by data workers."""
    keys = list(images)
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    loader = DataLoader(
        list(images.values()),
        CHUNK_SIZE,
        num_workers=min(num_processors, len(keys) // CHUNK_SIZE),
        collate_fn=_find_problems,
        generator=torch.Generator(),  # drawing a seed from the global generator would change later random numbers
    )
    with tqdm(desc="Checking images", total=len(keys), unit="image", leave=False, disable=None) as bar:
        for start, problems in zip(range(0, len(keys), CHUNK_SIZE), loader, strict=True):
            yield keys[start : start + CHUNK_SIZE], problems
            bar.update(len(problems))


def _leave_out_known(by_key: dict[str, EncodedImage], path: Path) -> dict[str, EncodedImage]:
    known = set(path.read_text(encoding="ascii", errors="replace").split()) if path.is_file() else set()
    return {key: image for key, image in by_key.items() if key not in known}
