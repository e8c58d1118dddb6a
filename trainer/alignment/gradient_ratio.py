"""A weight of the alignment loss that keeps its gradient in proportion to that of the language-modeling loss."""

from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback


# The steps that the smoothed logarithm of the ratio remembers: at first the mean of all, later an exponential mean in
# which a step counts for a tenth. Our choice, long against the noise of a batch and short against a run.
NUM_SMOOTHED = 10


class GradientNorms:
    """
    The squared norms of both losses' gradients at the answer states, summed over the backward passes of a step.

    Alignment's gradient arrives at the states that were taken for it, the sum of both at all hidden states: the
    difference is that of the language-modeling loss. Nothing is computed twice.
    """

    def __init__(self):
        self.alignment: torch.Tensor | None = None
        self.language: torch.Tensor | None = None

    def watch(self, hidden_states: torch.Tensor, states: torch.Tensor, places: torch.Tensor) -> None:
        """
        Watch the answer states `(num_turns, hidden_size)`, which were taken for alignment alone from `hidden_states`
        `(batch_size, sequence_length, hidden_size)`, at different `places` in the flattened batch.
        """
        found: list[torch.Tensor] = []

        def add_both(gradient):
            both = gradient.detach().flatten(0, 1).index_select(0, places).float()
            alignment = found.pop().float() if found else torch.zeros_like(both)
            self._add(alignment.square().sum(), (both - alignment).square().sum())

        states.register_hook(lambda gradient: found.append(gradient.detach()))
        hidden_states.register_hook(add_both)

    def _add(self, alignment, language):
        self.alignment = alignment if self.alignment is None else self.alignment + alignment
        self.language = language if self.language is None else self.language + language

    def pop(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The sums since the last time, alignment's and language's; None if there was no backward pass."""
        found = None if self.alignment is None else (self.alignment, self.language)
        self.alignment = self.language = None
        return found


class GradientRatio:
    """
    The weight at which the alignment loss's gradient has the norm `target`, relative to the language-modeling loss's,
    by what was measured in the steps before; `first_weight` in the first step, and always without a `target`. `weight`
    is that of the step to come, before any schedule, and `measured` the relative norm in the last step.
    """

    def __init__(self, target: float | None, first_weight: float):
        self.target, self.first_weight = target, first_weight
        self.norms = GradientNorms()
        self.measured: torch.Tensor | None = None
        self._num_measured = torch.zeros(())
        self._log_ratio = torch.zeros(())  # of the unweighted gradient's norm, smoothed

    @property
    def weight(self) -> torch.Tensor:
        if self.target is None:
            return torch.tensor(self.first_weight)
        followed = self.target / self._log_ratio.exp()
        return torch.where(self._num_measured > 0, followed, self.first_weight)

    def update(self, weight: float | torch.Tensor, accelerator: Accelerator) -> None:
        """
        After a step in which the loss had `weight`: take over what was measured, the mean over all processes. A step
        without a gradient of either loss, or with one that is not finite, changes nothing.
        """
        squares = self.norms.pop()
        squares = torch.zeros(2, device=accelerator.device) if squares is None else torch.stack(squares)
        alignment, language = accelerator.reduce(squares, reduction="mean")
        self.measured = (alignment / language).sqrt()
        log_ratio = self.measured.log() - torch.as_tensor(weight).log()
        is_known = log_ratio.isfinite()
        self._num_measured = self._num_measured + is_known
        step = (log_ratio - self._log_ratio) / self._num_measured.clamp(1, NUM_SMOOTHED)
        self._log_ratio = self._log_ratio + torch.where(is_known, step, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"log_ratio": self._log_ratio.item(), "num_measured": self._num_measured.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._log_ratio = torch.tensor(state["log_ratio"])
        self._num_measured = torch.tensor(state["num_measured"])


class GradientRatioCallback(TrainerCallback):
    """Tells the trainer when a step is over, before anything of it is logged or saved."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.follow_gradient_ratio(state.global_step - 1)
