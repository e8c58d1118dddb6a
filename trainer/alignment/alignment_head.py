"""The head that maps image nodes and texts into one space."""

import torch
from torch import nn

from .graph_nodes import seeded


class AlignmentHead(nn.Module):
    """
    Maps image nodes and texts into one space. Used only in training: answers do not depend on it.

    With MLPs, one each, image nodes and regions are mapped into the space of the texts. Without, they stay unchanged,
    and texts of another size are mapped to their size by a fixed random matrix with orthonormal rows or columns: an
    isometry if the image space is the larger one, else close to one (Johnson and Lindenstrauss).

    Args:
        hidden_size (`int`): Size of the image nodes.
        text_size (`int`): Size of the text features.
        has_mlp (`bool`, *optional*, defaults to `True`): Whether to use MLPs.
        has_regions (`bool`, *optional*, defaults to `False`): Whether regions get an MLP too.
        seed (`int`, *optional*, defaults to 0): Seed of the weights.

    Example:
        >>> head = AlignmentHead(hidden_size=4, text_size=6)
        >>> {name: tuple(x.shape) for name, x in head({"image": torch.ones(2, 4), "answer": torch.ones(2, 6)}).items()}
        {'image': (2, 6), 'answer': (2, 6)}
    """

    def __init__(
        self, hidden_size: int, text_size: int, has_mlp: bool = True, has_regions: bool = False, seed: int = 0
    ):
        super().__init__()
        self.register_buffer("text_map", None)
        visual = ("image", "region") if has_regions else ("image",)
        with seeded(seed):  # so that runs with and without a head draw the same random numbers
            self.mlps = nn.ModuleDict({name: _mlp(hidden_size, text_size) for name in visual} if has_mlp else {})
            if not has_mlp and hidden_size != text_size:
                larger, smaller = max(hidden_size, text_size), min(hidden_size, text_size)
                columns = torch.linalg.qr(torch.randn(larger, smaller))[0]
                self.text_map = columns if text_size == larger else columns.T.contiguous()

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Maps `"image"` and any `"region"`, `(num_nodes, hidden_size)`, and texts `(num_nodes, text_size)`."""
        with torch.autocast(features["image"].device.type, enabled=False):
            return {name: self._map(name, values) for name, values in features.items()}

    def _map(self, name, values):
        if name in self.mlps:
            return self.mlps[name](values.to(self.mlps[name][0].weight.dtype))
        if self.text_map is None or name in ("image", "region"):
            return values
        return values.to(self.text_map.dtype) @ self.text_map


def _mlp(hidden_size, text_size):
    return nn.Sequential(nn.Linear(hidden_size, text_size), nn.GELU(), nn.Linear(text_size, text_size))
