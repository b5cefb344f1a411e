"""Adam by torch's fused kernel alone: Kingma and Ba 2015, "Adam", https://arxiv.org/abs/1412.6980.

Its numbers and its moments are those of `torch.optim.Adam`. What differs:
1. A step is the kernel. On a CPU what torch does around it in Python takes half as long again, and where an update has several
   threads each of those small operations also waits for the interpreter that the other one holds.
2. It is no `torch.optim.Optimizer`, of which the first imports torch's compiler: a second of a run's start, and 70 MB.
3. The moments are there from the start, and stay where they are in memory.
"""

import torch
from torch import Tensor, nn


class Adam:
    """An optimiser of some weights."""

    def __init__(self, weights: list[nn.Parameter], lr: float, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Begin with moments of 0."""
        self.lr: float | Tensor = lr
        """Step size; to record a step as a CUDA graph it has to be a tensor there."""
        self._weights: list[Tensor] = [*weights]
        self._eps, self._betas = eps, betas
        self._steps = [torch.zeros((), device=weight.device) for weight in weights]
        self._means, self._squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))

    @property
    def moments(self) -> dict[str, list[Tensor]]:
        """What it remembers of each weight, under torch's names."""
        return {"step": self._steps, "exp_avg": self._means, "exp_avg_sq": self._squares}

    def step_along(self, gradients: list[Tensor]) -> None:
        """A step along a gradient for each weight; on a CPU the weights must not require one."""
        torch._foreach_add_(self._steps, 1)
        fused_step(self._weights, gradients, self._means, self._squares, self._steps, self.lr, self._eps, self._betas)


def fused_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    lr: float | Tensor,
    eps: float,
    betas: tuple[float, float],
) -> None:
    """Adam's kernel: moves weights and both moments, which are corrected as after so many steps."""
    torch._fused_adam_(
        weights,
        gradients,
        means,
        squares,
        [],
        steps,
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
