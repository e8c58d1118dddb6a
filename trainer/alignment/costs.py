"""Costs of matching nodes to nodes and edges to edges, and the noise on them."""

import torch


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


def released_costs(similarity: torch.Tensor, noise: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """
    Costs as the research release has them: `-weight * (similarity + noise - 0.5)`, `weight` 1 for nodes and 0.5 for
    edges, float64. Not centered: edges of random pairs cost +0.25 on average, so agreement is mostly punished.
    """
    return -weight * (similarity.to(torch.float64) + noise - 0.5)


def inner_products(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Inner products `(*batch, num_source, num_target)` in float32 at least, also under autocast."""
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(source.device.type, enabled=False):
        return source.to(dtype) @ target.to(dtype).transpose(-1, -2)


def gumbel_noise(
    shape: tuple[int, ...],
    scale: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Gumbel(0, `scale`) noise on `device`; zeros where `scale` is 0. A `generator` must live on `device`."""
    if scale == 0:
        return torch.zeros(shape, device=device, dtype=dtype)
    waiting = torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)
    return -scale * waiting.clamp(min=torch.finfo(dtype).tiny).log()


def normal_noise(
    shape: tuple[int, ...],
    scale: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Normal noise of standard deviation `scale` on `device`. A `generator` must live on `device`."""
    return scale * torch.randn(shape, generator=generator, device=device, dtype=dtype)


NOISE = {"gumbel": gumbel_noise, "normal": normal_noise}
