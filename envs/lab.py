"""DeepMind Lab: 3D worlds in a first-person view, by the engine's module `deepmind_lab`, which the user installs.

`dmlab/<level>` plays any level of the engine under its own name, `dmlab30/<task>` one of the thirty tasks of
`envs/lab_tasks.py` with the training and held-out versions that IMPALA used, and `dmlab30/all` spreads a run's slots over them.

What the engine leaves to its user and is done here:

1. Time-outs and task ends look the same, so the frames that are left are read before each step.
2. Nothing can be seen after the end, so the last picture is shown again.
3. A second `reset` with one seed gives other pixels, so a seeded game gets an engine of its own.
4. Maps are compiled for seconds when they are first played, so they are kept on disk for every worker and run.
"""

import contextlib
import difflib
import hashlib
import importlib
import math
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.contract import (
    VOCABULARY,
    GameDescription,
    GameLost,
    GameProtocol,
    InputError,
    Outcome,
    ProtocolOptions,
    refuse_options,
)
from envs.lab_tasks import BY_ID, TASKS
from envs.quiet import quiet

FLAGS = ("image_size", "frame_skip", "lab_actions")  # that change the rules
SIZE = (72, 96)  # pixels, height and width
FRAMES_PER_SECOND = 60.0
NUM_WORDS = 16  # of an instruction; what is longer is cut
# Mixed by the engine into each game's seed: the same seed makes another map than in training (0). IMPALA's evaluation used it.
HELD_OUT_MIXER_SEED = 0x600D5EED
MISSING = (
    "the module deepmind_lab is not installed; build it with Bazel as its repository google-deepmind/lab says,"
    " or with `dmlab-gym build` of the package dmlab-gym (Python 3.13 and later), and install the wheel"
)
_PICTURE, _TIME_LEFT, _WORDS = "RGB_INTERLEAVED", "FRAMES_REMAINING_AT_60", "INSTR"
# Levels of the engine beside DMLab-30, to name the nearest.
_LEVELS = (
    "lt_chasm",
    "lt_hallway_slope",
    "lt_horseshoe_color",
    "lt_space_bounce_hard",
    *(f"nav_maze_{kind}_0{number}" for kind in ("random_goal", "static") for number in (1, 2, 3)),
    "seekavoid_arena_01",
    "stairway_to_melon",
)

_CONTROLS = (
    "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME",
    "LOOK_DOWN_UP_PIXELS_PER_FRAME",
    "STRAFE_LEFT_RIGHT",
    "MOVE_BACK_FORWARD",
    "FIRE",
    "JUMP",
    "CROUCH",
)
_MOVES = {
    "forward": (0, 0, 0, 1, 0, 0, 0),
    "back": (0, 0, 0, -1, 0, 0, 0),
    "strafe left": (0, 0, -1, 0, 0, 0, 0),
    "strafe right": (0, 0, 1, 0, 0, 0, 0),
}
ACTIONS = {
    9: {  # IMPALA
        **_MOVES,
        "look left": (-20, 0, 0, 0, 0, 0, 0),
        "look right": (20, 0, 0, 0, 0, 0, 0),
        "forward and left": (-20, 0, 0, 1, 0, 0, 0),
        "forward and right": (20, 0, 0, 1, 0, 0, 0),
        "fire": (0, 0, 0, 0, 1, 0, 0),
    },
    15: {  # PopArt and R2D2
        **_MOVES,
        "look left": (-10, 0, 0, 0, 0, 0, 0),
        "look right": (10, 0, 0, 0, 0, 0, 0),
        "look far left": (-60, 0, 0, 0, 0, 0, 0),
        "look far right": (60, 0, 0, 0, 0, 0, 0),
        "look up": (0, 10, 0, 0, 0, 0, 0),
        "look down": (0, -10, 0, 0, 0, 0, 0),
        "forward and left": (-10, 0, 0, 1, 0, 0, 0),
        "forward and right": (10, 0, 0, 1, 0, 0, 0),
        "forward and far left": (-60, 0, 0, 1, 0, 0, 0),
        "forward and far right": (60, 0, 0, 1, 0, 0, 0),
        "fire": (0, 0, 0, 0, 1, 0, 0),
    },
}


