"""Means of the parts of the loss and other figures, for logging."""

from typing import Any

import torch
from accelerate import Accelerator


class LoggedMeans:
    """
    Collects figures of micro-batches and averages them over micro-batches and processes for the log. Values stay on
    the device until they are read, so that no step waits for it.
    """

    def __init__(self):
        self._values: dict[str, dict[str, list[torch.Tensor]]] = {"train": {}, "eval": {}}

    def add(self, mode: str, values: dict[str, torch.Tensor]) -> None:
        """Add the figures of one micro-batch, each a scalar tensor, to `mode` `"train"` or `"eval"`."""
        for name, value in values.items():
            self._values[mode].setdefault(name, []).append(torch.as_tensor(value).detach().double())

    def last(self, mode: str) -> dict[str, float]:
        """The figures that this process added last; waits for the device."""
        return {name: float(values[-1]) for name, values in self._values[mode].items()}

    def read(self, mode: str, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, the same on every process; a collective call."""
        found = self._values[mode]
        if not found:
            return {}
        device = accelerator.device
        sums = torch.stack([torch.stack([value.to(device) for value in values]).sum() for values in found.values()])
        counts = torch.tensor([float(len(values)) for values in found.values()], dtype=sums.dtype, device=device)
        totals = accelerator.reduce(torch.stack([sums, counts]), "sum")
        means = dict(zip(found, (totals[0] / totals[1]).tolist(), strict=True))
        self._values[mode] = {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {name: [float(value) for value in values] for name, values in self._values["train"].items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._values["train"] = {
            name: [torch.tensor(value, dtype=torch.float64) for value in values] for name, values in state.items()
        }
