"""torch's fused Adam, whose step on a CPU is its kernel alone: what torch does around it in Python takes half as long again.

Where an update has several threads, each of those small operations also waits for the interpreter that the other one holds.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Adam(torch.optim.Adam):
    """torch's Adam; its states are torch's own."""

    def __init__(self, weights: list[nn.Parameter], lr: float, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Begin without moments."""
        super().__init__(weights, lr=lr, betas=betas, eps=eps, fused=True)

    def step_along(self, gradients: list[Tensor]) -> None:
        """A step along a gradient for each weight; on a CPU the weights must not require one."""
        (group,) = self.param_groups
        weights: list[Tensor] = group["params"]
        if weights[0].is_cuda or not self.state:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            self.step()
            return
        moments = [self.state[weight] for weight in weights]
        steps = [own["step"] for own in moments]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            weights,
            gradients,
            self._means(moments, gradients),
            [own["exp_avg_sq"] for own in moments],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _means(self, moments: list[dict[str, Any]], gradients: list[Tensor]) -> list[Tensor]:
        """Where the mean gradients are."""
        return [own["exp_avg"] for own in moments]