def ids() -> list[str]:
    """Ids of DMLab-30 and of the engine's own levels; any other level can be played as well."""
    return ["dmlab30/all", *(f"dmlab30/{task.name}" for task in TASKS), *(f"dmlab/{level}" for level in _LEVELS)]


def knows(env_id: str) -> bool:
    """Whether an id is of this family; that a level of this name exists only the engine can tell."""
    family, _, name = env_id.partition("/")
    return (family == "dmlab" and name != "") or env_id == "dmlab30/all" or env_id in BY_ID


def level_of(env_id: str, *, held_out: bool) -> str:
    """The engine's level that an id stands for; `dmlab30/all` is described by its first task."""
    family, _, name = env_id.partition("/")
    if family == "dmlab":
        return name
    task = TASKS[0] if name == "all" else BY_ID[env_id]
    return task.test_level if held_out else task.train_level


def word_ids(instruction: str) -> list[int]:
    """The words of an instruction as `NUM_WORDS` numbers from 1 to `VOCABULARY` - 1; 0 is no word."""
    words = instruction.lower().split()[:NUM_WORDS]
    return [zlib.crc32(word.encode()) % (VOCABULARY - 1) + 1 for word in words] + [0] * (NUM_WORDS - len(words))


def _rules(env_id: str, options: ProtocolOptions) -> ProtocolOptions:
    """The flags with their defaults filled in.

    Raises:
        InputError: a flag that this family does not have, or a value that the engine cannot take.
    """
    refuse_options(env_id, options, FLAGS)
    size, skip = options.image_size or SIZE, options.frame_skip or (4, 4)
    if any(side % 4 or side <= 0 for side in size):
        raise InputError(f"{env_id}: --image-size {size[0]}x{size[1]}: height and width have to be multiples of 4, as in 72x96")
    if skip[0] != skip[1]:
        raise InputError(f"{env_id}: --frame-skip {skip[0]}-{skip[1]}: DeepMind Lab takes one number, as in 4")
    return ProtocolOptions(image_size=size, frame_skip=skip, lab_actions=options.lab_actions or 9, held_out=options.held_out)


def _config(env_id: str, level: str, rules: ProtocolOptions) -> dict[str, str]:
    """The engine's settings; it takes text only."""
    assert rules.image_size is not None
    height, width = rules.image_size
    config = {"width": str(width), "height": str(height), "logLevel": "NEVER"}  # its log would go to stdout
    if env_id.startswith("dmlab30/"):
        config["mixerSeed"] = str(HELD_OUT_MIXER_SEED if rules.held_out else 0)
    if rules.held_out or level.endswith("_test"):
        config["allowHoldOutLevels"] = "true"
    if "psychlab" in level:
        config["datasetPath"] = _dataset()
    return config


def _dataset() -> str:
    """Folder of the photographs that some psychlab tasks show; coloured patches take their place without."""
    return os.environ.get("PLAYFIELD_LAB_DATASET") or "dummy"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _nearest(level: str) -> str:
    """Ids that a level's name may have been meant for."""
    by_name = {known.rpartition("/")[2]: known for known in ids()}
    matches = difflib.get_close_matches(level.rpartition("/")[2].lower(), by_name, n=3, cutoff=0.5)
    return f"nearest: {', '.join(by_name[match] for match in matches)}" if matches else "no level known here comes near it"


