"""What stands between the nodes of images and the space that their texts are in."""

import torch
from torch import nn


class AlignmentHead(nn.Module):
    """
    Brings the nodes of images and of texts into one space. In training alone: no answer depends on it.

    With an MLP the image's nodes are mapped into the space of the texts. Without one they stay as they are, and texts
    of another size are mapped to theirs by a fixed map with orthonormal rows or columns, drawn by `seed`: an isometry
    where theirs is the larger space, else close to one (Johnson and Lindenstrauss).

    Args:
        hidden_size (`int`): Of the image's nodes.
        text_size (`int`): Of the texts' features.
        has_mlp (`bool`, *optional*, defaults to `True`)
        seed (`int`, *optional*, defaults to 0): Of the weights.

    Example:
        >>> head = AlignmentHead(hidden_size=4, text_size=6)
        >>> {name: tuple(x.shape) for name, x in head({"image": torch.ones(2, 4), "answer": torch.ones(2, 6)}).items()}
        {'image': (2, 6), 'answer': (2, 6)}
    """

    def __init__(self, hidden_size: int, text_size: int, has_mlp: bool = True, seed: int = 0):
        super().__init__()
        randomness = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        self.mlp = None
        self.register_buffer("text_map", None)
        if has_mlp:
            layers = (nn.Linear(hidden_size, text_size), nn.GELU(), nn.Linear(text_size, text_size))
            self.mlp = nn.Sequential(*layers)
        elif hidden_size != text_size:
            larger, smaller = max(hidden_size, text_size), min(hidden_size, text_size)
            columns = torch.linalg.qr(torch.randn(larger, smaller))[0]
            self.text_map = columns if text_size == larger else columns.T.contiguous()
        torch.set_rng_state(randomness)  # a run without a head is to draw what one with it does

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Args:
            features (`dict[str, torch.Tensor]`): `"image"` `(num_nodes, hidden_size)`, the others
                `(num_nodes, text_size)`.
        """
        image = features["image"]
        with torch.autocast(image.device.type, enabled=False):
            if self.mlp is not None:
                return {**features, "image": self.mlp(image.to(self.mlp[0].weight.dtype))}
            if self.text_map is None:
                return features
            return {
                name: values if name == "image" else values.to(self.text_map.dtype) @ self.text_map
                for name, values in features.items()
            }
