"""Doom's scenarios and maps through ViZDoom's Gymnasium wrapper, seen as small colour pictures.

Rewards and ends are those of `gymnasium.make(id, frame_skip=4, max_buttons_pressed=1, screen_resolution=RES_160X120)`, and
pictures are its screens made small. What differs from the wrapper:

1. The last observation of an episode is the last screen that the engine drew (the wrapper hands out zeros).
2. An end by timeout is `truncated` alone (the wrapper says `terminated` too).
3. Where a scenario has mouse-like buttons beside keys, these stay at zero and the keys are played.
4. Buffers that nothing here looks at (depth, labels, map, sound, messages) are off, and the mode is always that of a player.

The engine is a process of its own that talks to this one through shared memory.
"""

import contextlib
import copy
import difflib
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete
from numpy.typing import NDArray

from envs.contract import (
    GameDescription,
    GameLost,
    GameProtocol,
    InputError,
    Outcome,
    ProtocolOptions,
    by_our_pip,
    refuse_options,
)
from envs.quiet import quiet

FILE_PREFIX = "doom/"  # of ids that name a scenario's file
IMAGE_SIZE = (72, 128)  # height and width in pixels
FRAME_SKIP = (4, 4)
FRAMES_PER_SECOND = 35.0
SCREENS = ((120, 160), (240, 320), (480, 640))  # heights and widths that the engine can draw, in pixels
_FREE_DATA = ("freedoom1.wad", "freedoom2.wad")  # which ViZDoom brings
_UNSEEN = ("depth", "labels", "automap", "audio", "notifications")


