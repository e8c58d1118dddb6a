"""One alignment graph over the micro-batches of all processes."""

from contextlib import contextmanager, nullcontext

import torch
from torch import distributed as dist


# `(num_nodes, hidden_size)` of each modality, and the groups of the nodes `(num_nodes,)`.
Nodes = tuple[dict[str, torch.Tensor], torch.Tensor]


def gather_nodes(features: dict[str, torch.Tensor], groups: torch.Tensor) -> Nodes:
    """
    Gathers the nodes of all processes, in the order of the processes, on each of them.

    Processes may have different numbers of nodes. The gradient of a process's own features is summed over the losses
    of all processes. If all compute the same loss, and DDP or FSDP averages the parameters' gradients over the
    processes, the result is the gradient of that one loss.
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
    """Forward: rows of all processes. Backward: the gradient of this process's rows, summed over the processes."""

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
    """Concatenates the rows of all processes; `counts` is the number of rows of each."""
    padded = values.detach().new_zeros(max(counts), *values.shape[1:])
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextmanager
def seeded(seed: int, device: torch.device | None = None):
    """A context in which the CPU and `device` are seeded with `seed`; random states are restored afterwards."""
    devices = [] if device is None or device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed accelerators too
        for one in devices:
            torch.get_device_module(one).manual_seed(seed)
        yield


def same_randomness(generator: torch.Generator | None, is_shared: bool):
    """
    A context in which every process draws the same dropout masks in a graph that all of them compute (`is_shared`),
    with the seed of `generator`. Random states are restored afterwards.
    """
    if generator is None or not is_shared:
        return nullcontext()
    return seeded(generator.initial_seed(), generator.device)
