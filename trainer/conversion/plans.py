"""Plans for writing a model: everything but its weights, which are converted one tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from logramed import LoGraMedConfig, LoGraMedProcessor
from logramed.eval.files import whole_folder, write_json
from logramed.trainer.build_model import PARTS_NAME
from logramed.trainer.conversion.sources import (
    EMBEDDINGS,
    GRAPH_NETWORK,
    HEAD,
    TOWER_PREFIX,
    TOWER_RENAMES,
    expected_weights,
    rename_all,
)
from logramed.trainer.conversion.weights import WeightFiles, compare_names, write_shards


# Not next to the weights: engines load every safetensors file there.
GRAPH_NETWORK_FILE = "training/graph_network.safetensors"


@dataclass
class Plan:
    """A model to write: everything but its weights, and the files to read those from."""

    config: LoGraMedConfig
    processor: LoGraMedProcessor
    end_token_ids: list[int]
    files: WeightFiles
    tower_files: WeightFiles | None  # None if the checkpoint contains the tower
    add_base: Callable[[str, torch.Tensor], torch.Tensor] | None  # adds it to a delta, given our name of a weight
    parts: dict[str, Any]  # content of parts.json

    def sources(self) -> tuple[dict[str, tuple[WeightFiles, str]], list[str]]:
        """Source files and original name of each weight to write, by our name, and the unknown names."""
        own, unknown = rename_all(self.files.tensors)
        found = {ours: (self.files, name) for ours, name in own.items()}
        if self.tower_files is not None:
            tower, unknown_of_tower = rename_all(self.tower_files.tensors, TOWER_RENAMES)
            found = {ours: source for ours, source in found.items() if not ours.startswith(TOWER_PREFIX)}
            found |= {ours: (self.tower_files, name) for ours, name in tower.items()}
            unknown += unknown_of_tower
        if self.config.tie_word_embeddings:  # the embeddings are the head, even if the files also have one
            found.pop(HEAD, None)
        return found, unknown

    def check(self, source: str) -> None:
        """Raises `ValueError` if weights are missing, left over or of another shape than the configuration says."""
        found, unknown = self.sources()
        shapes = {ours: files.tensors[name].shape for ours, (files, name) in found.items()}
        for name in {EMBEDDINGS, HEAD} & shapes.keys():
            shapes[name] = (self.config.text_config.vocab_size, *shapes[name][1:])
        compare_names(shapes, unknown, expected_weights(self.config), source)

    def write(self, output: Path) -> None:
        """Write the model, completely or not at all."""
        with whole_folder(output, "OUTPUT") as unfinished:
            self.config.dtype = self.write_weights(unfinished)
            save_graph_network(self.files, unfinished)
            self.config.architectures = ["LoGraMedForConditionalGeneration"]
            self.config.save_pretrained(unfinished)
            self.processor.save_pretrained(unfinished)
            text = self.config.text_config
            tokens = {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id}
            GenerationConfig(eos_token_id=self.end_token_ids, **tokens).save_pretrained(unfinished)
            write_json(unfinished / PARTS_NAME, self.parts)

    def write_weights(self, folder: Path) -> torch.dtype:
        """Write all weights, also those of a separate tower, in the widest dtype of the checkpoint's weights."""
        found, _ = self.sources()
        dtypes = {files.tensors[name].dtype for files, name in found.values() if files is self.files}
        dtype = reduce(torch.promote_types, (dtype for dtype in dtypes if dtype.is_floating_point))

        def finish(ours: str, tensor: torch.Tensor) -> torch.Tensor:
            if ours in (EMBEDDINGS, HEAD):
                tensor = pad_rows(tensor, self.config.text_config.vocab_size)
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        def read(ours: str) -> torch.Tensor:
            files, name = found[ours]
            tensor = files.read(name)
            if files is self.files and self.add_base is not None:
                tensor = self.add_base(ours, tensor)
            return finish(ours, tensor)

        write_shards(folder, {ours: finish(ours, files.tensors[name]) for ours, (files, name) in found.items()}, read)
        return dtype


def pad_rows(tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Add rows for new tokens to embeddings or head: the mean of the old rows, so that none is ever the likeliest."""
    if len(tensor) == num_rows:
        return tensor
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(num_rows - len(tensor), -1)])


def save_graph_network(files: WeightFiles, folder: Path) -> None:
    """Save the checkpoint's graph network, if it has one, as `GraphNetwork.load_state_dict` expects it."""
    names = {name: match.group(1) for name in files.tensors if (match := GRAPH_NETWORK.fullmatch(name))}
    if names:
        path = folder / GRAPH_NETWORK_FILE
        path.parent.mkdir()
        state = {ours: files.read(name).contiguous() for name, ours in names.items()}
        save_file(state, path, metadata={"format": "pt"})
