import pytest
import torch

from logramed.trainer.alignment.costs import (
    centered_costs,
    gumbel_noise,
    inner_products,
    normal_noise,
    sum_of_gamma_noise,
)
from logramed.trainer.alignment.graphs import unit_vectors


def test_centered_costs_reward_like_pairs_and_are_neutral_on_average():
    vectors = unit_vectors(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) + 5)  # all much alike
    costs = centered_costs(vectors, vectors)
    assert costs.mean().item() == pytest.approx(0, abs=1e-6)
    assert (costs.diagonal() < 0).all()


@pytest.mark.parametrize("costs", [inner_products, centered_costs])
def test_costs_of_vectors_pass_gradcheck(costs):
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(costs, vectors)


def test_costs_are_float32_also_under_autocast():
    vectors = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        costs = centered_costs(vectors, vectors)
    assert costs.dtype == torch.float32
    torch.testing.assert_close(costs, centered_costs(vectors, vectors), rtol=0, atol=0)


def test_gumbel_noise_has_its_mean_and_spread():
    noise = gumbel_noise((200_000,), 0.2, generator=torch.Generator().manual_seed(0))
    assert noise.mean().item() == pytest.approx(0.2 * 0.5772, abs=2e-3)  # Euler's constant
    assert noise.std().item() == pytest.approx(0.2 * torch.pi / 6**0.5, abs=2e-3)


@pytest.mark.parametrize("num_pairs", [1, 3, 24])
def test_sum_of_gamma_noise_adds_up_to_the_largest_of_ten_exponentials(num_pairs):
    """Renyi 1953: exponentials over 1, 2, ... 10 add up to the largest of ten, which less log(10) is nearly Gumbel."""
    noise = sum_of_gamma_noise((20_000, num_pairs), 0.2, generator=torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(0.2 * torch.pi / 6**0.5, rel=0.06)  # ten terms: 3% below Gumbel's
    total = noise.sum(-1).sort().values / (0.2 * num_pairs**0.5)
    probability = (torch.arange(20_000) + 0.5) / 20_000
    quantiles = -(1 - probability ** (1 / 10)).log() - torch.tensor(10).log()
    assert (total - quantiles)[200:-200].abs().mean() < 0.02
    assert (total - quantiles)[200:-200].abs().max() < 0.15


@pytest.mark.parametrize("draw", [gumbel_noise, normal_noise, sum_of_gamma_noise])
def test_noise_is_seeded_and_none_at_scale_0(draw):
    first, second = (draw((5,), 0.3, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().min() > 0
    assert torch.equal(draw((5,), 0.0), torch.zeros(5))
