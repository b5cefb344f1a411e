"""Storage and returns of on-policy agents: T steps of N environments, time first.

frame:      rows 0 .. depth-2      the stack's past, carried over from the rollout before
            rows depth-1 ..        one a step; the last row is the observation after step T-1, which opens the next rollout
step t:     what the environment gave beside the frame; the last row, T, opens the next rollout too
decision t: action, log-probability, value of frame t
outcome t:  reward, terminated, end, mask: what action t brought, read from the step after it
unit:       `chunk` steps in a row of one environment, which a memory learns from together, and its state before them
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.frames import as_seen, gather_stacks, next_age
from agents.networks import Inputs
from envs.contract import GameDescription, TimeStep

# What the environment says beside frames: a number for each step. On a GPU all of a rollout's go there at once.
_SMALL = ("age", "is_first", "last_rewards", "rewards", "terminated", "ends")


def generalized_advantages(
    rewards: Tensor, values: Tensor, terminated: Tensor, ends: Tensor, mask: Tensor, discount: float, trace: float
) -> Tensor:
    """Advantages of Schulman et al. 2015, "High-Dimensional Continuous Control Using Generalized Advantage Estimation".

    `adv[t] = mask[t] * (delta[t] + discount * trace * ~end[t] * adv[t+1])` with
    `delta[t] = reward[t] + discount * ~terminated[t] * value[t+1] - value[t]`. One rule for every kind of cut: a termination
    has no value after it; a truncation has, and the masked step behind it stops the trace; so does an episode that was lost.

    Args:
        rewards: (T, N).
        values: (T + 1, N), the last row of the observation after the rollout.
        terminated: (T, N) bool, no value follows.
        ends: (T, N) bool, no trace follows.
        mask: (T, N) bool, False where the action was ignored because a new episode opened.
        discount: Weight of the next step's value.
        trace: Lambda; 0 is one-step, 1 is the whole return.

    Returns:
        (T, N) advantages, zero where masked.
    """
    advantages = mask * (rewards + discount * values[1:] * ~terminated - values[:-1])
    carry = discount * trace * (mask & ~ends).to(rewards.dtype)
    for t in reversed(range(len(rewards) - 1)):
        advantages[t] += carry[t] * advantages[t + 1]
    return advantages


class Rollout:
    """T steps of N environments, each frame stored once."""

    def __init__(
        self, steps: int, num_envs: int, depth: int, game: GameDescription, device: torch.device, chunk: int = 1, state: int = 0
    ) -> None:
        """Lay out the memory; `depth` is the number of frames in a stack, `state` the size of a memory's state."""
        self.steps, self.num_envs, self.depth, self.chunk = steps, num_envs, depth, chunk
        self.num_units = steps // chunk * num_envs

        def table(dtype: torch.dtype, rows: int = steps, *shape: int) -> Tensor:
            return torch.zeros((rows, num_envs, *shape), dtype=dtype, device=device)

        self.frames = table(getattr(torch, game.observation_dtype), steps + depth, *game.observation_shape)
        self.age = table(torch.uint8, steps + depth)
        self.extra = table(torch.float32, steps + 1, game.extra_size)
        self.is_first = table(torch.bool, steps + 1)
        self.last_actions, self.last_rewards = table(torch.int64, steps + 1), table(torch.float32, steps + 1)
        self.states = table(torch.float32, steps // chunk, state)
        self.log_probs = table(torch.float32)
        self.values = table(torch.float32, steps + 1)
        self.rewards = table(torch.float32)
        self.terminated, self.ends = table(torch.bool), table(torch.bool)
        # Where tables of a GPU are written until `upload`: in the CPU's memory.
        self._staged = {name: own.cpu() for name, own in self.tables.items() if name in _SMALL and device.type == "cuda"}
        # What is written: on the CPU through numpy, which takes a quarter of torch's time for a few numbers.
        written = {**self.tables, **self._staged}
        self._writable = {name: own.numpy() if own.device.type == "cpu" else own for name, own in written.items()}
        self._age: Any = self._writable["age"]
        self._views: dict[tuple[int, int, int], tuple[Tensor, ...]] = {}  # see `_views_at`

    @property
    def tables(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""
        return {name: table for name, table in vars(self).items() if isinstance(table, Tensor)}

    @property
    def size(self) -> int:
        """Memory in bytes."""
        return sum(table.nbytes for table in self.tables.values())

    @property
    def actions(self) -> Tensor:
        """(T, N), the last action of the step after each."""
        return self.last_actions[1:]

    @property
    def mask(self) -> Tensor:
        """(T, N) False where the action was ignored, because the step after it opens an episode."""
        return ~self.is_first[1:]

    def put_step(self, t: int, slots: slice, timestep: TimeStep) -> None:
        """Store what the agent sees of the environment's step t."""
        row = t + self.depth - 1
        age = next_age(self._age[row - 1, slots], timestep.is_first, self.depth)
        self.put(row, slots, frames=timestep.observation, age=age)
        self.put(t, slots, extra=timestep.extra, last_rewards=timestep.reward, is_first=timestep.is_first)

    def put_decision(self, t: int, slots: slice, action: Tensor, log_prob: Tensor, value: Tensor, state: Tensor) -> None:
        """Store what was done at step t; `state` is the memory's before it."""
        self.put(t + 1, slots, last_actions=action)
        self.put(t, slots, log_probs=log_prob, values=value)
        if state.shape[1] and t % self.chunk == 0:
            self.states[t // self.chunk, slots] = state

    def put(self, row: int, slots: slice, **given: NDArray[Any] | Tensor) -> None:
        """Write into a row of some tables, (slots, ...) each, by the tables' names."""
        for name, values in given.items():
            table = self._writable[name]
            if isinstance(table, Tensor):
                table[row, slots] = torch.as_tensor(values)
            else:
                table[row, slots] = values.numpy() if isinstance(values, Tensor) else values

    def inputs_at(self, t: int, slots: slice) -> Inputs:
        """What the agent sees at step t, (1, slots, ...); may be what is stored itself."""
        frames, *rest = self._views_at(t, slots)
        stacks = as_seen(frames, self._age[t + self.depth - 1, slots])
        return Inputs(stacks[None], *(view.to(self.frames.device, non_blocking=True) for view in rest))

    def _views_at(self, t: int, slots: slice) -> tuple[Tensor, ...]:
        """Views of the frames of a step (slots, depth, *shape), and of what is beside them (1, slots, ...), made once."""
        at = t, slots.start, slots.stop
        if at not in self._views:
            tables = ({**self.tables, **self._staged}[name] for name in ("extra", "last_actions", "last_rewards", "is_first"))
            frames = self.frames[t : t + self.depth, slots].transpose(0, 1)
            self._views[at] = frames, *(table[t : t + 1, slots] for table in tables)
        return self._views[at]

    def upload(self) -> None:
        """Bring what was staged for a GPU to it, before what is there is read."""
        for name, written in self._staged.items():
            getattr(self, name).copy_(written)

    def unit(self, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where some units lie: (B,) -> steps (chunk, B), slots (B,), the memory's states before them (B, state)."""
        chunks, slots = units // self.num_envs, units % self.num_envs
        steps = chunks * self.chunk + torch.arange(self.chunk, device=units.device)[:, None]
        return steps, slots, self.states[chunks, slots]

    def inputs(self, t: Tensor, slots: Tensor, *, stacks: bool = True) -> Inputs:
        """What the agent saw: (L, B), (B,) -> (L, B, ...); without `stacks` nothing is gathered for those."""
        seen = self.frames.new_empty((*t.shape, 0))
        if stacks:
            rows = t + self.depth - 1
            seen = gather_stacks(self.frames, rows, slots, self.age[rows, slots], self.depth)
        rest = (self.extra, self.last_actions, self.last_rewards, self.is_first)
        return Inputs(seen, *(table[t, slots] for table in rest))

    def state_dict(self, newest: int) -> dict[str, Tensor]:
        """The rows that are in use, if `newest` is the last step that was put for any environment."""
        self.upload()
        frames = newest + self.depth
        rows = {"frames": frames, "age": frames, "last_actions": newest + 2, "states": newest // self.chunk + 1}
        return {name: table[: rows.get(name, newest + 1)].clone() for name, table in self.tables.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back the rows that were in use."""
        for name, rows in state.items():
            getattr(self, name)[: len(rows)] = rows
            if name in self._staged:
                self._staged[name][: len(rows)] = rows

    def copy_(self, other: "Rollout") -> None:
        """Take over all that another one of the same size holds."""
        for name, table in self.tables.items():
            table.copy_(other.tables[name])
        for name, table in self._staged.items():
            table.copy_(other._staged[name])

    def carry_over(self) -> None:
        """Make the last observation, with its past, the first of the next rollout."""
        self.frames[: self.depth] = self.frames[-self.depth :].clone()
        tables = {**self.tables, **self._staged}
        tables["age"][self.depth - 1] = tables["age"][-1]
        for name in ("extra", "last_actions", "last_rewards", "is_first"):
            tables[name][0] = tables[name][-1]
