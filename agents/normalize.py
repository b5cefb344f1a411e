"""What an agent makes of the game's score when it learns from it. The environment and every logged score keep the truth.

- `clip`: to -1..1, as in Mnih et al. 2015: one learning rate for all games, but one pin and a strike look the same.
- `scale`: times a constant.
- `normalize`: divided by the running standard deviation of the discounted return, clipped to 10 of them (Engstrom et al. 2020,
  "Implementation Matters in Deep RL", arXiv 2005.12729).
- `none`: as it is.
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from envs.contract import TimeStep

Kind = Literal["clip", "scale", "normalize", "none"]
_LIMIT = 10.0  # standard deviations
_EPSILON = 1e-8


class RewardTransform:
    """The transform of N environments' rewards; only `normalize` has a state."""

    def __init__(self, kind: Kind, scale: float, discount: float, num_envs: int) -> None:
        """Choose a kind; `scale` is for `scale`, `discount` for `normalize`."""
        self._kind, self._scale, self._discount = kind, scale, discount
        self._returns = np.zeros(num_envs)
        # Of the returns seen, Welford's running moments; they begin with a return of 0 before each environment's first step.
        self._count, self._mean, self._squares = num_envs, 0.0, 0.0

    def __call__(self, rewards: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rewards to learn from, by what has been watched until now: of any shape."""
        if self._kind == "clip":
            return np.minimum(np.maximum(rewards, np.float32(-1)), np.float32(1))
        if self._kind == "scale":
            return np.multiply(rewards, self._scale, dtype=np.float32)
        if self._kind == "none":
            return rewards
        deviation, limit = np.float32(math.sqrt(self._squares / max(self._count, 1) + _EPSILON)), np.float32(_LIMIT)
        normalized: NDArray[np.float32] = np.minimum(np.maximum(rewards / deviation, -limit), limit)
        return normalized

    def watch(self, timestep: TimeStep, slots: slice) -> None:
        """Take the returns of these environments into the moments; a new episode's return starts at zero."""
        if self._kind != "normalize":
            return
        running = np.where(timestep.is_first, 0.0, self._returns[slots] * self._discount + timestep.reward)
        self._returns[slots] = running
        returns = running[~timestep.is_first]
        if not returns.size:
            return
        count = self._count + returns.size
        shift = returns.mean() - self._mean
        self._squares += ((returns - returns.mean()) ** 2).sum() + shift**2 * self._count * returns.size / count
        self._mean += shift * returns.size / count
        self._count = count

    def state_dict(self) -> dict[str, Any]:
        """The moments, and the returns of running episodes."""
        moments = {"count": self._count, "mean": float(self._mean), "squares": float(self._squares)}
        return {**moments, "returns": self._returns.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._returns[:] = state["returns"]
        self._count, self._mean, self._squares = state["count"], state["mean"], state["squares"]
