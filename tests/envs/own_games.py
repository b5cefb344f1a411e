"""A user's own games, as the tests address them: `tests.envs.own_games:Squares-v0`."""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from envs.contract import GameLost


class Squares(gymnasium.Env[np.ndarray, int]):
    """A picture that says which game it is of, which step, and which action led to it.

    A game lasts 5 to 12 steps, drawn by its seed. A third of them end, a third are cut off, a third both at once.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own form)
    observation_space = Box(0, 255, (12, 16, 3), np.uint8)
    action_space = Discrete(3, start=5)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.step_count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.name = int(self.np_random.integers(256))
        self.length = int(self.np_random.integers(5, 13))
        self.end = int(self.np_random.integers(3))
        self.step_count = 0
        return self.picture(0), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space
        self.step_count += 1
        over = self.step_count == self.length
        return self.picture(action), action / 2, over and self.end != 1, over and self.end != 0, {}

    def picture(self, action: int) -> np.ndarray:
        picture = np.zeros((12, 16, 3), np.uint8)
        picture[0, 1] = self.name, self.step_count, action
        picture[2:4, self.step_count : self.step_count + 2] = 255
        return picture

    def render(self) -> np.ndarray:
        return np.full((6, 8, 3), 10 * self.step_count, np.uint8)


class Unseen(Squares):
    """Cannot be drawn."""

    metadata = {"render_modes": []}  # noqa: RUF012 (as above)


class Failing(Squares):
    """Raises in its third step."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.step_count == 2:
            raise ValueError("the third square is missing")
        return super().step(action)


class OldReset(Squares):
    """Opens a game as Gym did before its version 0.26, but for the one that is only drawn to see how large it is."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        picture, info = super().reset(seed=seed)
        return picture if seed else (picture, info)


class Unopened(Squares):
    """Raises when it opens its first game, but for the one that is only drawn to see how large it is."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed:
            raise ValueError("there is no first square")
        return super().reset(seed=seed)


class Growing(Squares):
    """Its third step shows more than it says."""

    def picture(self, action: int) -> np.ndarray:
        picture = super().picture(action)
        return np.concatenate([picture, picture]) if self.step_count == 3 else picture


class Refused(Squares):
    """No agent of ours can play it. Of two processes that make it, the one that was started last takes a second more."""

    action_space = Box(-1, 1, (2,))

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        folder = Path(os.environ["REFUSED"])
        (folder / str(os.getpid())).touch()
        while len(processes := [int(path.name) for path in folder.iterdir()]) < 2:
            time.sleep(0.01)
        if os.getpid() == max(processes):
            time.sleep(1)


class Talking(Squares):
    """Says each step."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        print("a step", flush=True)
        return super().step(action)


class LongToOpen(Squares):
    """Takes more than a second to open, and is over with its first step."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        picture, info = super().reset(seed=seed)
        time.sleep(1.25)
        self.length = 1
        return picture, info


class LongToSeed(Squares):
    """Takes half a second to open, but for the one that is only drawn to see how large it is."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed:
            time.sleep(0.5)
            print("another", flush=True)
        return super().reset(seed=seed)


class LongToMake(Squares):
    """Takes half a second to make."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        time.sleep(0.5)
        print("another", flush=True)


class Stuck(Squares):
    """Its second step takes a minute."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.step_count == 1:
            time.sleep(60)
        return super().step(action)


class Lost(Squares):
    """Its engine dies in the third step of a game with an odd name."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.step_count == 2 and self.name % 2:
            raise GameLost("the engine is gone")
        return super().step(action)


class Kept(Squares):
    """Leaves a file for as long as it is not closed; there may be so many of them."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        folder = Path(os.environ["KEPT"])
        if len(list(folder.iterdir())) == int(os.environ.get("MOST_KEPT", "9")):
            raise ValueError("too many are kept")
        self.kept = folder / f"{os.getpid()}-{id(self)}"
        self.kept.touch()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action == 7:
            raise ValueError("seven")
        return super().step(action)

    def close(self) -> None:
        self.kept.unlink()


class Doomed(Squares):
    """Takes its process with it in every second step."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.step_count == 1:
            os._exit(7)
        return super().step(action)


class Unborn(Squares):
    """Takes its process with it when it opens its first game, but for the one that is only drawn to see how large it is."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed:
            os._exit(7)
        return super().reset(seed=seed)


class Numbers(gymnasium.Env[np.ndarray, int]):
    """A vector that counts, for ever."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)
    step_count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.step_count += 1
        return np.full(2, self.step_count % 7, np.float32), self.reward(), False, False, {}

    def reward(self) -> float:
        return 1.0


class Brief(Numbers):
    """Counts to five."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, reward, *_ = super().step(action)
        return seen, reward, self.step_count % 5 == 0, False, {}


class NaNReward(Numbers):
    """Its 40th reward is none."""

    def reward(self) -> float:
        return float("nan") if self.step_count == 40 else 1.0


class InfiniteObservation(Numbers):
    """What is seen in its 40th step is infinite."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        seen, *rest = super().step(action)
        return (np.full(2, np.inf, np.float32) if self.step_count == 40 else seen), *rest


class HugeReward(Numbers):
    """Its 40th reward is finite, and its square is not."""

    def reward(self) -> float:
        return 1e30 if self.step_count == 40 else 1.0


class Crowded(Numbers):
    """One action more than can be numbered."""

    action_space = Discrete(2**15 + 1)


class Uninstalled(Numbers):
    """Lacks what Gymnasium's extra brings."""

    def __init__(self) -> None:
        raise gymnasium.error.DependencyNotInstalled('Slopes is not installed, run `pip install "gymnasium[slopes]"`')


OPENING = (OldReset, Unopened, Unborn, LongToOpen, LongToSeed, LongToMake)
OWN = (Squares, Talking, Unseen, Failing, Growing, Refused, Stuck, Lost, Kept, Doomed, Crowded, Uninstalled)
for kind in (*OPENING, *OWN, Numbers, Brief, NaNReward, InfiniteObservation, HugeReward):
    gymnasium.register(f"{kind.__name__}-v0", f"tests.envs.own_games:{kind.__name__}", disable_env_checker=True)
