"""A stand-in for the module `deepmind_lab` that is as strict as the engine and draws nothing but patterns.

Every rule of the real module that an adapter can break is enforced, in the engine's words where they are known: types of
arguments, when what may be called, what is misread in silence (an error here). A second `reset` with the same seed gives other
pixels, and without a seed the game is any. Each engine has a folder under TEST_TMPDIR, or else TMPDIR, which goes when it is
closed.

Levels are those of `LEVELS`: two seconds long where they have a limit.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TASK_LEVELS = """
rooms_collect_good_objects_train rooms_collect_good_objects_test rooms_exploit_deferred_effects_train
rooms_exploit_deferred_effects_test rooms_select_nonmatching_object rooms_watermaze rooms_keys_doors_puzzle
language_select_described_object language_select_located_object language_execute_random_task
language_answer_quantitative_question lasertag_one_opponent_small lasertag_three_opponents_small lasertag_one_opponent_large
lasertag_three_opponents_large natlab_fixed_large_map natlab_varying_map_regrowth natlab_varying_map_randomized
skymaze_irreversible_path_hard skymaze_irreversible_path_varied psychlab_arbitrary_visuomotor_mapping
psychlab_continuous_recognition psychlab_sequential_comparison psychlab_visual_search explore_object_locations_small
explore_object_locations_large explore_obstructed_goals_small explore_obstructed_goals_large explore_goal_locations_small
explore_goal_locations_large explore_object_rewards_few explore_object_rewards_many
"""
SETTINGS = {"width", "height", "fps", "logLevel", "mixerSeed", "allowHoldOutLevels", "datasetPath"}
HELD_OUT = ("rooms_collect_good_objects_test", "rooms_exploit_deferred_effects_test")


class Level(NamedTuple):
    """What a level of the stand-in is like."""

    seconds: int | None = 2  # its limit
    task_ends: tuple[int, int] | None = None  # frames, from and below, at which the task ends; drawn by the seed
    plain: bool = False  # has neither INSTR nor a clock in its specification
    compiled: bool = True  # whether its maps are made, and kept in the cache
    breaks: str | None = None  # how the tenth frame fails
    gadgets: bool = False  # two controls more


LEVELS = {
    **{f"contributed/dmlab30/{name}": Level() for name in TASK_LEVELS.split()},
    "lt_chasm": Level(task_ends=(20, 220), compiled=False),  # half of its games end, half run out of time
    "seekavoid_arena_01": Level(),
    "stairway_to_melon": Level(task_ends=(101, 102)),
    "tests/no_limit": Level(seconds=None, task_ends=(10, 60)),
    "tests/plain": Level(seconds=None, task_ends=(10, 60), plain=True, compiled=False),
    "tests/script_error": Level(breaks="ValueError"),
    "tests/engine_abort": Level(breaks="abort"),
    "tests/gadgets": Level(gadgets=True),
}

_CONTROLS = (
    ("LOOK_LEFT_RIGHT_PIXELS_PER_FRAME", -512, 512),
    ("LOOK_DOWN_UP_PIXELS_PER_FRAME", -512, 512),
    ("STRAFE_LEFT_RIGHT", -1, 1),
    ("MOVE_BACK_FORWARD", -1, 1),
    ("FIRE", 0, 1),
    ("JUMP", 0, 1),
    ("CROUCH", 0, 1),
)
_GADGETS = (("SELECT_GADGET", 0, 10), ("SWITCH_GADGET", -1, 1))


def version() -> str:
    return "1.0"


class Lab:
    """The engine's one class."""

    def __init__(
        self,
        level: str,
        observations: list[str],
        config: dict[str, str] = {},  # noqa: B006 - as in the real signature, which refuses None
        renderer: str = "software",
        level_cache: Any = None,
        temp_folder: str = "",
    ) -> None:
        self._status = "closed"
        if not isinstance(level, str) or not isinstance(observations, list) or not isinstance(config, dict):
            raise TypeError("level must be str, observations a list, config a dict")
        if not isinstance(renderer, str) or not isinstance(temp_folder, str):
            raise TypeError("renderer and temp_folder must be str")
        if any(type(text) is not str for pair in config.items() for text in pair):
            raise TypeError("bad argument type for built-in operation")
        if renderer not in ("hardware", "software"):
            raise RuntimeError(f'Failed to set renderer must be "hardware" or "software" actual "{renderer}"!')
        self._quiet = config.get("logLevel") in ("WARN", "NEVER")
        self._say(f"DeepMind Lab stand-in, level {level}")
        self._check_level(level, config)
        self._level, self._cache = LEVELS[level], level_cache
        self._name = level + config.get("mixerSeed", "0") + config.get("datasetPath", "")
        self._height, self._width = int(config.get("height", "240")), int(config.get("width", "320"))
        known = [entry["name"] for entry in self._spec()]
        for name in observations:
            if type(name) is not str:
                raise TypeError("bad argument type for built-in operation")
            if name not in known:
                raise ValueError(f"Unknown observation '{name}'.")
        self._wanted = list(observations)
        self._episode = self._resets = 0
        self._folder = Path(tempfile.mkdtemp(prefix="dmlab_temp_folder_", dir=temp_folder or os.environ.get("TEST_TMPDIR")))
        self._status = "initialised"

    def __init_subclass__(cls) -> None:
        raise TypeError("type 'deepmind_lab.Lab' is not an acceptable base type")

    def _check_level(self, level: str, config: dict[str, str]) -> None:
        if level not in LEVELS:
            raise RuntimeError(f'Failed to init environment - "Level not found: Failed to open file:\n {level}"')
        if level.rpartition("/")[2] in HELD_OUT and config.get("allowHoldOutLevels") != "true":
            raise RuntimeError('Failed to init environment - "This level must only be used during evaluation"')
        if unknown := config.keys() - SETTINGS:
            raise RuntimeError(f"Invalid setting {unknown}")
        if config.get("logLevel", "WARN") not in ("NEVER", "ERROR", "WARN"):
            raise RuntimeError("Invalid logLevel")
        for name in ("width", "height"):
            if not config.get(name, "240").isdecimal() or int(config.get(name, "240")) % 4 or config.get(name) == "0":
                raise RuntimeError(f"Failed to apply setting '{name} = {config[name]}'")
        if not config.get("mixerSeed", "0").isdecimal() or config.get("allowHoldOutLevels", "true") not in ("true", "false"):
            raise RuntimeError("Failed to apply setting")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)

    def _require_open(self) -> None:
        if self._status == "closed":
            raise RuntimeError("the real module crashes here: the environment is closed")

    def _spec(self) -> list[dict[str, Any]]:
        spec = [
            {"name": "RGB_INTERLEAVED", "dtype": np.uint8, "shape": (self._height, self._width, 3)},
            {"name": "RGB", "dtype": np.uint8, "shape": (3, self._height, self._width)},
        ]
        more = [
            {"name": "FRAMES_REMAINING_AT_60", "dtype": np.float64, "shape": (1,)},
            {"name": "INSTR", "dtype": str, "shape": ()},
        ]
        return spec if self._level.plain else spec + more

    def observation_spec(self) -> list[dict[str, Any]]:
        self._require_open()
        for name in ("RGB_INTERLACED", "RGBD_INTERLACED"):  # which the engine lists as well
            os.write(2, f"Using deprecated observation format: '{name}'\n".encode())
        return self._spec()

    def action_spec(self) -> list[dict[str, Any]]:
        self._require_open()
        controls = [*_CONTROLS, *_GADGETS] if self._level.gadgets else _CONTROLS
        return [{"name": name, "min": low, "max": high} for name, low, high in controls]

    def reset(self, episode: int = -1, seed: int | None = None) -> bool:
        if not isinstance(episode, int):
            raise TypeError("an integer is required")
        if seed is not None and not isinstance(seed, int):
            raise ValueError(f"'seed' must be int or None, was '{type(seed).__name__}'.")
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise OverflowError("Python int too large to convert to C long")
        self._require_open()
        self._episode = episode if episode >= 0 else self._episode
        seed = int.from_bytes(os.urandom(3)) if seed is None else seed % 2**31
        layout = np.random.default_rng([seed, *self._name.encode(), self._episode])
        self._load_map(f"{self._name} {seed}")
        self._end = int(layout.integers(*self._level.task_ends)) if self._level.task_ends else None
        self._instruction = f"Get {('the', 'any')[layout.integers(2)]} object {layout.integers(10)}" if self._speaks() else ""
        self._texture = layout.integers(1, 200, (self._height, self._width, 3), np.uint8)
        self._noise = self._resets % 50  # pixels beyond the first reset are not those of a fresh engine
        self._resets += 1
        self._episode += 1
        self._frame = self._asked = self._way = 0
        self._status = "running"
        self._say(f"seed {seed}")
        return True

    def _speaks(self) -> bool:
        return "language" in self._name

    def _load_map(self, name: str) -> None:
        if self._cache is None or not self._level.compiled:
            return
        key, content = hashlib.md5(name.encode()).hexdigest(), name.encode() * 100
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "map.pk3")
            if self._cache.fetch(key, str(path)):
                if path.read_bytes() != content:
                    raise RuntimeError("Failed to start environment - the cache gave another map")
            else:
                path.write_bytes(content)
                self._cache.write(key, str(path))

    def is_running(self) -> bool:
        return self._status == "running"

    def num_steps(self) -> int:
        return self._asked

    def _frames_left(self) -> float:
        return 0.0 if self._level.seconds is None else 60.0 * self._level.seconds - self._frame

    def step(self, action: np.ndarray, num_steps: int = 1) -> float:
        if not isinstance(action, np.ndarray) or type(num_steps) is not int:
            raise TypeError("action must be numpy.ndarray, num_steps int")
        if self._status != "running":
            raise RuntimeError("Environment in wrong status to advance.")
        controls = len(self.action_spec())
        if action.shape != (controls,):
            raise ValueError(f"action must have shape ({controls})")
        if action.dtype != np.intc:
            raise ValueError("action must have dtype np.intc")
        if not action.flags.c_contiguous:
            raise AssertionError("the real module reads other numbers: action is not contiguous")
        self._asked += num_steps
        reward = 0.0
        for _ in range(num_steps):
            reward += self._advance([int(value) for value in action])
            if self._status != "running":
                break
        return reward

    def _advance(self, action: list[int]) -> float:
        self._frame += 1
        if self._level.breaks and self._frame == 10:
            if self._level.breaks == "abort":
                os.abort()
            self._status = "error"
            raise ValueError('Failed to advance environment "script error:\n attempt to index a nil value"')
        self._way = (self._way * 3 + sum((at + 1) * value for at, value in enumerate(action))) % 50_021
        if self._frame == self._end or (self._level.seconds is not None and self._frames_left() <= 0):
            self._status = "terminated"
        return (0.5 if action[3] > 0 and self._frame % 3 == 0 else 0.0) - 0.25 * action[4]

    def observations(self) -> dict[str, Any]:
        if self._status != "running":
            raise RuntimeError("Environment in wrong status for call to observations()")
        picture = np.roll(self._texture, self._way, axis=1) + np.uint8(self._noise)
        picture[0, 0] = (self._frame % 256, self._way % 256, 1)
        everything = {
            "RGB_INTERLEAVED": picture,
            "RGB": np.ascontiguousarray(np.moveaxis(picture, -1, 0)),
            "FRAMES_REMAINING_AT_60": np.array([self._frames_left()]),
            "INSTR": self._instruction,
        }
        return {name: everything[name] for name in self._wanted}

    def close(self) -> bool:
        was_open, self._status = self._status != "closed", "closed"
        if was_open:
            shutil.rmtree(self._folder)
        return was_open
