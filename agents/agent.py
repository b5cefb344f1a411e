"""What training and evaluation ask of an agent, and what a run gives to one."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.replay import Replay
from envs.contract import GameDescription, TimeStep


@dataclass(frozen=True)
class Setting:
    """What a run gives to an agent beside the agent's own config."""

    game: GameDescription
    num_envs: int
    groups: tuple[slice, ...]
    total_frames: int  # emulator frames of the whole run; schedules end there
    seed: int
    device: torch.device
    precision: torch.dtype  # of the networks' arithmetic before memories and heads; these and all weights are float32
    learn_threads: int  # CPU threads that share an update


class Decision(NamedTuple):
    """What an agent thinks of N observations."""

    probabilities: NDArray[np.float32]  # (N, A) of the policy that is played
    values: NDArray[np.float32]  # (N,) expected return, in the agent's own reward units


class Player(Protocol):
    """A frozen policy with its own stack of frames and its own memory: it plays and never learns."""

    def decide(self, timestep: TimeStep, played: NDArray[np.integer]) -> Decision:
        """Look at one more step of all its environments; `played` (N,) are the actions that led to it, if any did."""


class NonFiniteError(Exception):
    """A number that training would carry into the weights is not finite."""

    def __init__(self, what: str, batch: dict[str, Tensor]) -> None:
        """Say what it is and keep what it came from."""
        super().__init__(f"{what} is not finite")
        self.batch = batch


class BrokenOff(Exception):  # noqa: N818 - not an error: it was asked for
    """An update was broken off and undone: `learn` is to be called again."""


class Agent(Protocol):
    """Learns from N environments, a group of them at a time.

    For each group in turn: `observe` what its last actions brought, `learn`, then, unless `holds`, `act`. An agent `holds`
    while it needs the other groups' steps before it may act again (a rollout ends for all groups at once).
    """

    frames: int  # emulator frames observed
    steps: int  # agent steps observed
    hurry: bool  # set from outside: a long update is to be broken off

    @property
    def replay(self) -> Replay | None:
        """What was experienced, where an agent learns from more than its last steps."""

    @property
    def holds(self) -> bool:
        """Whether `act` has to wait for other groups."""

    def act(self, timestep: TimeStep, slots: slice) -> NDArray[np.int64]:
        """Choose actions for a group: (slots,)."""

    def observe(self, timestep: TimeStep, slots: slice) -> None:
        """Take in a group's step."""

    def learn(self) -> dict[str, float] | None:
        """Learn if it is time to.

        Returns metrics where there are some, which is also a good moment for a checkpoint: at the end of a rollout, say.

        Raises:
            NonFiniteError: a loss or a gradient is not finite. The weights are worth nothing then.
            BrokenOff: it was told to `hurry`, and is as it was before.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, but for what `replay` says it keeps: nested dicts of tensors and JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state, once `replay` is filled again."""
