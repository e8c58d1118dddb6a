import pytest
import torch

from logramed.trainer.alignment.costs import centered_costs, gumbel_noise, normal_noise, released_costs
from logramed.trainer.alignment.graphs import unit_vectors


def test_centered_costs_reward_like_pairs_and_are_neutral_on_average():
    vectors = unit_vectors(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) + 5)  # all much alike
    costs = centered_costs(vectors, vectors)
    assert costs.mean().item() == pytest.approx(0, abs=1e-6)
    assert (costs.diagonal() < 0).all()


def test_centered_costs_pass_gradcheck():
    vectors = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(centered_costs, vectors)


def test_costs_are_float32_also_under_autocast():
    vectors = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        costs = centered_costs(vectors, vectors)
    assert costs.dtype == torch.float32
    torch.testing.assert_close(costs, centered_costs(vectors, vectors), rtol=0, atol=0)


def test_released_costs_are_minus_weighted_similarity_noise_and_half():
    costs = released_costs(torch.tensor([[1.0]]), torch.tensor([[0.25]], dtype=torch.float64), 0.5)
    assert costs.tolist() == [[-0.375]]
    assert costs.dtype == torch.float64


def test_gumbel_noise_has_its_mean_and_spread():
    noise = gumbel_noise((200_000,), 0.2, generator=torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.2 * 0.5772, abs=2e-3)  # Euler's constant
    assert noise.std().item() == pytest.approx(0.2 * torch.pi / 6**0.5, abs=2e-3)


@pytest.mark.parametrize("draw", [gumbel_noise, normal_noise])
def test_noise_is_seeded_and_none_at_scale_0(draw):
    first, second = (draw((5,), 0.3, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().min() > 0
    assert torch.equal(draw((5,), 0.0), torch.zeros(5))
