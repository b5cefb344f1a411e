"""The game's own scores of the games that training plays."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.contract import TimeStep
from envs.lab_tasks import human_normalized_capped

WINDOW = 100  # games


class Scores:
    """Adds up each slot's running game and remembers the last 100 finished ones of each task."""

    def __init__(self, tasks: Sequence[str]) -> None:
        """Start with no games; `tasks` (N,) are what each slot plays."""
        self._tasks = tuple(tasks)
        self._running = np.zeros(len(tasks))
        self._lengths = np.zeros(len(tasks), np.int64)
        self._last: dict[str, deque[float]] = {task: deque(maxlen=WINDOW) for task in tasks}
        self._last_lengths: deque[int] = deque(maxlen=WINDOW)
        self.games = 0
        self.best: float | None = None

    def watch(self, timestep: TimeStep, slots: slice) -> None:
        """Take in one step of some slots."""
        goes_on = ~timestep.is_first
        self._running[slots] = self._running[slots] * goes_on + timestep.reward
        self._lengths[slots] = self._lengths[slots] * goes_on + timestep.frames
        for slot in (timestep.terminated | timestep.truncated).nonzero()[0] + slots.start:
            self._finish(self._tasks[slot], float(self._running[slot]), int(self._lengths[slot]))

    def _finish(self, task: str, score: float, frames: int) -> None:
        self._last[task].append(score)
        self._last_lengths.append(frames)
        self.games += 1
        self.best = score if self.best is None else max(self.best, score)

    @property
    def _means(self) -> dict[str, float]:
        """Mean of the last 100 games of each task that has finished one."""
        return {task: float(np.mean(last)) for task, last in self._last.items() if last}

    @property
    def mean_100(self) -> float | None:
        """Mean of the last 100 games, over several tasks the mean of theirs; None before the first game ends."""
        means = self._means
        return float(np.mean(list(means.values()))) if means else None

    def metrics(self) -> dict[str, float]:
        """What is logged; empty before the first game ends."""
        means, mean = self._means, self.mean_100
        if mean is None or self.best is None:
            return {}
        row = {
            "score/mean_100": mean,
            "score/best": self.best,
            "score/games": self.games,
            "score/frames_per_game": float(np.mean(self._last_lengths)),
        }
        if len(self._last) > 1:
            row |= {f"score/mean_100/{task}": each for task, each in means.items()}
            capped = human_normalized_capped(means)
            row |= {} if capped is None else {"score/human_normalized_capped": capped}
        return row

    def state_dict(self) -> dict[str, Any]:
        """Finished games and running ones."""
        return {
            "running": self._running.tolist(),
            "lengths": self._lengths.tolist(),
            "last": {task: list(last) for task, last in self._last.items()},
            "last_lengths": list(self._last_lengths),
            "games": self.games,
            "best": self.best,
            "mean_100": self.mean_100,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._running[:], self._lengths[:] = state["running"], state["lengths"]
        for task, last in state["last"].items():
            self._last[task].extend(last)
        self._last_lengths.extend(state["last_lengths"])
        self.games, self.best = state["games"], state["best"]


def points(value: float) -> str:
    """A score as it is printed: one decimal from 10 on, two below, where some games have all their points."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:z,.2f}"
