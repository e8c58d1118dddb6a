"""What a frozen vision tower makes of each image, kept on disk, so that it runs once an image, not each epoch."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from logramed.eval.files import write_bytes_whole


logger = logging.getLogger(__name__)

DIGEST_SIZE = 16  # bytes, of XXH3 with 128 bits
TENSOR_NAME = "hidden_states"


class CachedTower:
    """
    Takes the place of a vision tower's `forward`: hidden states that were computed before are read from disk.

    An image is known by the pixels that the image processor made of it, and the folder by the tower's configuration
    and weights, the layers that are read and the dtype computed in: another image, processor or tower finds nothing
    and is computed. Files appear whole or not at all, several processes may share a folder, and one that is damaged is
    computed again with a warning.

    Args:
        model (`LoGraMedForConditionalGeneration`): With a vision tower that is not trained.
        folder (`str` or `Path`): Of the cache; towers have folders of their own in it.

    Attributes:
        num_hits, num_misses (`int`): Images that were read, and computed.

    Raises:
        ValueError: If the tower is trained, or the model is of another class than this project's.
    """

    def __init__(self, model: nn.Module, folder: str | Path):
        if getattr(model.config, "model_type", None) != "logramed":
            raise ValueError(
                f"`cache_image_features` is for models of this project, not for {type(model).__name__}: leave it out."
            )
        tower = model.get_submodule("model.vision_tower")
        if any(weight.requires_grad for weight in tower.parameters()):
            raise ValueError(
                "`cache_image_features` needs a vision tower that is not trained: leave `vision` out of `train`."
            )
        config = model.config
        self.num_states = config.vision_config.num_hidden_layers + 1
        self.layers = sorted({layer % self.num_states for layer in read_layers(config)})
        self.folder = Path(folder) / fingerprint_tower(tower, config, self.layers)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.num_hits = self.num_misses = 0
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
        self.num_misses += len(missing)
        self.num_hits += len(paths) - len(missing)
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
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if xxhash.xxh3_128(content[DIGEST_SIZE:]).digest() != content[:DIGEST_SIZE]:
            logger.warning(f"The cached image features in {path} are damaged and are computed again.")
            return None
        return safetensors.torch.load(content[DIGEST_SIZE:])[TENSOR_NAME].to(device)

    def _write(self, path: Path, state: torch.Tensor) -> None:
        content = safetensors.torch.save({TENSOR_NAME: state.detach().cpu().contiguous()})
        try:
            write_bytes_whole(path, xxhash.xxh3_128(content).digest() + content)
        except OSError as error:
            free = shutil.disk_usage(self.folder).free / 2**30
            raise OSError(
                error.errno,
                f"{error.strerror}: no room for image features in `cache_image_features` {self.folder}, which has "
                f"{free:.2f} GiB free. What is there stays valid; give it more room, or train without it",
            ) from error


def read_layers(config) -> list[int]:
    """The hidden states of the vision tower that the projector reads."""
    selected = config.vision_feature_layer
    return [*(selected if isinstance(selected, list | tuple) else [selected]), *(config.connected_layers or [])]


def fingerprint_tower(tower: nn.Module, config, layers: list[int]) -> str:
    """A digest of what the hidden states depend on beside the pixels: configuration, weights, and the layers kept."""
    settings = {
        name: value for name, value in config.vision_config.to_dict().items() if not name.startswith(("_", "transf"))
    }
    digest = xxhash.xxh3_128(json.dumps([settings, layers], sort_keys=True, default=str).encode())
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def estimate_size(model: nn.Module, cache: CachedTower, num_images: int) -> int:
    """Bytes that the hidden states of so many images take, in the dtype of the tower."""
    vision = model.config.vision_config
    num_tokens = (vision.image_size // vision.patch_size) ** 2 + model.config.num_prefix_tokens
    dtype = next(model.get_submodule("model.vision_tower").parameters()).dtype
    return num_images * len(cache.layers) * num_tokens * vision.hidden_size * dtype.itemsize


def check_room(model: nn.Module, cache: CachedTower, num_images: int) -> str:
    """
    What the cache will take, in one line.

    Raises:
        ValueError: If the disk has not that much free beside what the cache holds already.
    """
    needed = estimate_size(model, cache, num_images)
    held = sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(cache.folder).free
    if needed - held > free:
        raise ValueError(
            f"`cache_image_features` needs {needed / 2**30:.2f} GiB for {num_images} images, but the disk of "
            f"{cache.folder} has {free / 2**30:.2f} GiB free. Leave it out, or give it another folder."
        )
    return f"Image features of {num_images} images: {needed / 2**30:.2f} GiB in {cache.folder}."
