"""Gradients through a matching, which itself is piecewise constant in the costs: one family of estimators."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .costs import NOISE
from .matching import add_matched_edges, match_graphs, matching_cost, one_hot_matching


ESTIMATORS = ("blackbox", "imle", "aimle", "fenchel_young")
# The adaptive step is the longest, halved up to so many times: found in three solves or four.
MAX_HALVINGS = 7


@dataclass(frozen=True)
class GradientEstimator:
    """
    A loss of matchings at noisy costs, with one of four gradients. Called with costs, it gives `(loss, labels)`.

    | `name` | loss | gradient with respect to the costs |
    | --- | --- | --- |
    | `"blackbox"` | Hamming | change of the matching when costs move by `step` against the loss; one sample |
    | `"imle"` | Hamming | the same, mean over `num_samples` noise samples |
    | `"aimle"` | Hamming | the same, at a step found for each batch |
    | `"fenchel_young"` | excess cost of the right matching | right matching minus found matching, mean over samples |

    The Hamming loss is `hamming_distance` divided by the number of nodes: 0 all right, 2 all wrong. The Fenchel-Young
    loss is what the right matching costs more than the found one, divided by the number of nodes: never negative, and
    0 where the right one is found in every sample. Its gradient needs no second solve. All reach edge costs as well.

    In training each right pair costs `margin` more than it does, so that the right matching has to win by it. Noise is
    a margin as well, of another size for each pair and sample.

    The step of `"aimle"` is the shortest of `step`, `step / 2`, ... `step / 128` at which the gradient has `target`
    nonzero entries a node on average, and `step` if there is none. The paper follows that target by a running step,
    kept from batch to batch. Here it is found anew for each batch, at three solves or four for one: nothing has to be
    kept in a checkpoint, and processes, accumulated batches and repeated batches do not depend on each other. The
    paper's target is one entry a sample, `target=1 / num_nodes`, too few to learn from here (README.md).

    Args:
        name (`str`, *optional*, defaults to `"imle"`): See above.
        noise (`str`, *optional*, defaults to `"normal"`): `"normal"`, `"gumbel"` or `"sum_of_gamma"`, on node costs.
        noise_scale (`float`, *optional*, defaults to 0.3): Its scale, in the unit of the costs.
        margin (`float`, *optional*, defaults to 0.0): Added to the costs of right pairs, in training.
        num_samples (`int`, *optional*, defaults to 4): Noise samples of each problem. `"blackbox"` takes one.
        step (`float`, *optional*, defaults to 1.0): How far costs move, in their unit. `"fenchel_young"` has none.
        target (`float`, *optional*, defaults to 1.0): Nonzero entries of the gradient a node, for `"aimle"`.
        symmetric (`bool`, *optional*, defaults to `False`): Compare the matchings of costs moved either way (central
            differences) instead of moved and unmoved. Not for `"fenchel_young"`.
        shared_noise (`bool`, *optional*, defaults to `False`): The same noise for all problems of a call.

    Source: arXiv:1912.02175, Algorithm 1; arXiv:2106.01798, Algorithm 1; arXiv:2209.04862 (steps that aim at a number
    of nonzero entries, central differences); arXiv:2002.08676, section 4 (perturbed Fenchel-Young losses).

    Example:
        >>> edges = torch.zeros(2, 0, dtype=torch.int64)  # no edges: plain linear assignment
        >>> costs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
        >>> estimator = GradientEstimator("fenchel_young", noise_scale=0.0, num_samples=1)
        >>> loss, labels = estimator(costs, torch.zeros(0, 0), edges, edges, torch.eye(2, dtype=torch.bool))
        >>> loss.backward()
        >>> loss.item(), labels.tolist(), costs.grad.tolist()
        (1.0, [[[1, 0]]], [[[0.5, -0.5], [-0.5, 0.5]]])
    """

    name: str = "imle"
    noise: str = "normal"
    noise_scale: float = 0.3
    margin: float = 0.0
    num_samples: int = 4
    step: float = 1.0
    target: float = 1.0
    symmetric: bool = False
    shared_noise: bool = False

    def __post_init__(self):
        for name, value, choices in (("name", self.name, ESTIMATORS), ("noise", self.noise, tuple(NOISE))):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
        if self.num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {self.num_samples}.")
        for name, value in (("step", self.step), ("target", self.target)):
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}.")
        for name, value in (("noise_scale", self.noise_scale), ("margin", self.margin)):
            if not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")
        if self.symmetric and self.name == "fenchel_young":
            raise ValueError('`symmetric` is for finite differences: "fenchel_young" takes none. Leave it out.')

    def __call__(
        self,
        node_costs: torch.Tensor,
        edge_costs: torch.Tensor,
        source_edge_index: torch.Tensor,
        target_edge_index: torch.Tensor,
        right: torch.Tensor,
        *,
        training: bool = True,
        allow_unmatched: bool = False,
        generator: torch.Generator | None = None,
        solver: Callable[..., torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Match at noisy costs and compare with what is right.

        Args:
            node_costs (`torch.Tensor` of shape `(num_problems, num_nodes, num_nodes)`): Without noise.
            edge_costs, source_edge_index, target_edge_index, allow_unmatched, generator: As in `match_graphs`, for
                each problem or one for all. The generator, on the costs' device, draws the noise as well.
            right (`torch.Tensor` of shape `([num_problems,] num_nodes, num_nodes)`, bool): Whether target node j is a
                right match of source node i. It may have several.
            training (`bool`, *optional*, defaults to `True`): Without it costs are matched once, as they are.
            solver (*optional*): Takes the place of `match_graphs`, with its arguments.

        Returns:
            The loss, a scalar, mean over problems and samples; labels `(num_problems, num_samples, num_nodes)`, int64.

        Raises:
            ValueError: If the costs are not those of several problems, `right` does not fit them, or (Fenchel-Young)
                allows no matching.
        """
        if node_costs.dim() != 3:
            raise ValueError(
                f"`node_costs` must be (num_problems, num_nodes, num_nodes), got {tuple(node_costs.shape)}."
            )
        if right.dtype != torch.bool or tuple(right.shape) not in (node_costs.shape[1:], node_costs.shape):
            raise ValueError(
                f"`right` must be bool, of shape {tuple(node_costs.shape[1:])} or {tuple(node_costs.shape)}, got "
                f"{right.dtype}, {tuple(right.shape)}."
            )
        node_costs = node_costs.to(torch.promote_types(node_costs.dtype, torch.float32))
        problem = (
            self._noisy(node_costs + self.margin * right, generator) if training else node_costs.unsqueeze(1),
            *(values.unsqueeze(-3) for values in (edge_costs, source_edge_index, target_edge_index)),
        )
        right = right.unsqueeze(-3)
        options = {"allow_unmatched": allow_unmatched, "generator": generator, "solver": solver}
        if self.name == "fenchel_young":
            return fenchel_young_loss(*problem, right, **options)
        matchings, labels = differentiable_matching(
            *problem,
            step=self.step,
            symmetric=self.symmetric,
            target=self.target if self.name == "aimle" else None,
            skip_settled=True,
            **options,
        )
        return hamming_loss(matchings, right), labels

    def _noisy(self, node_costs, generator):
        num_samples = 1 if self.name == "blackbox" else self.num_samples
        num_problems, *nodes = node_costs.shape
        noise = NOISE[self.noise](
            (1 if self.shared_noise else num_problems, num_samples, *nodes),
            self.noise_scale,
            generator=generator,
            device=node_costs.device,
            dtype=node_costs.dtype,
        )
        return node_costs.unsqueeze(1) - noise


