"""
Gradient caching: one alignment graph over all micro-batches of an optimizer step, exact, in the memory of one.

Source: arXiv:2101.06983 (GradCache), which first computes the gradient of the loss for all features, and then passes
each micro-batch its part. Ours differs in one point: the first micro-batch joins with its live features, so that its
backward pass computes the gradients of the others and of the graph network where DDP and FSDP see them.
"""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch

from logramed.trainer.alignment.graph_nodes import Nodes


class StepGraph:
    """
    The nodes of one optimizer step's micro-batches, and the gradients of their features. In the order of use:
    `compute_nodes` (first pass); the loss of the first micro-batch, computed on the nodes that `join` returns; after
    its backward pass, `cached_gradients` of each further micro-batch, whose forward pass runs in `replay`. Call
    `finish` after each forward pass.
    """

    def __init__(self, micro_batches: list[dict[str, torch.Tensor]]):
        self.micro_batches = micro_batches
        self.position = 0
        self._nodes: list[Nodes] = []
        self._random_states: list[tuple[torch.Tensor, ...]] = []
        self._device = torch.device("cpu")
        self._upstream: torch.Tensor | None = None

    def compute_nodes(self, compute: Callable[[dict[str, torch.Tensor]], Nodes], device: torch.device) -> None:
        """The first pass, without gradient, over all micro-batches but the first; keeps the random states."""
        self._device = device
        for inputs in self.micro_batches[1:]:
            self._random_states.append(random_state(device))
            with torch.no_grad():
                features, groups = compute(inputs)
            leaves = {name: values.detach().requires_grad_() for name, values in features.items()}
            self._nodes.append((leaves, groups))
        self.micro_batches = []

    def join(self, features: dict[str, torch.Tensor], groups: torch.Tensor) -> Nodes:
        """The nodes of all micro-batches, in their order; `features` and `groups` are those of the first."""
        joined = {
            name: torch.cat([values, *(leaves[name] for leaves, _ in self._nodes)])
            for name, values in features.items()
        }
        return joined, torch.cat([groups, *(more for _, more in self._nodes)])

    def finish(self, loss: torch.Tensor) -> None:
        """
        Go on to the next micro-batch. A hook on the first one's loss, the whole graph's, records what it is scaled by
        in its backward pass: loss weights, and the loss scaling of 16-bit training.
        """
        if self.position == 0:
            loss.register_hook(self._keep_upstream)
        self.position += 1

    def _keep_upstream(self, gradient):
        self._upstream = gradient.detach().clone()

    def cached_gradients(self) -> dict[str, torch.Tensor]:
        """Gradient of the unscaled loss for each feature of the current micro-batch, which is not the first."""
        leaves, _ = self._nodes[self.position - 1]
        if self._upstream is None:
            raise RuntimeError("The first micro-batch of this step had no backward pass, so no gradients are cached.")
        gradients = {}
        for name, values in leaves.items():
            gradient = torch.zeros_like(values) if values.grad is None else values.grad
            gradients[name] = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / self._upstream
        return gradients

    def replay(self):
        """A context with the random state of the first pass, so that dropout is the same in the second."""
        if self.position == 0:
            return nullcontext()
        return replayed(self._random_states[self.position - 1], self._device)


def cached_loss(
    features: dict[str, torch.Tensor], gradients: dict[str, torch.Tensor], graph_network: torch.nn.Module | None
) -> torch.Tensor:
    """
    The alignment loss of micro-batches after the first, whose nodes are in the first one's graph: 0, with the gradient
    `gradients` for `features`, both `(num_nodes, hidden_size)` per modality. The graph network is trained by the
    first micro-batch; its gradient here is 0.
    """
    loss = torch.stack([_Share.apply(values, gradients[name]) for name, values in features.items()]).sum()
    return loss if graph_network is None else loss + _touch(graph_network, next(iter(features.values())))


class _Share(torch.autograd.Function):
    """A loss of 0 with a given gradient. (The sum of features times gradient would be NaN where it overflows.)"""

    @staticmethod
    def forward(ctx, features, gradient):
        ctx.save_for_backward(gradient)
        ctx.dtype = features.dtype
        return features.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None  # scaled first: unscaled, small ones are 0 in float16


def _touch(graph_network: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    """
    A loss of 0 that depends on every weight of the graph network: DDP synchronizes gradients in the last micro-batch
    only, and waits there for every weight.
    """
    weight_dtype = next(graph_network.parameters()).dtype
    node = torch.zeros_like(features[:1], dtype=weight_dtype)
    no_edges = torch.zeros(2, 0, dtype=torch.int64, device=features.device)
    return 0 * graph_network(node, no_edges).float().sum()


def random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """The random states of the CPU and, if it is another device, of `device`."""
    cpu = torch.get_rng_state()
    return (cpu,) if device.type == "cpu" else (cpu, torch.get_device_module(device).get_rng_state(device))


@contextmanager
def replayed(state: tuple[torch.Tensor, ...], device: torch.device):
    """A context that begins with the random states from `random_state`; restores the outer ones afterwards."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.set_rng_state(state[0])
        for one, own in zip(devices, state[1:], strict=True):
            torch.get_device_module(one).set_rng_state(own, one)
        yield
