"""A frozen network at play."""

from collections.abc import Callable

import torch
from torch import Tensor

from agents.agent import Decision, Setting
from agents.frames import FrameStack
from agents.torch_setup import autocast
from envs.contract import TimeStep


class NetworkPlayer:
    """Plays with a function from stacks to probabilities and values; implements `agents.agent.Player`."""

    def __init__(self, play: Callable[[Tensor], tuple[Tensor, Tensor]], num_envs: int, depth: int, setting: Setting) -> None:
        """`play` takes (N, depth, *shape) and returns (N, A) and (N,)."""
        self._play, self._setting = play, setting
        game = setting.game
        dtype = getattr(torch, game.observation_dtype)
        self._stack = FrameStack(num_envs, depth, game.observation_shape, dtype, setting.device)

    def decide(self, timestep: TimeStep) -> Decision:
        """Look at one more step of all environments."""
        device = self._setting.device
        observation, is_first = (torch.from_numpy(array).to(device) for array in (timestep.observation, timestep.is_first))
        stacks = self._stack.push(observation, is_first, slice(None))
        with torch.no_grad(), autocast(self._setting):
            probabilities, values = self._play(stacks)
        return Decision(probabilities.float().cpu().numpy(), values.float().cpu().numpy())
