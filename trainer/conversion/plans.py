"""A model that is to be written: all but its weights, which are read, changed and written one tensor at a time."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors.torch import save_file
from transformers import GenerationConfig

from logramed import LoGraMedConfig, LoGraMedProcessor
from logramed.eval.files import whole_folder, write_json
from logramed.eval.model_names import naming_model
from logramed.trainer.build_model import PARTS_NAME
from logramed.trainer.conversion.sources import GRAPH_NETWORK, HEAD, UnknownWeightError, expected_weights
from logramed.trainer.conversion.weights import ShardWriter, TensorInfo, WeightFiles, compare_names


# All that a conversion reads; other files of a repository (other weights, pictures) are left on the Hub.
READ_FILES = ("*.json", "*.safetensors", "*.bin", "tokenizer.model", "*.jinja", "README.md")
# Not beside the weights: engines load every safetensors file there.
GRAPH_NETWORK_FILE = "training/graph_network.safetensors"
LICENSE_NAMES = ("license", "license_name", "license_link")


def unchanged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass
class Weights:
    """Where weights come from."""

    files: WeightFiles
    rename: Callable[[str], str | None]  # from a name there to ours; `None` leaves a weight out
    change: Callable[[str, torch.Tensor], torch.Tensor] = unchanged  # given our name
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # where `change` gives others, by our name

    def names(self) -> tuple[dict[str, TensorInfo], list[str]]:
        """The weights by our names, and the names in the files that nobody knows."""
        known, unknown = {}, []
        for name, info in self.files.tensors.items():
            try:
                ours = self.rename(name)
            except UnknownWeightError:
                unknown.append(name)
                continue
            if ours is not None:
                known[ours] = info
        return known, unknown

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.files:
            ours = self.rename(name)
            if ours is not None:
                yield ours, self.change(ours, tensor)


@dataclass
class Plan:
    """A model that is to be written."""

    config: LoGraMedConfig
    processor: LoGraMedProcessor
    end_token_ids: list[int]
    weights: list[Weights]
    parts: dict[str, Any]  # what parts.json says

    @property
    def dtype(self) -> torch.dtype:
        """Of all weights: the widest of the checkpoint's own, which a tower of other files follows."""
        known, _ = self.weights[0].names()
        dtypes = {info.dtype for info in known.values() if info.dtype.is_floating_point}
        widest = dtypes.pop()
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return widest

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], list[str]]:
        """The weights that are written, and the names in the files that nobody knows."""
        shapes, unknown = {}, []
        for weights in self.weights:
            known, strange = weights.names()
            shapes |= {ours: weights.shapes.get(ours, info.shape) for ours, info in known.items()}
            unknown += strange
        if self.config.tie_word_embeddings:  # the embeddings are the head, whether the files have it twice or not
            shapes.pop(HEAD, None)
        return shapes, unknown

    def check(self, source: str) -> None:
        """Raises `ValueError` if weights are missing, left over or of another shape than the configuration says."""
        compare_names(*self.shapes(), expected_weights(self.config), source)

    def write(self, output: Path) -> None:
        """Write the model, whole or not at all."""
        shapes, _ = self.shapes()
        with whole_folder(output, "OUTPUT") as unfinished:
            self.write_weights(unfinished, shapes)
            save_graph_network(self.weights[0].files, unfinished)
            self.config.dtype = self.dtype
            self.config.architectures = ["LoGraMedForConditionalGeneration"]
            self.config.save_pretrained(unfinished)
            self.processor.save_pretrained(unfinished)
            text = self.config.text_config
            tokens = {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id}
            GenerationConfig(eos_token_id=self.end_token_ids, **tokens).save_pretrained(unfinished)
            write_json(unfinished / PARTS_NAME, self.parts)

    def write_weights(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        writer, dtype = ShardWriter(folder), self.dtype
        for weights in self.weights:
            for name, tensor in weights:
                if name not in shapes:
                    continue
                assert tuple(tensor.shape) == tuple(shapes[name]), (name, tensor.shape, shapes[name])
                writer.add(name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        writer.close()


def fetch(name: str, argument: str) -> Path:
    """The folder of a model: itself, or a snapshot of a repository of the Hub; `ValueError` if there is neither."""
    with naming_model(name, argument, foreign=True):
        return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, allow_patterns=choose_files(name)))


def choose_files(name: str) -> list[str]:
    """What is downloaded of a repository: the files beside each other at its top, and of weights one form."""
    try:
        files = [file for file in list_repo_files(name) if "/" not in file]
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):  # what is in the cache, or the reason why nothing is
        return list(READ_FILES)
    if any(file.endswith(".safetensors") for file in files):
        files = [file for file in files if not file.endswith((".bin", ".bin.index.json"))]
    return [file for file in files if any(Path(file).match(pattern) for pattern in READ_FILES)]


def read_license(folder: Path) -> dict[str, str]:
    """The licence that the card of a checkpoint names, under the names of the Hub's front matter, if it does."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front_matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = yaml.safe_load(front_matter.group(1)) if front_matter else None
    except (OSError, ValueError, yaml.YAMLError):  # a card is for people: it stops no conversion
        found = None
    found = found if isinstance(found, dict) else {}
    return {name: str(found[name]) for name in LICENSE_NAMES if found.get(name)}


def save_graph_network(files: WeightFiles, folder: Path) -> None:
    """The graph network of a checkpoint, if it has one, as `GraphNetwork.load_state_dict` takes it."""
    names = {name: match.group(1) for name in files.tensors if (match := GRAPH_NETWORK.fullmatch(name))}
    if names:
        path = folder / GRAPH_NETWORK_FILE
        path.parent.mkdir()
        state = {ours: files.read(name).contiguous() for name, ours in names.items()}
        save_file(state, path, metadata={"format": "pt"})
