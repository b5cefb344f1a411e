"""RMSprop in one pass over the weights: torch's own makes five, and a step on a small batch is mostly that."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from agents.adam import Adam


class RMSprop(Adam):
    """torch's RMSprop, computed by its fused Adam; a state is RMSprop's `square_avg`.

    Adam is RMSprop where it has no first moment (a beta of 0) and its second is no longer corrected for beginning at 0, which
    is so behind infinitely many steps.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, decay: float, eps: float) -> None:
        """Begin with a mean square of 0, as RMSprop does; `decay` is torch's alpha."""
        super().__init__(weights, lr, eps, betas=(0.0, decay))
        self._begin()

    def _begin(self) -> None:
        """Give every weight that has none a mean square of 0, before Adam gives it moments of its own."""
        for weight in self.param_groups[0]["params"]:
            if weight not in self.state:
                self.state[weight] = _moments(torch.zeros_like(weight))

    def _means(self, moments: list[dict[str, Any]], gradients: list[Tensor]) -> list[Tensor]:
        """The gradients: with a beta of 0 they are Adam's means, and one place in memory does for both."""
        return gradients

    def state_dict(self) -> dict[str, Any]:
        """The mean squares."""
        state = super().state_dict()
        squares = {index: {"square_avg": moments["exp_avg_sq"]} for index, moments in state["state"].items()}
        return {**state, "state": squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back mean squares and step size, of torch's RMSprop too, which has none before its first step."""
        moments = {index: _moments(squares["square_avg"]) for index, squares in state["state"].items()}
        own = super().state_dict()["param_groups"]
        groups = [{**group, "lr": saved["lr"]} for group, saved in zip(own, state["param_groups"], strict=True)]
        super().load_state_dict({"state": moments, "param_groups": groups})
        self._begin()


def _moments(square: Tensor) -> dict[str, Tensor]:
    step = torch.full((), math.inf, device=square.device)
    return {"step": step, "exp_avg": torch.zeros_like(square), "exp_avg_sq": square}
