import pytest
import torch

from logramed.trainer.alignment import mean_pool


def test_mean_pool_leaves_padding_out_on_either_side():
    states = torch.randn(1, 3, 4)
    junk = torch.full((1, 2, 4), torch.nan)
    for padded, mask in (
        (torch.cat([states, junk], 1), [[1, 1, 1, 0, 0]]),
        (torch.cat([junk, states], 1), [[0, 0, 1, 1, 1]]),
    ):
        torch.testing.assert_close(mean_pool(padded, torch.tensor(mask)), states.mean(1))


def test_mean_pool_without_a_mask_takes_all_tokens():
    states = torch.randn(2, 3, 4)
    torch.testing.assert_close(mean_pool(states), states.mean(1))


def test_a_sequence_of_padding_alone_gives_zeros_and_finite_gradients():
    states = torch.randn(1, 3, 4, requires_grad=True)
    pooled = mean_pool(states, torch.zeros(1, 3))
    assert torch.equal(pooled, torch.zeros(1, 4))
    pooled.sum().backward()
    assert torch.isfinite(states.grad).all()


def test_long_half_precision_sequences_keep_their_mean():
    states = torch.full((1, 3000, 1), 100.0, dtype=torch.float16)  # the sum overflows float16
    pooled = mean_pool(states, torch.ones(1, 3000))
    assert pooled.dtype == torch.float16
    assert pooled.item() == pytest.approx(100)


def test_mean_pool_refuses_a_mask_of_another_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\).*got \(2, 4\)"):
        mean_pool(torch.randn(2, 3, 4), torch.ones(2, 4))
