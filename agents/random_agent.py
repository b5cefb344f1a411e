"""Plays every action equally often: the baseline that is measured and not looked up."""

import numpy as np
from numpy.typing import NDArray

from agents.agent import Decision
from envs.contract import TimeStep


class RandomPlayer:
    """Implements `agents.agent.Player` without looking."""

    def __init__(self, num_actions: int) -> None:
        """Choose among `num_actions`."""
        self._num_actions = num_actions

    def decide(self, timestep: TimeStep, played: NDArray[np.integer]) -> Decision:
        """The same probability for each action, and no opinion of the value."""
        size = len(timestep.reward)
        return Decision(
            np.full((size, self._num_actions), 1 / self._num_actions, np.float32), np.full(size, np.nan, np.float32)
        )
