"""Six small environments whose values are known, each of which a certain mistake gets wrong, and one that needs a memory.

`tests.agents.probes:One-v0` and so on. `PROBES` says what an agent has to know in the end.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

DISCOUNT = 0.8
RECALL_STEPS = 10
Observation = NDArray[np.float32]


class Probe(gymnasium.Env[Observation, np.int64]):
    """An environment that shows one number."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        return self.show(0.0), {}

    def show(self, number: float) -> Observation:
        self.shown = number
        return np.array([number], np.float32)

    def show_sign(self) -> Observation:
        return self.show(float(self.np_random.choice([-1, 1])))


class One(Probe):
    """One action, one step, reward 1. What follows looks the same, so a value behind the end would show."""

    action_space = Discrete(1)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return self.show(0.0), 1.0, True, False, {}


class Echo(Probe):
    """The reward is what was seen, -1 or 1."""

    action_space = Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        return self.show_sign(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = self.shown
        return self.show_sign(), reward, True, False, {}


class Delay(Probe):
    """Two steps; the second brings 1."""

    action_space = Discrete(1)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self.shown == 0.0:
            return self.show(1.0), 0.0, False, False, {}
        return self.show(0.0), 1.0, True, False, {}


class Choice(Probe):
    """The second action is right."""

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return self.show(0.0), 1.0 if action == 1 else -1.0, True, False, {}


class Match(Echo):
    """Which action is right depends on what is seen."""

    action_space = Discrete(2)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        reward = 1.0 if action == (self.shown > 0) else -1.0
        return self.show_sign(), reward, True, False, {}


class Endless(Probe):
    """1 a step for ever, cut off after three: were that an end, the mean value would be 1.75 and not 5."""

    action_space = Discrete(1)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        return self.show(0.0), 1.0, False, False, {}


class Recall(Probe):
    """A cue, -1 or 1, is seen at the first step alone; at the tenth the action has to match it."""

    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        observation = self.show_sign()
        self.cue = self.shown
        return observation, {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps < RECALL_STEPS:
            return self.show(0.0), 0.0, False, False, {}
        return self.show(0.0), 1.0 if action == (self.cue > 0) else -1.0, True, False, {}


class Known(NamedTuple):
    """The truth of a probe, by what is seen."""

    seen: tuple[float, ...]
    values: tuple[float, ...] | None  # None where they depend on how random the policy still is
    actions: tuple[int, ...] | None = None  # the right ones; None where there is no choice


PROBES = {
    "One": Known((0.0,), (1.0,)),
    "Echo": Known((-1.0, 1.0), (-1.0, 1.0)),
    "Delay": Known((0.0, 1.0), (DISCOUNT, 1.0)),
    "Choice": Known((0.0,), None, (1,)),
    "Match": Known((-1.0, 1.0), None, (0, 1)),
    "Endless": Known((0.0,), (1 / (1 - DISCOUNT),)),
}

for _name in (*PROBES, "Recall"):
    gymnasium.register(f"{_name}-v0", entry_point=f"{__name__}:{_name}", max_episode_steps=3 if _name == "Endless" else None)