def _vizdoom() -> Any:
    """The package, its ids registered.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # the wrapper imports pygame, which greets on stdout
    try:
        import vizdoom.gymnasium_wrapper
    except ImportError as error:
        raise InputError(by_our_pip(f"Doom needs ViZDoom ({' '.join(str(error).split())}): pip install vizdoom")) from error
    return vizdoom


def ids() -> list[str]:
    """Every id that ViZDoom registers.

    Raises:
        InputError: ViZDoom is not installed.
    """
    _vizdoom()
    return sorted(name for name in gymnasium.registry if name.startswith("Vizdoom"))


def config_file(env_id: str) -> Path:
    """The file that `doom/<file.cfg>` names: the user's own, or else one of ViZDoom's.

    Raises:
        InputError: there is no such file, or ViZDoom is not installed.
    """
    name = env_id.removeprefix(FILE_PREFIX)
    folder = Path(_vizdoom().scenarios_path)
    for path in (Path(name), folder / name):
        if path.is_file():
            return path.absolute()  # the engine starts in another folder
    near = difflib.get_close_matches(name, sorted(file.name for file in folder.glob("*.cfg")), n=3, cutoff=0.5)
    raise InputError(f"{env_id}: no file {name}; ViZDoom's own near it: {', '.join(near) or 'none'}")


class DoomGame:
    """One scenario or map."""

    flags = ("frame_skip", "image_size", "game_variables")
    own_engine = True

    @staticmethod
    def options_of(_env_id: str) -> ProtocolOptions:
        """What the flags are for an id where they are not given."""
        return ProtocolOptions(frame_skip=FRAME_SKIP, image_size=IMAGE_SIZE)

    def __init__(self, env_id: str, options: ProtocolOptions) -> None:
        """Start an engine.

        Raises:
            InputError: no such scenario, actions without keys, a flag that Doom does not have, or a frame skip that is drawn.
            GameLost: the engine did not start.
        """
        refuse_options(env_id, options, self.flags)
        fewest, most = options.frame_skip or FRAME_SKIP
        if fewest != most:
            raise InputError(f"{env_id}: --frame-skip {fewest}-{most} is drawn at each step; Doom takes one number, as in 4")
        self._id, self._size = env_id, options.image_size or IMAGE_SIZE
        self._env, self._skip = self._engine(most), most
        game = self._env.game
        mouse = [0.0] * self._env.num_delta_buttons  # these come first
        self._presses = [mouse + [float(down) for down in keys] for keys in self._env.button_map]
        self._variables = np.zeros(len(game.get_available_game_variables()) if options.game_variables else 0, np.float32)
        if options.game_variables and not self._variables.size:
            raise InputError(f"{env_id}: --game-variables, but this scenario shows none; leave the flag out")
        self.description = self._describe(most, options)
        self._screen = np.zeros((game.get_screen_height(), game.get_screen_width(), 3), np.uint8)
        self._small = np.zeros((*self._size, 3), np.uint8)
        shrinks = max(self._screen.shape[0] / self._size[0], self._screen.shape[1] / self._size[1])
        # Below two, bilinear misses no pixel and is five times as fast.
        self._interpolation = cv2.INTER_AREA if shrinks >= 2 else cv2.INTER_LINEAR
        self._time = 0  # tics of the episode, those before the agent's first included
        self._twin: Any = None
        self._frames: list[NDArray[np.uint8]] = []

    def _describe(self, skip: int, options: ProtocolOptions) -> GameDescription:
        game, shape = self._env.game, (3, *self._size)
        names = tuple(variable.name for variable in game.get_available_game_variables()) if options.game_variables else ()
        protocol = GameProtocol(
            env=self._id,
            observation="pixels",
            size=shape,
            colour="rgb",
            frame_skip=(skip, skip),
            max_pool=False,
            sticky=0.0,
            action_set="discrete",
            noop_max=0,
            fire_reset=False,
            episode_end="environment",
            max_episode_frames=game.get_episode_timeout() or None,
            max_episode_steps=None,
            mode=None,
            difficulty=game.get_doom_skill(),
            rom_md5=None,
            backend=f"vizdoom {metadata.version('vizdoom')}",
            extra=names,
            files=tuple(f"{path.name} {_md5(path)}" for path in self._own_files()),
        )
        return GameDescription(
            protocol=protocol,
            observation_shape=shape,
            observation_dtype="uint8",
            extra_size=len(names),
            num_tokens=0,
            action_names=_action_names(self._env),
            screen_shape=(game.get_screen_height(), game.get_screen_width(), 3),
            frames_per_second=FRAMES_PER_SECOND,
        )

    def _own_files(self) -> list[Path]:
        """Scenario and data that are not ViZDoom's own, which its version names."""
        config = [config_file(self._id)] if self._id.startswith(FILE_PREFIX) else []
        game, ours = self._env.game, Path(_vizdoom().scenarios_path)
        data = [Path(path) for path in (game.get_doom_scenario_path(), game.get_doom_game_path()) if path]
        return [path for path in config + data if path.parent != ours and path.name not in _FREE_DATA]

    def _engine(self, skip: int) -> Any:
        """The wrapper's environment, its engine running.

        Raises:
            InputError: a file is missing, or there are no keys to press.
            GameLost: the engine did not start.
        """
        vizdoom = _vizdoom()
        try:
            env = _make(vizdoom, self._id, skip, self._size)
            _check_actions(self._id, env)
            with _aside():
                env.reset()
        except vizdoom.FileDoesNotExistException as error:
            raise InputError(f"{self._id}: {' '.join(str(error).split())}") from error
        except _engine_errors() as error:
            raise GameLost(f"{self._id}: Doom's engine did not start: {' '.join(str(error).split())}") from error
        _forget_names()
        return env

    def reset(self, seed: int | None, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        """Open an episode: (3, H, W) of the picture and the variables, in place."""
        self._frames.clear()
        with self._alive():
            if self._twin is not None:  # opens the same game: each draws the engine's seed from a generator of its own
                self._twin.np_random = copy.deepcopy(self._env.np_random)
                self._twin.reset(seed=seed)
            self._env.reset(seed=seed)
            self._time = self._env.game.get_episode_time()
        self._keep(self._env.state)
        self._show(observation, extra)

    def step(self, action: int, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> Outcome:
        """Hold one action for the step's tics, or until the episode ends."""
        game = self._env.game
        with self._alive():
            reward = game.make_action(self._presses[action], self._skip)
            over, cut = game.is_episode_finished(), game.is_episode_timeout_reached()
            frames = self._tics_since()
            if self._twin is not None:
                self._frames = self._follow(action, frames)
            self._keep(game.get_state())
        self._show(observation, extra)
        return Outcome(reward, over and not cut, cut, False, frames)

    def _tics_since(self) -> int:
        """How many tics the step took: fewer than the skip where the episode ended in it.

        Where it ended by leaving the map the engine's clock stands at zero; then the whole skip is counted.
        """
        before, self._time = self._time, self._env.game.get_episode_time()
        return min(self._time - before, self._skip) if self._time > before else self._skip

    def _follow(self, action: int, frames: int) -> list[NDArray[np.uint8]]:
        """Play the same step in the twin, tic by tic; a tic that ended the game has no screen and shows the one before it."""
        game, screens, screen = self._twin.game, [], self._screen
        for _ in range(frames):
            if not game.is_episode_finished():
                game.make_action(self._presses[action], 1)
                state = game.get_state()
                screen = screen if state is None else np.copy(state.screen_buffer)
            screens.append(screen)
        return screens

    def _keep(self, state: Any) -> None:
        """Take what is seen; at the end of an episode there is no state, and the last one stands."""
        if state is None:
            return
        self._screen = state.screen_buffer
        if self._variables.size:
            self._variables = np.asarray(state.game_variables, np.float32)

    def _show(self, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        height, width = self._size
        cv2.resize(self._screen, (width, height), self._small, interpolation=self._interpolation)
        cv2.split(self._small, list(observation))
        extra[:] = self._variables

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except _engine_errors() as error:
            raise GameLost(f"{self._id}: Doom's engine died: {' '.join(str(error).split())}") from error

    def record(self) -> None:
        """From the next episode on, show every tic of a step.

        A second engine plays the same game tic by tic: drawing every tic in the first one would change how a fired weapon looks
        in some of the pictures that the agent sees.
        """
        if self._twin is None:
            self._twin = self._engine(1)

    def last_frames(self) -> list[NDArray[np.uint8]]:
        """The tics of the last step, each (120, 160, 3) or as large as the picture needs; none right after a reset."""
        return self._frames

    def close(self) -> None:
        """End the engines."""
        for env in (self._env, self._twin):
            if env is not None:
                env.close()


def _make(vizdoom: Any, env_id: str, skip: int, size: tuple[int, int]) -> Any:
    """The wrapper's environment, with the smallest screen that is not smaller than the picture."""
    fits = [screen for screen in SCREENS if screen[0] >= size[0] and screen[1] >= size[1]]
    height, width = fits[0] if fits else SCREENS[-1]
    settings: dict[str, Any] = {
        "frame_skip": skip,
        "max_buttons_pressed": 1,
        "screen_resolution": vizdoom.ScreenResolution.__members__[f"RES_{width}X{height}"],
        "screen_format": vizdoom.ScreenFormat.RGB24,
        "mode": vizdoom.Mode.PLAYER,
        **{f"{buffer}_buffer_enabled": False for buffer in _UNSEEN},
    }
    if not env_id.startswith(FILE_PREFIX):
        return gymnasium.make(env_id, disable_env_checker=True, **settings).unwrapped
    from vizdoom.gymnasium_wrapper.base_gymnasium_env import VizdoomEnv

    return VizdoomEnv(str(config_file(env_id)), **settings)


@functools.cache
def _md5(path: Path) -> str:
    """Of a file that every game of a process reads."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _check_actions(env_id: str, env: Any) -> None:
    space = env.action_space
    keys = space["binary"] if isinstance(space, Dict) else space
    if not isinstance(keys, Discrete) or keys.n < 2:
        raise InputError(f"{env_id}: its actions are {space}; expected keys to press (available_buttons)")


def _action_names(env: Any) -> tuple[str, ...]:
    """The one button that each action presses, or NOOP."""
    keys = [button.name for button in env.game.get_available_buttons()][env.num_delta_buttons :]
    pressed = ([name for name, down in zip(keys, combination, strict=True) if down] for combination in env.button_map)
    return tuple("+".join(names) or "NOOP" for names in pressed)


def _engine_errors() -> tuple[type[Exception], ...]:
    """What ViZDoom raises when its engine is gone."""
    vizdoom = _vizdoom()
    return (
        vizdoom.ViZDoomErrorException,
        vizdoom.ViZDoomUnexpectedExitException,
        vizdoom.ViZDoomIsNotRunningException,
        vizdoom.MessageQueueException,
        vizdoom.SharedMemoryException,
    )


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Start an engine that writes nothing: not on our output, and not into the user's folder.

    It inherits the folder and the outputs that it is started with. Where it starts it makes a folder for saved games, and at
    its end writes its settings there: the folder is gone by then.
    """
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, quiet(1, 2):
        try:
            os.chdir(folder)
            yield
        finally:
            os.chdir(before)


def _forget_names() -> None:
    """Take the names of the engine's shared memory away once both sides have it.

    So nothing stays in /dev/shm when this process is killed (10 MB an engine, otherwise).
    """
    maps = Path("/proc/self/maps")
    if maps.exists():
        for name in {line.split()[-1] for line in maps.read_text().splitlines() if "/dev/shm/ViZDoom" in line}:
            Path(name).unlink(missing_ok=True)
