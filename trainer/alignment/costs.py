"""Costs of matching nodes to nodes and edges to edges, and the noise on them."""

import math

import torch


# Terms of a sum-of-gamma variable: s in arXiv:2106.01798, Theorem 1.
NUM_GAMMAS = 10


def centered_costs(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Cost `(*batch, num_source, num_target)` of laying unit vectors `source` onto `target`: minus their cosine, plus the
    mean cosine of all pairs. A random pair then costs 0 on average and a like pair is rewarded, whatever direction all
    vectors have in common. Carries gradients; float32 at least.
    """
    similarity = inner_products(source, target)
    if similarity.numel() == 0:
        return -similarity
    return similarity.mean((-2, -1), keepdim=True) - similarity


def inner_products(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Inner products `(*batch, num_source, num_target)` in float32 at least, also under autocast."""
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(source.device.type, enabled=False):
        return source.to(dtype) @ target.to(dtype).transpose(-1, -2)


def gumbel_noise(shape: tuple[int, ...], scale: float, **options) -> torch.Tensor:
    """
    Gumbel(0, `scale`) noise of `shape`; zeros where `scale` is 0. `options` are `generator`, `device` and `dtype` as
    in `torch.randn`; the generator must live on the device.
    """
    if scale == 0:
        return _empty(shape, **options).zero_()
    # As minus the logarithm of minus that of a uniform: several times sooner than by exponentials.
    uniform = _empty(shape, **options).uniform_(generator=options.get("generator"))
    return uniform.clamp_(min=torch.finfo(uniform.dtype).tiny).log_().neg_().log_().mul_(-scale)


def normal_noise(shape: tuple[int, ...], scale: float, **options) -> torch.Tensor:
    """Normal noise of standard deviation `scale`. `shape` and `options` as in `gumbel_noise`."""
    return scale * torch.randn(shape, **options)


def sum_of_gamma_noise(shape: tuple[int, ...], scale: float, **options) -> torch.Tensor:
    """
    Noise whose sum over as many entries as a matching has pairs, `shape[-1]`, is nearly Gumbel, and whose single entry
    has nearly the standard deviation of Gumbel(0, `scale`). `shape` and `options` as in `gumbel_noise`.

    Source: arXiv:2106.01798, Theorem 1 (s = 10), at temperature `scale * sqrt(k)` for k = `shape[-1]`: the paper's
    temperature is that of the sum, and its noise on an entry gets smaller the more nodes there are. The weighted sum
    of gamma variables is drawn as one series of exponentials, after Bondesson 1982, "On simulation from infinitely
    divisible distributions", cut where a thousandth of its mean is left.
    """
    num_pairs = max(shape[-1], 1)
    mean_points = NUM_GAMMAS / num_pairs
    num_points = math.ceil(math.log(1000) / math.log1p(1 / mean_points))
    arrivals = _exponential((num_points, *shape), **options).cumsum(0)
    sizes = _exponential((num_points, *shape), **options)
    ranks = torch.randint_like(sizes, 1, NUM_GAMMAS + 1, generator=options.get("generator"))
    total = (sizes / ranks * (-arrivals / mean_points).exp()).sum(0)
    return scale * math.sqrt(num_pairs) * (total - math.log(NUM_GAMMAS) / num_pairs)


def _empty(shape, *, generator=None, device="cpu", dtype=torch.float32):
    return torch.empty(shape, device=device, dtype=dtype)


def _exponential(shape, *, generator=None, **options):
    return _empty(shape, **options).exponential_(generator=generator)


NOISE = {"gumbel": gumbel_noise, "normal": normal_noise, "sum_of_gamma": sum_of_gamma_noise}
