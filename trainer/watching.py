"""What a run logs beside its losses: how fast it is, the memory it takes, and the gradients of both parts."""

import time
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback


GIB = 2**30


class Speedometer(TrainerCallback):
    """
    Tokens a second of training: without the time that evaluations and checkpoints take.

    Tokens are those of the conversations, without padding, on all devices; the texts of graph nodes do not count.
    """

    def __init__(self):
        self._seconds, self._num_tokens, self._mark = 0.0, 0, time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self._mark = time.perf_counter()

    on_evaluate = on_save = on_train_begin

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now

    def read(self, total_tokens: int) -> dict[str, float]:
        """What is logged since it was last read; nothing at the first, which does not know where it began."""
        read = {"memory_gib": read_memory()}
        if self._num_tokens and self._seconds > 0:
            read["tokens_per_second"] = (total_tokens - self._num_tokens) / self._seconds
        self._seconds, self._num_tokens = 0.0, total_tokens
        return read


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
        self.clear(mode)
        return means

    def clear(self, mode: str) -> None:
        self._values[mode] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: [float(value) for value in values] for name, values in self._values["train"].items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._values["train"] = {
            name: [torch.tensor(value, dtype=torch.float64) for value in values] for name, values in state.items()
        }


def read_memory() -> float:
    """GiB: the most that was allocated on the GPU since this was last read; on a CPU, what the process holds now."""
    if not torch.cuda.is_available():
        return psutil.Process().memory_info().rss / GIB
    most = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return most


def compare_gradients(
    model: nn.Module, language_modeling_loss: torch.Tensor, alignment_loss: torch.Tensor
) -> dict[str, float]:
    """
    The norms of the gradients of both parts of a loss, over all weights that are trained, and the cosine between them:
    above 0 they pull the same way, below 0 against each other. Costs a backward pass for each.

    Args:
        model (`nn.Module`): Whose weights.
        language_modeling_loss, alignment_loss (`torch.Tensor`, scalar): As they enter the sum; their graphs are kept.

    Returns:
        `dict[str, float]`: `gradient_norm_language_modeling`, `gradient_norm_alignment`, `gradient_cosine`; the cosine
        is left out where one of them has no gradient.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    parts = [
        torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        for loss in (language_modeling_loss, alignment_loss)
    ]
    norms = [sum(float(g.float().pow(2).sum()) for g in part if g is not None) ** 0.5 for part in parts]
    both = [(a, b) for a, b in zip(*parts, strict=True) if a is not None and b is not None]
    product = sum(float((a.float() * b.float()).sum()) for a, b in both)
    compared = {"gradient_norm_language_modeling": norms[0], "gradient_norm_alignment": norms[1]}
    if all(norms):
        compared["gradient_cosine"] = product / (norms[0] * norms[1])
    return compared
