"""
Counts where the processor would wait for an accelerator: questions about values, shapes that depend on values, copies
to the host. Works on tensors of a CPU, where no accelerator is needed and none is asked.
"""

import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


ROOT = Path(__file__).parents[1]
SOURCES = ("modeling_logramed", "trainer", "eval", "hub_cards")
# Operators of which the host needs a value or the shape. `_local_scalar_dense` is `.item()`, `bool()` and the like.
WAITING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "repeat_interleave"),
    *("_unique2", "unique_dim", "unique_consecutive"),
}
# Methods that copy from an accelerator, but may run no operator on a tensor that is on the CPU already.
COPYING = ("tolist", "numpy", "cpu", "to")


class HostSyncs:
    """
    Attributes:
        places (`Counter`): How often the host would wait, by "file:line" of the innermost line of our source that led
            there, or of the innermost outside PyTorch where none of ours did.
    """

    def __init__(self):
        self.places: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.places.values())

    @property
    def ours(self) -> Counter[str]:
        """The places in our source."""
        return Counter({place: count for place, count in self.places.items() if place.startswith(SOURCES)})

    def add(self, count: int) -> None:
        if count:
            self.places[_place()] += count


@contextmanager
def count_host_syncs() -> Iterator[HostSyncs]:
    """
    Counts within a `with` block, in this thread; a backward pass on a CPU runs in it too.

    Every tensor counts as one on the accelerator, but for copies to the host, by `.cpu()` or `.to("cpu")` in these
    words, and for what is computed of them alone. So questions to others that would be on the host, such as the step
    number of an optimizer, are counted too: `places` tells.
    """
    counter = HostSyncs()
    with ExitStack() as stack:
        for name in COPYING:
            method = getattr(torch.Tensor, name)
            stack.enter_context(patch.object(torch.Tensor, name, _counted(method, counter)))
        stack.enter_context(_Operators(counter))
        yield counter


class _Operators(TorchDispatchMode):
    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        output = func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if given and all(_is_on_host(value) for value in given):
            for value in tree_leaves(output):
                _mark(value)
        elif name in WAITING:
            self.counter.add(kwargs.get("output_size") is None)
        elif name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            fills = name != "index" and args[2].numel() == 1  # a masked fill, whose shape is known
            self.counter.add(0 if fills else len(masks))
        return output


def _counted(method, counter):
    """A method of `torch.Tensor` that counts where it copies to the host."""

    @functools.wraps(method)
    def counted(tensor, *args, **kwargs):
        words = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
        if (method.__name__ == "to" and "cpu" not in words) or _is_on_host(tensor):
            return method(tensor, *args, **kwargs)
        counter.add(tensor.numel() > 0)
        output = method(tensor, *args, **kwargs)
        # Another object, for what it was copied from is not on the host.
        return _mark(output.view_as(output)) if isinstance(output, torch.Tensor) else output

    return counted


def _mark(value):
    """Remembers that a tensor is on the host, where everything may be asked; so is what is computed of it alone."""
    if isinstance(value, torch.Tensor):
        value.is_on_host = True
    return value


def _is_on_host(value) -> bool:
    return getattr(value, "is_on_host", False)


def _place() -> str:
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_stack()]
    paths = [(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, line) for path, line in frames]
    ours = [(path, line) for path, line in paths if path.parts[0] in SOURCES]
    foreign = [
        (path, line) for path, line in paths if "torch" not in path.parts and path != Path("tests/host_syncs.py")
    ]
    path, line = (ours or foreign)[-1]
    return f"{path}:{line}"
