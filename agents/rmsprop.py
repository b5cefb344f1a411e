"""RMSprop in one pass over the weights: torch's own makes five, and a step on a small batch is mostly that.

Its numbers and its moment are those of `torch.optim.RMSprop`, computed by Adam's kernel. Adam is RMSprop where it has no first
moment (a beta of 0, by which the gradient itself is the mean) and its second is not corrected for beginning at 0, as after
infinitely many steps.
"""

import math

import torch
from torch import Tensor, nn

from agents.adam import fused_step


class RMSprop:
    """An optimiser of some weights."""

    def __init__(self, weights: list[nn.Parameter], lr: float, decay: float, eps: float) -> None:
        """Begin with a mean square of 0; `decay` is torch's alpha."""
        self.lr: float | Tensor = lr
        """Step size; to record a step as a CUDA graph it has to be a tensor there."""
        self._weights: list[Tensor] = [*weights]
        self._eps, self._betas = eps, (0.0, decay)
        self._steps = [torch.full((), math.inf, device=weight.device) for weight in weights]
        self._squares = [torch.zeros_like(weight) for weight in weights]

    @property
    def moments(self) -> dict[str, list[Tensor]]:
        """What it remembers of each weight, under torch's names."""
        return {"square_avg": self._squares}

    def step_along(self, gradients: list[Tensor]) -> None:
        """A step along a gradient for each weight; on a CPU the weights must not require one."""
        fused_step(self._weights, gradients, gradients, self._squares, self._steps, self.lr, self._eps, self._betas)