class LevelCache:
    """Compiled maps on disk, shared by every process; the engine calls `fetch` and `write`.

    A cache that cannot be read or written costs time and nothing else, so its errors end here.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Keep the maps in `folder`, or where the user keeps caches."""
        root = Path(os.environ.get("PLAYFIELD_CACHE") or "~/.cache/playfield").expanduser()
        self._folder = folder or root / "lab"

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.pk3"  # a key may hold what a file's name cannot

    def fetch(self, key: str, pk3_path: str) -> bool:
        """Copy a map to where the engine wants it; False where it is not known."""
        try:
            shutil.copyfile(self._path(key), pk3_path)
        except OSError:
            with contextlib.suppress(OSError):
                Path(pk3_path).unlink(missing_ok=True)  # half a map must not be played
            return False
        return True

    def write(self, key: str, pk3_path: str) -> None:
        """Keep a map. It appears under its name as a whole, so readers and other writers need no lock."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
            os.close(handle)
            try:
                shutil.copyfile(pk3_path, name)
                os.replace(name, self._path(key))
            finally:
                Path(name).unlink(missing_ok=True)


class LabGame:
    """One level of DeepMind Lab."""

    flags = FLAGS
    own_engine = False

    @staticmethod
    def options_of(_env_id: str) -> ProtocolOptions:
        """What the flags are where they are not given."""
        return ProtocolOptions(image_size=SIZE, frame_skip=(4, 4), lab_actions=9)

    def __init__(self, env_id: str, options: ProtocolOptions) -> None:
        """Ask the engine what the level is like.

        Raises:
            InputError: no such level, the module is missing, or a flag that does not fit.
        """
        rules = _rules(env_id, options)
        assert rules.frame_skip is not None
        self._skip = rules.frame_skip[0]
        self._level = level_of(env_id, held_out=rules.held_out)
        self._config = _config(env_id, self._level, rules)
        self._module = _engine_module(env_id)
        self._wanted = [_PICTURE]
        self._lab: Any = None
        spec, controls = self._look(env_id)
        has_words = env_id.startswith("dmlab30/") or _WORDS in spec
        self._wanted += [name for name in (_TIME_LEFT, _WORDS) if name in spec]
        moves = ACTIONS[rules.lab_actions or 9]
        self._actions = _action_vectors(list(moves.values()), controls)
        self.description = _description(
            env_id, self._level, rules, tuple(moves), has_words, _backend(self._module, self._config)
        )
        self._generator = np.random.default_rng(0)
        self._recording = False
        self._frames: list[NDArray[np.uint8]] = []

    def _look(self, env_id: str) -> tuple[set[str], list[str]]:
        """Names of what can be observed and of the controls, in the engine's order."""
        try:
            lab = self._build()
        except RuntimeError as error:
            raise InputError(
                f"{env_id}: DeepMind Lab cannot play this level ({_one_line(error)}); {_nearest(self._level)}"
            ) from error
        with quiet(2):  # it warns there of two names in its list, for each game
            spec = lab.observation_spec()
        controls = lab.action_spec()
        lab.close()
        return {entry["name"] for entry in spec}, [entry["name"] for entry in controls]

    def _build(self) -> Any:
        return self._module.Lab(self._level, list(self._wanted), config=dict(self._config), level_cache=LevelCache())

    def reset(self, seed: int | None, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        """Open a game; with a seed in a fresh engine, else with the next seed drawn after the last one given."""
        try:
            if seed is not None or self._lab is None:
                self.close()
                self._lab = self._build()
            if seed is not None:
                self._generator = np.random.default_rng(seed)
            self._lab.reset(seed=int(self._generator.integers(2**31)) if seed is None else int(seed))
            self._frames.clear()
            self._look_around()
        except RuntimeError as error:
            raise GameLost(f"DeepMind Lab could not open {self._level}: {_one_line(error)}") from error
        # A level without a limit counts zero frames left from its beginning.
        self._timed = self._frames_left > 0
        self._show(observation, extra)

    def _look_around(self) -> None:
        seen = self._lab.observations()
        self._picture: NDArray[np.uint8] = seen[_PICTURE]  # (H, W, 3)
        self._frames_left = float(seen[_TIME_LEFT][0]) if _TIME_LEFT in seen else 0.0
        self._words = word_ids(seen.get(_WORDS) or "")

    def _show(self, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        observation[...] = np.moveaxis(self._picture, -1, 0)
        if self.description.num_tokens:
            extra[-NUM_WORDS:] = self._words

    def step(self, action: int, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> Outcome:
        """Hold one action for the step's frames, or until the game ends.

        Raises:
            GameLost: the engine failed.
        """
        frames_left = self._frames_left
        self._frames.clear()
        try:
            reward, frames = (self._play_each if self._recording else self._play_at_once)(self._actions[action])
            over = not self._lab.is_running()
        except (RuntimeError, ValueError) as error:  # a ValueError is how the module reports a script's failure inside a step
            raise GameLost(f"DeepMind Lab failed in {self._level}: {_one_line(error)}") from error
        self._show(observation, extra)
        # Half a frame: its clock is a fraction of a second.
        timeout = over and self._timed and frames_left <= self._skip + 0.5
        if timeout and not self._recording:
            frames = max(1, min(self._skip, math.ceil(frames_left - 0.5)))
        return Outcome(reward, over and not timeout, timeout, False, frames)

    def _play_at_once(self, controls: NDArray[np.intc]) -> tuple[float, int]:
        """Reward and frames of a step. How many frames a step had that the task's end cut short, the engine does not say."""
        reward = self._lab.step(controls, num_steps=self._skip)
        if self._lab.is_running():
            self._look_around()
        return float(reward), self._skip

    def _play_each(self, controls: NDArray[np.intc]) -> tuple[float, int]:
        """Reward and frames of a step, keeping the picture of each frame."""
        reward = 0.0
        while len(self._frames) < self._skip and self._lab.is_running():
            reward += self._lab.step(controls, num_steps=1)
            if self._lab.is_running():
                self._look_around()
            self._frames.append(self._picture)  # that before it again for the frame with which a game ends
        return reward, len(self._frames)

    def record(self) -> None:
        """Keep every frame of a step from now on."""
        self._recording = True

    def last_frames(self) -> list[NDArray[np.uint8]]:
        """The frames of the last step, each (H, W, 3) RGB; none right after a reset."""
        return self._frames

    def close(self) -> None:
        """Shut the engine down; its temporary folder goes with it."""
        if self._lab is not None:
            self._lab.close()
            self._lab = None


def _engine_module(env_id: str) -> Any:
    """The engine's module.

    Raises:
        InputError: it is not installed, or something that it imports is missing.
    """
    try:
        return importlib.import_module("deepmind_lab")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "deepmind_lab":
            raise InputError(f"{env_id}: {MISSING}") from error
        raise InputError(f"{env_id}: the module deepmind_lab is installed and does not start ({_one_line(error)})") from error


def _action_vectors(moves: list[tuple[int, ...]], controls: list[str]) -> list[NDArray[np.intc]]:
    """Each move as the engine's vector: one C int a control, (controls,); controls that no move uses stay at rest."""
    vectors = []
    for move in moves:
        values = dict(zip(_CONTROLS, move, strict=True))
        vectors.append(np.array([values.get(name, 0) for name in controls], np.intc))
    return vectors


def _backend(module: Any, config: dict[str, str]) -> str:
    version = f"deepmind_lab {module.version()}" if hasattr(module, "version") else "deepmind_lab"
    dataset = config.get("datasetPath")
    return version if dataset is None else f"{version}, pictures: {Path(dataset).name}"


def _description(
    env_id: str, level: str, rules: ProtocolOptions, actions: tuple[str, ...], has_words: bool, backend: str
) -> GameDescription:
    assert rules.image_size is not None and rules.frame_skip is not None
    num_tokens = NUM_WORDS if has_words else 0
    protocol = GameProtocol(
        env=env_id,
        observation="pixels",
        size=(3, *rules.image_size),
        colour="rgb",
        frame_skip=rules.frame_skip,
        max_pool=False,
        sticky=0.0,
        action_set="discrete",
        noop_max=0,
        fire_reset=False,
        episode_end="environment",
        max_episode_frames=None,
        max_episode_steps=None,
        mode=None,
        difficulty=None,
        rom_md5=None,
        backend=backend,
        extra=tuple(f"word {number}" for number in range(1, num_tokens + 1)),
        level=None if env_id.startswith("dmlab/") else level,
    )
    return GameDescription(
        protocol=protocol,
        observation_shape=protocol.size,
        observation_dtype="uint8",
        extra_size=num_tokens,
        num_tokens=num_tokens,
        action_names=actions,
        screen_shape=(*rules.image_size, 3),
        frames_per_second=FRAMES_PER_SECOND,
    )
