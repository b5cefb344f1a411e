"""Atari games against Gymnasium and ale-py, step by step under sticky actions.

Three differences between those references make such a test fail for the wrong reasons:

1. Gymnasium's own environment goes on acting inside a frame skip when the game is over, and so uses up sticky draws that we
   do not: every game of that comparison is seeded. `AtariPreprocessing` stops as we do: one seed lasts for all its games.
2. `AtariVectorEnv` counts a cap from the first frame after the game's start-up; the emulator counts Berzerk's 20 start frames.
3. `AtariVectorEnv` takes all negative seeds for one. Gymnasium hands negative seeds on to the emulator and so do we: only seeds
   that it maps to positive ones are compared with the vector environment.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.wrappers import AtariPreprocessing

from envs.atari import AtariGame, Screen, ale_seeds
from envs.contract import ProtocolOptions, TimeStep
from envs.workers import WorkerEnvs

GAMES = ("Breakout", "Berzerk", "Bowling")
SHORTER = (pytest.param("Breakout", marks=pytest.mark.slow), "Berzerk", "Bowling")  # of what takes long
pytestmark = pytest.mark.filterwarnings("ignore:.*out of date")  # Gymnasium says so of every `-v0`

SEEDS = [seed for seed in range(200) if np.random.SeedSequence(seed).generate_state(2)[1] < 2**31]  # see 3 above


class Step(NamedTuple):
    """What a reference gave."""

    observation: np.ndarray
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    life_lost: bool = False
    frames: int = 0
    is_first: bool = True


class Reference:
    """Plays one Gymnasium environment in the order of the contract: the step after an end opens the next game."""

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> None:
        self.env = env
        self.ale: ale_py.ALEInterface = env.unwrapped.ale
        self.seeds = iter(seeds)
        self.over = True

    def next(self, action: int) -> Step:
        if self.over:
            self.over = False
            return Step(self.look(self.env.reset(seed=next(self.seeds, None))[0]))
        lives, frames = self.ale.lives(), self.ale.getFrameNumber()
        picture, reward, terminated, truncated = self.act(action)
        self.over = terminated or truncated
        passed = self.ale.getFrameNumber() - frames
        return Step(self.look(picture), reward, terminated, truncated, self.ale.lives() < lives, passed, is_first=False)

    def act(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        picture, reward, terminated, truncated, _ = self.env.step(action)
        return picture, float(reward), terminated, truncated

    def look(self, picture: np.ndarray) -> np.ndarray:
        return picture[np.newaxis]


class Shrunk(Reference):
    """The last frame alone, made small."""

    def look(self, picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, (84, 84), interpolation=cv2.INTER_AREA)[np.newaxis]


class Bytes(Reference):
    """RAM as it is."""

    def look(self, picture: np.ndarray) -> np.ndarray:
        return picture


class FrameByFrame(Bytes):
    """An action held for four frames of an environment that skips none, or until the game ends; keeps the frames' pictures."""

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> None:
        super().__init__(env, seeds)
        self.screens: list[np.ndarray] = []

    def act(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        total = 0.0
        self.screens.clear()
        for _ in range(4):
            ram, reward, terminated, truncated, _ = self.env.step(action)
            self.screens.append(self.ale.getScreenRGB())
            total += float(reward)
            if terminated or truncated:
                break
        return ram, total, terminated, truncated


class Vector:
    """ale-py's vector of a game, as steps of its slots."""

    def __init__(self, game: str, seeds: Sequence[int], cap: int) -> None:
        rules = {"repeat_action_probability": 0.25, "noop_max": 0, "use_fire_reset": False, "reward_clipping": False}
        rom = gymnasium.spec(f"ALE/{game}-v5").kwargs["game"]
        self.env = AtariVectorEnv(rom, len(seeds), stack_num=1, max_num_frames_per_episode=cap, num_threads=1, **rules)
        self.seeds: np.ndarray | None = np.array([np.random.SeedSequence(seed).generate_state(2)[1] % 2**31 for seed in seeds])
        self.over = np.ones(len(seeds), bool)
        self.lives = np.zeros(len(seeds), int)
        self.frames = np.zeros(len(seeds), int)

    def next(self, actions: np.ndarray) -> list[Step]:
        first, lives, frames = self.over, self.lives, self.frames
        if self.seeds is not None:
            pictures, info = self.env.reset(seed=self.seeds)
            rewards, terminated, truncated = np.zeros((3, len(actions)))
            self.seeds = None
        else:
            pictures, rewards, terminated, truncated, info = self.env.step(actions)
        self.lives, self.frames = info["lives"].copy(), info["frame_number"].copy()
        self.over = (terminated + truncated).astype(bool)
        lost, passed = (self.lives < lives) & ~first, np.where(first, 0, self.frames - frames)
        return [Step(*fields) for fields in zip(pictures, rewards, terminated, truncated, lost, passed, first, strict=True)]


NO_NUMBERS = np.zeros(0, np.float32)


class Ours:
    """One of our games without a vector, as a reference plays its own."""

    def __init__(self, env_id: str, seeds: Sequence[int], options: ProtocolOptions) -> None:
        self.game = AtariGame(env_id, options)
        self.seeds = iter(seeds)
        self.over = True

    def next(self, action: int) -> Step:
        observation = np.zeros(self.game.description.observation_shape, np.uint8)
        if self.over:
            self.over = False
            self.game.reset(next(self.seeds, None), observation, NO_NUMBERS)
            return Step(observation)
        outcome = self.game.step(action, observation, NO_NUMBERS)
        self.over = outcome.terminated or outcome.truncated
        return Step(observation, *outcome, is_first=False)


def make(env_id: str, obs_type: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(env_id, obs_type=obs_type, disable_env_checker=True, **kwargs)


def preprocessed(game: str, noop_max: int, cap: int, seeds: Sequence[int]) -> Reference:
    env = make(f"ALE/{game}-v5", "grayscale", frameskip=1, max_num_frames_per_episode=cap)
    return Reference(AtariPreprocessing(env, noop_max=noop_max), seeds)


def side_by_side(references: Sequence[Reference]) -> Callable[[np.ndarray], list[Step]]:
    return lambda actions: [reference.next(action) for reference, action in zip(references, actions, strict=True)]


def compare(
    env_id: str, reference: Callable[[np.ndarray], list[Step]], seeds: Sequence[Sequence[int]], steps: int, **kwargs: Any
) -> Counter[str]:
    """Hold a vector of our games against a reference; count what was met on the way."""
    met: Counter[str] = Counter()
    with WorkerEnvs(env_id, len(seeds), **kwargs) as envs:
        actions = np.random.default_rng(7).integers(envs.description.num_actions, size=(steps, envs.num_envs))
        envs.reset(seeds)
        for t in range(steps):
            expected = reference(actions[t - 1])  # ours play at the same time
            for group, slots in enumerate(envs.groups):
                step = envs.recv(group)
                for row, one in enumerate(expected[slots]):
                    assert_same(step_of(step, row), one, f"{env_id}, step {t}, group {group}, row {row}")
                    met.update(events(one))
                envs.send(actions[t, slots], group)
    return met


def compare_one(ours: Ours, reference: Reference, steps: int) -> Counter[str]:
    """Hold one game of ours, played without a vector, against a reference."""
    met: Counter[str] = Counter()
    for t, action in enumerate(np.random.default_rng(7).integers(len(ours.game.description.action_names), size=steps)):
        expected = reference.next(action)
        assert_same(ours.next(action), expected, f"step {t}")
        met.update(events(expected))
    return met


def step_of(step: TimeStep, row: int) -> Step:
    return Step(*(getattr(step, name)[row] for name in Step._fields))


def assert_same(ours: Step, theirs: Step, where: str) -> None:
    assert ours[1:] == theirs[1:], where
    np.testing.assert_array_equal(ours.observation, theirs.observation, where)


def events(step: Step) -> list[str]:
    names = ("terminated", "truncated", "life_lost", "reward")
    return [name for name in names if getattr(step, name)]


@pytest.mark.parametrize("height", [210, 214, 220, 230, 250])  # of games that there are
def test_what_stands_still_is_not_made_small_again(height, monkeypatch):
    """And yet the bits are those of the whole screen made small, wherever rows have changed: none, one, some or all."""
    rng, screen, resize = np.random.default_rng(0), Screen(height, 160), cv2.resize
    band, heights, expected = 5 if height == 210 else height, [], []

    def noted(rows: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        heights.append(len(rows))
        return resize(rows, *args, **kwargs)

    monkeypatch.setattr("envs.atari.cv2.resize", noted)
    for changed in (0, 1, 2, 5, 40, height, 0, 1):
        rows = rng.choice(height, changed, replace=False)
        columns = slice(None) if changed != 1 else rng.integers(160)  # one row changes in one pixel
        screen.pixels[rows, columns] += rng.integers(1, 256, screen.pixels[rows, columns].shape, np.uint8)
        np.testing.assert_array_equal(screen.small(), resize(screen.pixels, (84, 84), interpolation=cv2.INTER_AREA))
        expected += [band * len({row // band for row in rows})] if changed else []
    assert heights == expected


@pytest.mark.parametrize("game", GAMES)
def test_pixels_equal_atari_preprocessing(game):
    """2 x 1,000 steps with no-op starts, to the games' own ends; one seed lasts for all games of a slot."""
    seeds = [SEEDS[0:1], SEEDS[1:2]]
    references = [preprocessed(game, 30, 108_000, slot_seeds) for slot_seeds in seeds]
    met = compare(f"ALE/{game}-v5", side_by_side(references), seeds, 1_000, num_groups=2)
    assert game == "Bowling" or (met["terminated"] >= 2 and met["life_lost"] > met["terminated"] and met["reward"])


@pytest.mark.parametrize("game", SHORTER)
def test_cut_off_pixels_equal_atari_preprocessing(game):
    """2 x 1,000 steps without no-op starts, cut off after 500 frames: no game of Bowling ends sooner."""
    seeds = [SEEDS[2:3], SEEDS[3:4]]
    references = [preprocessed(game, 0, 500, slot_seeds) for slot_seeds in seeds]
    options = ProtocolOptions(noop_max=0, max_episode_frames=500)
    met = compare(f"{game}NoFrameskip-v0", side_by_side(references), seeds, 1_000, options=options)
    assert met["truncated"] >= 5


@pytest.mark.parametrize(("game", "cap", "start_frames"), [("Breakout", 700, 0), ("Berzerk", 700, 20), ("Bowling", 500, 0)])
def test_pixels_equal_the_vector_env(game, cap, start_frames):
    """3 x 700 steps, to ends and cut off; the emulator counts the start frames, and so our cap has to."""
    options = ProtocolOptions(noop_max=0, max_episode_frames=cap + start_frames)
    seeds = SEEDS[4:7]
    theirs = Vector(game, seeds, cap)
    met = compare(f"ALE/{game}-v5", theirs.next, [[seed] for seed in seeds], 700, options=options, num_groups=3)
    assert met["truncated"] >= 3
    assert game == "Bowling" or met["terminated"]


@pytest.mark.parametrize("game", SHORTER)
def test_drawn_skip_equals_the_registered_environment(game):
    """2 x 1,000 steps of pixels: the step's last frame alone; each game with its own seed."""
    seeds = [SEEDS[10:50], SEEDS[50:90]]
    references = [Shrunk(make(f"{game}-v0", "grayscale"), slot_seeds) for slot_seeds in seeds]
    met = compare(f"{game}-v0", side_by_side(references), seeds, 1_000, num_groups=2)
    assert game == "Bowling" or (met["terminated"] >= 2 and met["reward"])


@pytest.mark.parametrize(
    ("game", "steps"), [pytest.param("Breakout", 2_000, marks=pytest.mark.slow), ("Berzerk", 2_000), ("Bowling", 3_000)]
)
def test_ram_with_drawn_skip_equals_the_registered_environment(game, steps):
    """To the end of the game, in Bowling too; each game with its own seed."""
    env = make(f"{game}-v0", "ram")
    seeds = list(range(60))
    assert not set(seeds[:2]) <= set(SEEDS)  # a negative one is among the first
    met = compare_one(Ours(f"{game}-ram-v0", seeds, ProtocolOptions()), Bytes(env, seeds), steps)
    assert met["terminated"] and met["reward"]


@pytest.mark.parametrize(("game", "steps"), [("Breakout", 2_000), ("Berzerk", 2_000), ("Bowling", 2_300)])
def test_ram_equals_frame_by_frame(game, steps):
    """To the end of the game, in Bowling too; one seed lasts for all games."""
    ours = Ours(f"ALE/{game}-ram-v5", SEEDS[8:9], ProtocolOptions(noop_max=0))
    met = compare_one(ours, FrameByFrame(make(f"ALE/{game}-v5", "ram", frameskip=1), SEEDS[8:9]), steps)
    assert met["terminated"] and met["reward"]


def test_recorded_frames_are_every_emulator_frame():
    """With an end inside a step in between."""
    ours = Ours("ALE/Breakout-v5", SEEDS[9:10], ProtocolOptions(noop_max=0))
    ours.game.record()
    reference = FrameByFrame(make("ALE/Breakout-v5", "grayscale", frameskip=1), SEEDS[9:10])
    shown = []
    for action in np.random.default_rng(7).integers(4, size=300):
        reference.next(action)
        frames = 0 if (step := ours.next(action)).is_first else step.frames
        screens = reference.screens if frames else []
        assert len(ours.game.last_frames()) == frames
        np.testing.assert_array_equal(ours.game.last_frames(), screens)
        shown.append(frames)
    assert set(shown) > {0, 4}


@pytest.mark.parametrize("game", GAMES)
def test_cut_off_ram_equals_frame_by_frame(game):
    env = make(f"ALE/{game}-v5", "ram", frameskip=1, max_num_frames_per_episode=500)
    ours = Ours(f"{game}-ramNoFrameskip-v0", SEEDS[9:10], ProtocolOptions(noop_max=0, max_episode_frames=500))
    met = compare_one(ours, FrameByFrame(env, SEEDS[9:10]), 1_000)
    assert met["truncated"] >= 5


def test_all_actions_and_no_sticky_actions():
    env = make("Berzerk-v4", "ram", full_action_space=True)
    options = ProtocolOptions(full_action_space=True)
    met = compare_one(Ours("Berzerk-ram-v4", SEEDS[:60], options), Bytes(env, SEEDS[:60]), 600)
    assert met["terminated"] and met["reward"]


def test_seeds_are_those_of_gymnasium():
    env = make("Breakout-v0", "ram")
    for seed in range(3):
        assert env.reset(seed=seed)[1]["seeds"] == tuple(np.random.SeedSequence(seed).generate_state(2))
    for seed in range(200):
        beside, emulator = np.random.SeedSequence(seed).generate_state(2)
        assert ale_seeds(seed) == (beside, np.int32(emulator))


def test_first_registered_ids_end_after_ten_thousand_steps():
    ours = Ours("Bowling-ram-v0", [1], ProtocolOptions(frame_skip=(1, 1)))  # with a short skip, NOOP alone lasts as long
    cut = [t for t in range(20_003) if ours.next(0).truncated]
    assert cut == [10_000, 20_001]  # the opening of a game is no step of it
