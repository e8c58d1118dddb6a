"""What a run logs beside its losses: how fast it is, the memory it takes, and the gradients of both parts."""

import time

import psutil
import torch
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
