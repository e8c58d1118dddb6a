"""Reads weight files of any format one tensor at a time, and writes safetensors one shard at a time."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from logramed.eval.files import write_json


# In order of preference: an index of shards, then a single file.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
MAX_SHARD_BYTES = 2 * 10**9
# A file is reopened after this many bytes, to release the memory of what was read.
REOPEN_BYTES = MAX_SHARD_BYTES // 8

# Errors that the libraries raise for a damaged file.
UNREADABLE = (RuntimeError, OSError, SafetensorError, pickle.UnpicklingError, EOFError, TypeError, KeyError)


class WeightFiles:
    """
    The weights in a folder with `model.safetensors` or `pytorch_model.bin`, or shards of either with their index.
    `tensors` has the shape and dtype of each by name, on the device "meta". Pickled files are only read by
    `torch.load(weights_only=True)`. Raises `ValueError` if there are none, a shard is missing, or a file cannot be
    read or holds anything but tensors.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._last: OpenFile | None = None
        self._num_bytes_read = 0
        self.tensors: dict[str, torch.Tensor] = {}
        self._paths: dict[str, Path] = {}
        for path, indexed in find_files(folder).items():
            opened = OpenFile(path)
            for name in opened.names:
                if indexed is None or name in indexed:  # the index decides if two files have it
                    self.tensors[name] = opened.get(name).to("meta")  # mapped: reads no bytes
                    self._paths[name] = path

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor; its file stays open until a tensor from another file is read."""
        path = self._paths[name]
        if self._last is None or self._last.path != path or self._num_bytes_read > REOPEN_BYTES:
            self._last = None
            self._last, self._num_bytes_read = OpenFile(path), 0
        tensor = self._last.get(name)
        self._num_bytes_read += tensor.nbytes
        return tensor


class OpenFile:
    """One weight file, memory-mapped, so that tensors are read when they are used."""

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.suffix == ".safetensors":
                opened = safe_open(path, "pt")
                self.names, self.get = list(opened.keys()), opened.get_tensor
                return
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UNREADABLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{path} cannot be read as weights: {reason}") from error
        if not isinstance(loaded, Mapping):
            raise ValueError(f"{path} must hold weights by name, got a {type(loaded).__name__}.")
        strange = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
        if strange:
            raise ValueError(f"{path} holds values that are not weights: {', '.join(strange[:5])}.")
        self.names, self.get = list(loaded), loaded.__getitem__


def find_files(folder: Path) -> dict[Path, set[str] | None]:
    """
    The weight files in a folder, safetensors if there are both formats, and the weights in each according to the
    index. Raises `ValueError` if there are none, or the index names missing files.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"{folder} has no weights: none of {', '.join(WEIGHT_FILES)}.")
    if found.suffix != ".json":
        return {found: None}
    try:
        weight_map = json.loads(found.read_text(encoding="utf-8"))["weight_map"]
        places = {name: set() for name in sorted(set(weight_map.values()))}
        for weight, name in weight_map.items():
            places[name].add(weight)
        missing = [name for name in places if not (folder / name).is_file()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{found} is not an index of weight files: {error}") from error
    if missing:
        raise ValueError(f"{found.name} names {len(missing)} files that are not in {folder}: {', '.join(missing)}.")
    return {folder / name: weights for name, weights in places.items()}


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor]) -> None:
    """
    Write weights as `model.safetensors`, or as shards of at most `MAX_SHARD_BYTES` (unless a single tensor is larger)
    with their index. `tensors` only needs shapes and dtypes; `read` returns each weight when its shard is written.
    Only one shard is in memory at a time.
    """
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=MAX_SHARD_BYTES)
    for file, names in split.filename_to_tensors.items():
        # Copies: safetensors rejects tensors that share memory, such as tied weights in a pickled file, and views. No
        # variable holds them: it would keep them in memory while the next shard is read.
        save_file(
            {name: read(name).clone(memory_format=torch.contiguous_format) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


def compare_names(
    found: Mapping[str, tuple[int, ...]], unknown: list[str], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """
    Raises `ValueError`, listing them, if weights of a model are missing, left over or do not have the shape that its
    configuration says. Parts (the first word of a name) without any weight in `expected` are not checked.
    """
    parts = {name.split(".")[0] for name in expected}
    lists = {
        "missing": [name for name in expected if name not in found],
        "left over": [
            *unknown,
            *(name for name in found if name not in expected and name.split(".")[0] in parts),
        ],
        "of another shape": [
            f"{name} {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    sentences = [
        f"{len(names)} weights are {what}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
        for what, names in lists.items()
        if names
    ]
    if sentences:
        raise ValueError(f"{source} does not fit its configuration. {' '.join(sentences)}")
