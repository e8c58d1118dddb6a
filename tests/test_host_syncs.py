import math

import numpy as np
import pytest
import torch

from tests.host_syncs import count_host_syncs


@pytest.mark.parametrize(
    ("ask", "count"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x[0].item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: math.isfinite(x.sum()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: np.asarray(x), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", torch.float64), 1),
        (lambda x: x.to(x.device, torch.float64), 0),
        (lambda x: (x.cpu() + 1).sum().item(), 1),
        (lambda x: (x.cpu().tolist(), x.sum().item()), 2),
        (lambda x: (x.cpu() + x).sum().item(), 2),
        (lambda x: x[:0].cpu(), 0),
        (lambda x: x[x > 1], 1),
        (lambda x: x[torch.tensor([0, 2])], 0),
        (lambda x: x.masked_fill(x > 1, 0), 0),
        (lambda x: x.index_put_((x > 1,), torch.tensor(0.0)), 0),
        (lambda x: (x > 1).nonzero(), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.repeat_interleave(2), 0),
        (lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1])), 1),
        (lambda x: x.repeat_interleave(torch.tensor([1, 0, 2, 1]), output_size=4), 0),
    ],
)
def test_each_question_to_a_tensor_is_counted_once(ask, count):
    x = torch.arange(4.0)
    with count_host_syncs() as counter:
        ask(x)
    assert counter.total == count
    assert set(counter.places) <= {place for place in counter.places if place.startswith("tests/test_host_syncs.py:")}
    assert not counter.ours


def test_nothing_is_counted_after_the_block():
    with count_host_syncs() as counter:
        pass
    torch.ones(2).tolist()
    assert counter.total == 0
