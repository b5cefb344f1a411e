"""MiniWorld's rooms and mazes, drawn by OpenGL without a display.

They are played as any registered environment is. Several share a process, which MiniWorld alone does not allow: it compiles the
walls of every world into the display list of number 1, and the OpenGL contexts of one process have their lists in common.
"""

import contextlib
import functools
import importlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict
from numpy.typing import NDArray

from envs.contract import InputError, ProtocolOptions, by_our_pip
from envs.registered import RegisteredGame

IMAGE_SIZE = (60, 80)  # height and width in pixels
LIBRARIES = "libegl1 libglu1-mesa"  # the Debian packages of EGL and GLU


def _import_miniworld() -> None:
    """Register its ids.

    Raises:
        InputError: the package or a library of the system is missing.
    """
    os.environ["PYGLET_HEADLESS"] = "1"  # read once, when pyglet is imported
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = importlib.import_module("miniworld.miniworld")
    except ModuleNotFoundError as error:
        raise InputError(by_our_pip(f"MiniWorld is not installed ({error}): pip install miniworld")) from error
    except Exception as error:  # pyglet's own, of many kinds: no EGL, no GLU, no context
        raise _no_renderer(error) from error
    _give_each_world_its_lists(module)


@functools.cache
def _give_each_world_its_lists(module: Any) -> None:
    """Let the list that a world calls number 1 be another one in each OpenGL context."""
    gl = importlib.import_module("pyglet.gl")
    numbers: dict[Any, int] = {}

    def of_context(call: Callable[..., None]) -> Callable[..., None]:
        return lambda first, *rest: call(first + numbers.setdefault(gl.current_context, len(numbers)), *rest)

    for name in ("glNewList", "glCallList", "glDeleteLists"):
        setattr(module, name, of_context(getattr(module, name)))


def _no_renderer(error: Exception) -> InputError:
    words = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"MiniWorld cannot draw ({words}); it needs EGL and GLU, on Debian: apt-get install {LIBRARIES}")


def ids() -> list[str]:
    """Every id that MiniWorld registers.

    Raises:
        InputError: it is not installed, or cannot draw.
    """
    _import_miniworld()
    return sorted(name for name in gymnasium.registry if name.startswith("MiniWorld-"))


class MiniWorldGame(RegisteredGame):
    """One world."""

    flags = ("image_size",)

    @staticmethod
    def options_of(_env_id: str) -> ProtocolOptions:
        """What the flags are for an id where they are not given."""
        return ProtocolOptions(image_size=IMAGE_SIZE)

    def __init__(self, env_id: str, options: ProtocolOptions) -> None:
        """Make the world.

        Raises:
            InputError: MiniWorld or what it draws with is missing, or a flag is given that it does not have.
        """
        _import_miniworld()
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(env_id, options)
        world: Any = self._env.unwrapped
        limit = world.max_episode_steps
        protocol = replace(
            self.description.protocol,
            max_episode_steps=int(limit) if math.isfinite(limit) else None,
            backend=f"miniworld {metadata.version('miniworld')}",
        )
        self.description = replace(self.description, protocol=protocol, action_names=_action_names(env_id, world))

    def reset(self, seed: int | None, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        """Open an episode; its walls are compiled in the context that is current."""
        world: Any = self._env.unwrapped
        world.shadow_window.switch_to()
        super().reset(seed, observation, extra)

    def _made(self, env_id: str, options: ProtocolOptions) -> gymnasium.Env[Any, Any]:
        height, width = options.image_size or IMAGE_SIZE
        try:
            env: gymnasium.Env[Any, Any] = gymnasium.make(
                env_id, render_mode="rgb_array", obs_height=height, obs_width=width, disable_env_checker=True
            )
        except gymnasium.error.Error as error:
            raise InputError(f"{env_id}: {' '.join(str(error).split())}") from error
        except Exception as error:  # pyglet's and OpenGL's own
            raise _no_renderer(error) from error
        return _Picture(env) if isinstance(env.observation_space, Dict) else env


class _Picture(gymnasium.ObservationWrapper[NDArray[Any], Any, Any]):
    """The picture of a world that also tells its goal, a number that is the same in every game of the registered id."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, Dict)
        self.observation_space = env.observation_space["obs"]

    def observation(self, observation: Any) -> NDArray[Any]:
        picture: NDArray[Any] = observation["obs"]
        return picture


def _action_names(env_id: str, world: Any) -> tuple[str, ...]:
    """Those of the world's enumeration; a world that has fewer leaves out the last ones."""
    names = [action.name for action in world.actions][: int(world.action_space.n)]
    if env_id.startswith("MiniWorld-Sign-"):
        names[-1] = "done"  # there the number of `move_back` ends the episode
    return tuple(names)
