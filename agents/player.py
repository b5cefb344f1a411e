"""A frozen network at play."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.agent import Decision
from agents.frames import FrameStack
from agents.networks import Inputs
from envs.contract import GameDescription, TimeStep


class NetworkPlayer:
    """Plays with a function from inputs to probabilities and values, in float32; implements `agents.agent.Player`."""

    def __init__(
        self,
        play: Callable[[Inputs, Tensor], tuple[Tensor, Tensor, Tensor]],
        num_envs: int,
        depth: int,
        game: GameDescription,
        device: torch.device,
        state_size: int = 0,
    ) -> None:
        """`play` takes inputs (1, N, ...) and the memory's state (N, S); it returns (N, A), (N,) and the state after them."""
        self._play, self._device = play, device
        dtype = getattr(torch, game.observation_dtype)
        self._stack = FrameStack(num_envs, depth, game.observation_shape, dtype, device)
        self._state = torch.zeros((num_envs, state_size), device=device)

    def decide(self, timestep: TimeStep, played: NDArray[np.integer]) -> Decision:
        """Look at one more step of all environments."""
        given = (timestep.observation, timestep.extra, played, timestep.reward, timestep.is_first)
        observation, extra, action, reward, is_first = (torch.from_numpy(array).to(self._device) for array in given)
        stacks = self._stack.push(observation, is_first, slice(None))
        inputs = Inputs(*(part[None] for part in (stacks, extra, action, reward, is_first)))
        with torch.no_grad():
            probabilities, values, self._state = self._play(inputs, self._state)
        return Decision(probabilities.cpu().numpy(), values.cpu().numpy())
