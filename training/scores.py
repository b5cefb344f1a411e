"""The game's own scores of the games that training plays."""

from collections import deque
from typing import Any

import numpy as np

from envs.contract import TimeStep

WINDOW = 100  # games


class Scores:
    """Adds up each slot's running game and remembers the last 100 finished ones."""

    def __init__(self, num_envs: int) -> None:
        """Start with no games."""
        self._running = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._last_lengths: deque[int] = deque(maxlen=WINDOW)
        self.games = 0
        self.best: float | None = None

    def watch(self, timestep: TimeStep, slots: slice) -> None:
        """Take in one step of some slots."""
        self._running[slots] = np.where(timestep.is_first, 0.0, self._running[slots]) + timestep.reward
        self._lengths[slots] = np.where(timestep.is_first, 0, self._lengths[slots]) + timestep.frames
        for slot in np.flatnonzero(timestep.terminated | timestep.truncated) + slots.start:
            self._finish(float(self._running[slot]), int(self._lengths[slot]))

    def _finish(self, score: float, frames: int) -> None:
        self._last.append(score)
        self._last_lengths.append(frames)
        self.games += 1
        self.best = score if self.best is None else max(self.best, score)

    @property
    def mean_100(self) -> float | None:
        """Mean of the last 100 games; None before the first one ends."""
        return float(np.mean(self._last)) if self._last else None

    def metrics(self) -> dict[str, float]:
        """What is logged; empty before the first game ends."""
        if not self._last or self.best is None:
            return {}
        return {
            "score/mean_100": float(np.mean(self._last)),
            "score/best": self.best,
            "score/games": self.games,
            "score/frames_per_game": float(np.mean(self._last_lengths)),
        }

    def state_dict(self) -> dict[str, Any]:
        """Finished games; running ones start anew."""
        last, lengths = list(self._last), list(self._last_lengths)
        return {"last": last, "last_lengths": lengths, "games": self.games, "best": self.best, "mean_100": self.mean_100}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the finished games."""
        self._last.extend(state["last"])
        self._last_lengths.extend(state["last_lengths"])
        self.games, self.best = state["games"], state["best"]
