"""Caches the output of a frozen vision tower on disk, so that it runs once per image, not in every epoch."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from logramed.eval.files import write_bytes_whole
from logramed.trainer.engines.trained_weights import layers_read


TENSOR_NAME = "hidden_states"


class CachedTower:
    """
    Replaces the `forward` of a frozen vision tower: hidden states that were computed before are read from `folder`.
    The key of an image is its processed pixels and the dtype of the computation; the key of the tower is its
    configuration, weights and the layers that are read. So another image, processor or tower is never read by mistake.
    Files are written atomically, and several processes may share a folder. Raises `ValueError` if the tower is
    trained, or the model is not one of this project.
    """

    def __init__(self, model: nn.Module, folder: str | Path):
        if getattr(model.config, "model_type", None) != "logramed":
            raise ValueError(
                f"`cache_image_features` is for models of this project, not for {type(model).__name__}: leave it out."
            )
        tower = model.get_submodule("model.vision_tower")
        if any(weight.requires_grad for weight in tower.parameters()):
            raise ValueError("`cache_image_features` needs a frozen vision tower: leave `vision` out of `train`.")
        config = model.config
        self.num_states = config.vision_config.num_hidden_layers + 1
        self.layers = layers_read(config)
        self.folder = Path(folder) / fingerprint_tower(tower, config, self.layers)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._compute = tower.forward
        tower.forward = self

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        paths = [self._find_path(image) for image in pixel_values]
        states = [self._read(path, pixel_values.device) for path in paths]
        missing = [number for number, state in enumerate(states) if state is None]
        if missing:
            computed = self._compute(pixel_values[missing], **{**kwargs, "output_hidden_states": True})
            for place, number in enumerate(missing):
                state = torch.stack([computed.hidden_states[layer][place] for layer in self.layers])
                self._write(paths[number], state)
                states[number] = state
        by_layer = dict(zip(self.layers, torch.stack(states).unbind(dim=1), strict=True))
        return BaseModelOutputWithPooling(hidden_states=tuple(by_layer.get(layer) for layer in range(self.num_states)))

    def _find_path(self, image: torch.Tensor) -> Path:
        dtype = torch.get_autocast_dtype(image.device.type) if torch.is_autocast_enabled(image.device.type) else None
        pixels = image.detach().cpu().contiguous()
        digest = xxhash.xxh3_128(f"{tuple(pixels.shape)} {pixels.dtype} {dtype}".encode())
        digest.update(pixels.flatten().view(torch.uint8).numpy().data)
        name = digest.hexdigest()
        return self.folder / name[:2] / name

    def _read(self, path: Path, device: torch.device) -> torch.Tensor | None:
        return safetensors.torch.load_file(path)[TENSOR_NAME].to(device) if path.is_file() else None

    def _write(self, path: Path, state: torch.Tensor) -> None:
        write_bytes_whole(path, safetensors.torch.save({TENSOR_NAME: state.detach().cpu().contiguous()}))


def fingerprint_tower(tower: nn.Module, config, layers: list[int]) -> str:
    """A digest of what the hidden states depend on apart from pixels: configuration, weights, and the layers kept."""
    settings = {
        name: value for name, value in config.vision_config.to_dict().items() if not name.startswith(("_", "transf"))
    }
    digest = xxhash.xxh3_128(json.dumps([settings, layers], sort_keys=True, default=str).encode())
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