def hamming_distance(matchings: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """
    Number of wrong pairs plus number of nodes without a right one, `(...)`, of 0/1 matchings
    `(..., num_nodes, num_nodes)`. `right` (bool, broadcastable) says which pairs are right, perhaps several a node.
    """
    right_matches = (matchings * right).sum((-2, -1))
    return matchings.sum((-2, -1)) - right_matches + (matchings.shape[-1] - right_matches)


def hamming_loss(matchings: torch.Tensor, right: torch.Tensor | None = None) -> torch.Tensor:
    """
    Hamming distance of 0/1 matchings `(..., num_nodes, num_nodes)` to the identity, or to the pairs that are `right`
    (bool, broadcastable), per node, averaged: a wrong node counts 2, an unmatched one 1.
    """
    num_nodes = matchings.shape[-1]
    if right is None:
        right = torch.eye(num_nodes, dtype=torch.bool, device=matchings.device)
    return hamming_distance(matchings, right).mean() / num_nodes


def fenchel_young_loss(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    right: torch.Tensor,
    *,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    solver: Callable[..., torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What the right matching costs more than the one found, a node: a scalar, mean over the leading dimensions, with a
    gradient to node and edge costs; and the labels found. Arguments as in `differentiable_matching`, `right` as in
    `GradientEstimator`, with the leading dimensions of `node_costs` or broadcast to them.

    Of several right matchings the cheapest counts (`right_matching`), at the same noisy costs: none is preferred to
    the others, and the loss is 0 if any is found. Where the search found a matching dearer than the right one, the
    sample counts 0 and has no gradient.

    Source: arXiv:2002.08676, section 4. The minimum over several right matchings is ours.
    """

    def solve(*problem, allow_unmatched=allow_unmatched):
        return (solver or match_graphs)(*problem, allow_unmatched=allow_unmatched, generator=generator)

    edges = (edge_costs, source_edge_index, target_edge_index)
    with torch.no_grad():
        labels = solve(node_costs, *edges)
        right_labels = right_matching(node_costs, *edges, right, solve=solve)
    excess = matching_cost(right_labels, node_costs, *edges) - matching_cost(labels, node_costs, *edges)
    loss = excess.clamp(min=0).mean() / node_costs.shape[-1]
    return loss.to(torch.promote_types(node_costs.dtype, torch.float32)), labels


def right_matching(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    right: torch.Tensor,
    *,
    solve: Callable[..., torch.Tensor] = match_graphs,
) -> torch.Tensor:
    """
    Labels `(*batch, num_nodes)` of the cheapest matching of right pairs alone. Nothing is solved where every node has
    one right partner; else wrong pairs cost more than any two matchings can differ by.

    Raises:
        ValueError: If no matching has right pairs alone.
    """
    batch = torch.broadcast_shapes(node_costs.shape[:-2], edge_costs.shape[:-2])
    if (right.sum(-1) == 1).all() & (right.sum(-2) == 1).all():
        return right.int().argmax(-1).expand(*batch, -1)
    largest_cost = sum(
        costs.shape[-1] * costs.detach().abs().amax().to(torch.float64)
        for costs in (node_costs, edge_costs)
        if costs.numel() > 0
    )
    forbidding = torch.where(right, 0, 1 + 2 * largest_cost)
    labels = solve(node_costs + forbidding, edge_costs, source_edge_index, target_edge_index, allow_unmatched=False)
    if not right.expand(*labels.shape, -1).gather(-1, labels.unsqueeze(-1)).all():
        raise ValueError("`right` must allow a matching of right pairs alone: some nodes compete for too few targets.")
    return labels


def differentiable_matching(
    node_costs: torch.Tensor,
    edge_costs: torch.Tensor,
    source_edge_index: torch.Tensor,
    target_edge_index: torch.Tensor,
    *,
    step: float,
    normalize: bool = True,
    symmetric: bool = False,
    target: float | None = None,
    skip_settled: bool = False,
    allow_unmatched: bool = False,
    generator: torch.Generator | None = None,
    solver: Callable[..., torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Matchings with a gradient: blackbox differentiation, of costs as they are or with noise added by the caller.

    The gradient of the costs is `(m' - m) / step * size`, where m' is the matching of the costs plus `step` times the
    upstream gradient divided by its largest absolute value in that problem, `size`. It is proportional to the upstream
    gradient, so loss weights, loss scaling and accumulation act as they should. With `normalize=False` it is the
    published form, in which `size` counts as 1 and the upstream gradient changes m' alone (`step` is its lambda).

    The search for m' starts at m too.

    Several noise samples of one problem are one leading dimension more in `node_costs`; averaging a loss over them is
    I-MLE with as many samples, each noise sample serving both matchings.

    Args:
        node_costs, edge_costs, source_edge_index, target_edge_index, allow_unmatched, generator:
            As in `match_graphs`; `edge_costs` may lack or broadcast the leading dimensions of `node_costs`.
        step (`float`): How far the costs move, in their own unit.
        normalize (`bool`, *optional*, defaults to `True`): Homogeneous gradient (above) or the published one.
        symmetric (`bool`, *optional*, defaults to `False`): m is the matching of costs moved the other way, and the
            gradient half as large: central differences.
        target (`float`, *optional*): The step is the shortest of `step` and its halves at which the gradient has as
            many nonzero entries a node on average (see `GradientEstimator`). Without it the step is `step`.
        skip_settled (`bool`, *optional*, defaults to `False`): Where every node of m has the target that the upstream
            gradient likes best, m is the best matching of the moved costs too, and is not solved for again. The solver
            is then given only the other problems, along one leading dimension.
        solver (*optional*): Takes the place of `match_graphs`, with its arguments; tests inject recorded matchings.

    Returns:
        0/1 matchings `(*batch, num_nodes, num_nodes)` in the dtype of `node_costs`, and their labels as `match_graphs`
        gives them (no gradient).

    Source: arXiv:1912.02175, Algorithm 1; arXiv:2106.01798, Algorithm 1 (perturb-and-MAP with the target
    distribution moved along the loss gradient); arXiv:2209.04862 (`symmetric`, `target`). The division by the
    largest value is ours.
    """

    def solve(*problem, start=None):
        options = {"allow_unmatched": allow_unmatched, "generator": generator, "start": start}
        return (solver or match_graphs)(*problem, **options)

    difference = _Difference(solve, step, normalize, symmetric, target, skip_settled)
    return _Matching.apply(node_costs, edge_costs, source_edge_index, target_edge_index, difference)


@dataclass(frozen=True)
class _Difference:
    """How far costs are moved to see how their matching changes."""

    solve: Callable[..., torch.Tensor]
    step: float
    normalize: bool
    symmetric: bool
    target: float | None
    skip_settled: bool

    def ends(self, problem, labels, direction):
        """Labels of the matchings to compare, of costs moved ahead and behind, and the step."""
        settled = _settled(labels, direction) if self.skip_settled else torch.zeros_like(labels[..., 0], dtype=bool)
        low, high = 0, 0 if self.target is None else MAX_HALVINGS
        ends = None
        while low < high:
            middle = (low + high + 1) // 2
            tried = self._ends_at(self.step / 2**middle, problem, labels, direction, settled)
            # A node with another target is two nonzero entries of the gradient.
            if 2 * (tried[0] != tried[1]).sum() >= self.target * labels.numel():
                low, ends = middle, tried
            else:
                high = middle - 1
        step = self.step / 2**low
        return *(ends or self._ends_at(step, problem, labels, direction, settled)), step

    def _ends_at(self, step, problem, labels, direction, settled):
        node_costs, *edges = problem
        move = step * direction
        ahead = self._solve_unsettled(node_costs + move, edges, labels, settled)
        behind = self.solve(node_costs - move, *edges, start=labels) if self.symmetric else labels
        return ahead, behind

    def _solve_unsettled(self, node_costs, edges, labels, settled):
        left = (~settled).nonzero(as_tuple=True)
        if len(left[0]) == settled.numel():
            return self.solve(node_costs, *edges, start=labels)
        labels = labels.clone()
        if len(left[0]) > 0:
            rest = (values.expand(*settled.shape, *values.shape[-2:])[left] for values in (node_costs, *edges))
            labels[left] = self.solve(*rest, start=labels[left])
        return labels


def _settled(labels: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Bool `(*batch,)`: whether no other matching, nor leaving nodes out, is lower in `direction` than `labels`."""
    liked = direction.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return ((labels >= 0) & (liked <= direction.amin(-1).clamp(max=0))).all(-1)


class _Matching(torch.autograd.Function):
    """Forward: 0/1 matchings. Backward: (matching of moved costs - matching) / step: see `differentiable_matching`."""

    @staticmethod
    def forward(ctx, node_costs, edge_costs, source_edge_index, target_edge_index, difference):
        labels = difference.solve(node_costs, edge_costs, source_edge_index, target_edge_index)
        ctx.save_for_backward(node_costs, edge_costs, source_edge_index, target_edge_index, labels)
        ctx.difference = difference
        ctx.mark_non_differentiable(labels)
        return one_hot_matching(labels, node_costs.shape[-1]).to(node_costs.dtype), labels

    @staticmethod
    def backward(ctx, upstream, _):
        node_costs, *edges, labels = ctx.saved_tensors
        edge_costs, *edge_indices = edges
        largest = upstream.abs().amax().item() if upstream.numel() else 0.0
        if not math.isfinite(largest):  # a loss scale that overflowed: the optimizer step will be skipped
            return torch.full_like(node_costs, torch.nan), torch.full_like(edge_costs, torch.nan), *[None] * 3
        # In float64 the largest value of a gradient scaled by any power of two divides out exactly.
        upstream = upstream.to(torch.float64)
        if largest == 0:
            return torch.zeros_like(node_costs), torch.zeros_like(edge_costs), *[None] * 3
        difference = ctx.difference
        size = upstream.abs().amax((-2, -1), keepdim=True) if difference.normalize else upstream.new_ones(())
        direction = torch.where(size > 0, upstream / size, 0)
        ahead, behind, step = difference.ends((node_costs.to(torch.float64), *edges), labels, direction)
        weight = size / (2 * step if difference.symmetric else step)
        num_nodes = node_costs.shape[-1]
        node_gradient = (one_hot_matching(ahead, num_nodes) - one_hot_matching(behind, num_nodes)) * weight
        edge_gradient = None
        if ctx.needs_input_grad[1]:
            edge_gradient = torch.zeros(*labels.shape[:-1], *edge_costs.shape[-2:], device=labels.device)
            for found, factor in ((ahead, weight), (behind, -weight)):
                add_matched_edges(edge_gradient, found, *edge_indices, factor)
            edge_gradient = edge_gradient.sum_to_size(edge_costs.shape).to(edge_costs.dtype)
        return node_gradient.to(node_costs.dtype), edge_gradient, *[None] * 3
