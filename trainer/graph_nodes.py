"""Nodes of the alignment graph from beyond a micro-batch: of other processes, and remembered from earlier batches."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import distributed as dist


# `(num_nodes, hidden_size)` of each modality, and the groups of the nodes `(num_nodes,)`.
Nodes = tuple[dict[str, torch.Tensor], torch.Tensor]
# From the nodes of a batch and their groups to more nodes and theirs.
ExtraNodes = Callable[[dict[str, torch.Tensor], torch.Tensor], Nodes]


class AlignmentMemory:
    """
    The last nodes of earlier micro-batches: constants beside those that are aligned.

    Args:
        num_nodes (`int`): How many are kept, the latest ones.

    Raises:
        ValueError: If `num_nodes` is below 1, or nodes come with other modalities than those remembered.

    Source: the idea of keys from earlier batches is that of arXiv:1912.04798 (cross-batch memory); that they enter a
    graph is ours.

    Example:
        >>> memory = AlignmentMemory(3)
        >>> nodes = {"image": torch.ones(2, 4), "answer": torch.ones(2, 4)}
        >>> memory.remember(nodes, torch.tensor([5, 6]))
        >>> memory.join(nodes, torch.tensor([7, 8]))[1]
        tensor([7, 8, 5, 6])
    """

    def __init__(self, num_nodes: int):
        if num_nodes < 1:
            raise ValueError(f"`num_nodes` must be at least 1, got {num_nodes}.")
        self.num_nodes = num_nodes
        self.features: dict[str, torch.Tensor] = {}
        self.groups = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.groups)

    def join(self, features: dict[str, torch.Tensor], groups: torch.Tensor) -> Nodes:
        """The nodes given, then those remembered, the oldest first, without gradient."""
        if not len(self):
            return features, groups
        self._check_modalities(features)
        joined = {
            name: torch.cat([values, self.features[name].to(values.device)]) for name, values in features.items()
        }
        return joined, torch.cat([groups, self.groups.to(groups.device)])

    def remember(self, features: dict[str, torch.Tensor], groups: torch.Tensor) -> None:
        """Keep nodes, detached and in float32; those too many are forgotten, the oldest first."""
        if len(self):
            self._check_modalities(features)
        for name, values in features.items():
            known = self.features.get(name, values[:0].detach().float()).to(values.device)
            self.features[name] = torch.cat([known, values.detach().float()])[-self.num_nodes :]
        self.groups = torch.cat([self.groups.to(groups.device), groups])[-self.num_nodes :]

    def _check_modalities(self, features):
        if features.keys() != self.features.keys():
            raise ValueError(
                f"`alignment_memory` holds nodes of {', '.join(self.features)}, but the batch has "
                f"{', '.join(features)}: all batches of a run must have the same modalities."
            )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes: `"features"` and `"groups"`, on the CPU."""
        return {
            "features": {name: values.cpu().clone() for name, values in self.features.items()},
            "groups": self.groups.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember the nodes of another memory, the latest `num_nodes` of them, and no others."""
        self.features = {name: values[-self.num_nodes :].clone() for name, values in state["features"].items()}
        self.groups = state["groups"][-self.num_nodes :].clone()


class BeyondBatch:
    """
    Joins nodes from beyond the micro-batch to its own, in this order: those of further micro-batches of the step, all
    of these from every process, and remembered ones.

    Args:
        gather (`bool`): Whether there are nodes of all processes, with gradient (see `gather_nodes`).
        memory (`AlignmentMemory`, *optional*): Whose nodes join, and which then remembers those joined before it. With
            `gather` it holds nodes of all processes, and the same on each.
        further (`ExtraNodes`, *optional*): Adds nodes of this process.
    """

    def __init__(self, gather: bool, memory: AlignmentMemory | None, further: ExtraNodes | None = None):
        self.gather, self.memory, self.further = gather, memory, further

    def __call__(self, features: dict[str, torch.Tensor], groups: torch.Tensor) -> Nodes:
        if self.further is not None:
            features, groups = self.further(features, groups)
        if self.gather:
            features, groups = gather_nodes(features, groups)
        if self.memory is None:
            return features, groups
        joined = self.memory.join(features, groups)
        self.memory.remember(features, groups)
        return joined


def gather_nodes(features: dict[str, torch.Tensor], groups: torch.Tensor) -> Nodes:
    """
    The nodes of all processes, in the order of the processes: the same on each of them.

    Processes may have different numbers of nodes. The gradient of a process's own features is the sum of those that
    the losses of all processes have for them. Where all compute the same loss and DDP or FSDP takes the mean of the
    parameters' gradients over the processes, this gives the gradient of that one loss.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features, groups
    count = torch.tensor([len(groups)], device=groups.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    counts = [int(value) for value in counts]
    gathered = {name: _Gather.apply(values, counts) for name, values in features.items()}
    return gathered, _all_gather(groups, counts)


class _Gather(torch.autograd.Function):
    """Forward: rows of all processes. Backward: the sum over the processes of the gradients of the own rows."""

    @staticmethod
    def forward(ctx, values, counts):
        ctx.counts = counts
        return _all_gather(values, counts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()], None


def _all_gather(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The rows of all processes, which hold `counts` of them."""
    padded = values.detach().new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextmanager
def _seeded(seed: int, device: torch.device):
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def same_randomness(generator: torch.Generator | None, is_shared: bool):
    """
    A context in which every process draws the same dropout masks in a graph that all of them compute (`is_shared`),
    seeded as `generator` is. Outside, random states are as they were.
    """
    if generator is None or not is_shared:
        return nullcontext()
    return _seeded(generator.initial_seed(), generator.device)
