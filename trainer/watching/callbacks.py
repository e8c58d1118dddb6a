"""What a run logs beside its loss: the parts of it."""

from typing import Any

import torch
from accelerate import Accelerator


class LoggedMeans:
    """
    Figures of micro-batches, whose means over these and over all processes are logged. They stay on the device until
    they are read, so that no step waits for it.
    """

    def __init__(self):
        self._values: dict[str, dict[str, list[torch.Tensor]]] = {"train": {}, "eval": {}}

    def add(self, mode: str, values: dict[str, torch.Tensor]) -> None:
        """Figures of one micro-batch, each a scalar tensor, in `mode` `"train"` or `"eval"`."""
        for name, value in values.items():
            self._values[mode].setdefault(name, []).append(torch.as_tensor(value).detach().double())

    def last(self, mode: str) -> dict[str, float]:
        """The figures added last, of this process; waits for the device."""
        return {name: float(values[-1]) for name, values in self._values[mode].items()}

    def read(self, mode: str, accelerator: Accelerator) -> dict[str, float]:
        """The means since they were last read, on every process alike; all must take part."""
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
