"""A frozen network at play."""

from collections.abc import Callable

import torch
from torch import Tensor

from agents.agent import Decision
from agents.frames import FrameStack
from envs.contract import GameDescription, TimeStep


class NetworkPlayer:
    """Plays with a function from stacks to probabilities and values, in float32; implements `agents.agent.Player`."""

    def __init__(
        self,
        play: Callable[[Tensor], tuple[Tensor, Tensor]],
        num_envs: int,
        depth: int,
        game: GameDescription,
        device: torch.device,
    ) -> None:
        """`play` takes (N, depth, *shape) and returns (N, A) and (N,)."""
        self._play, self._device = play, device
        dtype = getattr(torch, game.observation_dtype)
        self._stack = FrameStack(num_envs, depth, game.observation_shape, dtype, device)

    def decide(self, timestep: TimeStep) -> Decision:
        """Look at one more step of all environments."""
        observation, is_first = (
            torch.from_numpy(array).to(self._device) for array in (timestep.observation, timestep.is_first)
        )
        with torch.no_grad():
            probabilities, values = self._play(self._stack.push(observation, is_first, slice(None)))
        return Decision(probabilities.cpu().numpy(), values.cpu().numpy())
