"""Any registered Gymnasium environment with discrete actions and an image or a vector to look at.

`package.module:Id-v0` imports the module first, which is how a user's own environment gets here.
"""

import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from envs.contract import GameDescription, GameProtocol, InputError, Outcome, ProtocolOptions, by_our_pip, refuse_options

MOST_ACTIONS = 2**15  # what the 16 bits of an action in replay and in checkpoints can number


class RegisteredGame:
    """One environment made by `gymnasium.make`."""

    own_engine = False
    flags: tuple[str, ...] = ()

    @staticmethod
    def options_of(_env_id: str) -> ProtocolOptions:
        """No flag changes an environment of this family."""
        return ProtocolOptions()

    def __init__(self, env_id: str, options: ProtocolOptions) -> None:
        """Make the environment and check that an agent of ours can play it.

        Raises:
            InputError: the spaces do not fit, or a flag is given that only Atari games have.
        """
        refuse_options(env_id, options, self.flags)
        self._env = self._made(env_id, options)
        self._image = _is_image(env_id, self._env)
        actions = self._env.action_space
        if not isinstance(actions, Discrete):
            raise InputError(f"{env_id}: its actions are {actions}; expected Discrete")
        if actions.n > MOST_ACTIONS:
            raise InputError(f"{env_id}: its actions are {actions}; expected {MOST_ACTIONS:,} at most")
        self._first_action = int(actions.start)
        self._space = box = self._env.observation_space
        assert box.shape is not None
        shape = (box.shape[2], *box.shape[:2]) if self._image else box.shape
        self.description = GameDescription(
            protocol=_protocol(env_id, self._env, shape, self._image),
            observation_shape=shape,
            observation_dtype="uint8" if self._image else "float32",
            extra_size=0,
            num_tokens=0,
            action_names=tuple(str(self._first_action + action) for action in range(int(actions.n))),
            screen_shape=self._screen_shape(),
            frames_per_second=float(self._env.metadata.get("render_fps") or 30),
        )
        self._recording = False
        self._frames: list[NDArray[np.uint8]] = []

    def _made(self, env_id: str, _options: ProtocolOptions) -> gymnasium.Env[Any, Any]:
        """The environment; a family of registered environments makes its own."""
        return _make(env_id)

    def _screen_shape(self) -> tuple[int, int, int] | None:
        if self._env.render_mode != "rgb_array":
            return None
        try:
            self._env.reset(seed=0)
            height, width, channels = np.asarray(self._env.render()).shape
        except gymnasium.error.DependencyNotInstalled as error:
            raise _refusal(str(self._env.spec and self._env.spec.id), error) from error
        return height, width, channels

    def _write(self, value: Any, observation: NDArray[np.generic]) -> None:
        if np.shape(value) != self._space.shape:
            raise self._breach(f"an observation of shape {np.shape(value)}, and its observation_space is {self._space}")
        observation[...] = np.moveaxis(value, -1, 0) if self._image else value

    def _breach(self, returned: str) -> ValueError:
        """Of Gymnasium's API, by an environment that may be the user's own."""
        return ValueError(f"{self.description.protocol.env} returned {returned}")

    def reset(self, seed: int | None, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        """Open an episode.

        Raises:
            ValueError: the environment breaks Gymnasium's API.
        """
        self._frames.clear()
        returned: Any = self._env.reset(seed=seed)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise self._breach("no (observation, info) from reset, as Gymnasium's environments do")
        self._write(returned[0], observation)

    def step(self, action: int, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> Outcome:
        """Play one step; an environment of this family counts one emulator frame a step.

        Raises:
            ValueError: the observation is not of its space's shape.
        """
        value, reward, terminated, truncated, _ = self._env.step(self._first_action + action)
        self._write(value, observation)
        if self._recording:
            self._frames = [np.asarray(self._env.render(), np.uint8)]
        return Outcome(float(reward), bool(terminated), bool(truncated and not terminated), False, 1)

    def record(self) -> None:
        """Render after every step from now on, where the environment can."""
        self._recording = self._env.render_mode == "rgb_array"

    def last_frames(self) -> list[NDArray[np.uint8]]:
        """The picture after the last step; none right after a reset."""
        return self._frames

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _make(env_id: str) -> gymnasium.Env[Any, Any]:
    """Make the environment, able to render where it can."""
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            _import(env_id, module)
        entry = gymnasium.spec(name).entry_point
        creator = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
        drawable = "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ())
        return gymnasium.make(env_id, render_mode="rgb_array") if drawable else gymnasium.make(env_id)
    except (gymnasium.error.Error, ImportError, SyntaxError) as error:
        raise _refusal(env_id, error) from error


def _refusal(env_id: str, error: Exception) -> InputError:
    return InputError(by_our_pip(f"{env_id}: {' '.join(str(error).split())}"))


def _import(env_id: str, module: str) -> None:
    """Import the module of `module:Id-v0`, which registers its ids.

    Raises:
        InputError: there is no such module.
        ImportError, SyntaxError: there is, and it does not import.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            told = f"{env_id}: no module {error.name!r} is found, which the words before the colon name; "
            raise InputError(by_our_pip(f"{told}start where it lies, or pip install what holds it")) from error
        raise


def _is_image(env_id: str, env: gymnasium.Env[Any, Any]) -> bool:
    """Whether to look at it as an image (H, W, 1 or 3 channels of uint8) rather than a vector."""
    space = env.observation_space
    if isinstance(space, Box) and len(space.shape) == 3 and space.dtype == np.uint8 and space.shape[2] in (1, 3):
        return True
    if isinstance(space, Box) and len(space.shape) == 1:
        return False
    raise InputError(f"{env_id}: its observation is {space}; expected an image (H, W, 1 or 3) of uint8 or a vector")


def _protocol(env_id: str, env: gymnasium.Env[Any, Any], shape: tuple[int, ...], image: bool) -> GameProtocol:
    return GameProtocol(
        env=env_id,
        observation="pixels" if image else "vector",
        size=shape,
        colour=("rgb" if shape[0] == 3 else "grey") if image else None,
        frame_skip=(1, 1),
        max_pool=False,
        sticky=0.0,
        action_set="discrete",
        noop_max=0,
        fire_reset=False,
        episode_end="environment",
        max_episode_frames=None,
        max_episode_steps=env.spec.max_episode_steps if env.spec else None,
        mode=None,
        difficulty=None,
        rom_md5=None,
        backend=f"gymnasium {gymnasium.__version__}",
    )
