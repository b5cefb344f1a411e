"""Experience replay: a ring of steps, each frame stored once and stacked when sampled.

    row:        t-3  t-2  t-1   t   t+1  t+2  t+3
    frame:      └─── stack ────┘
    outcome:                    r_t r_t+1 r_t+2          n = 3 steps of reward,
    frame:                 └──── stack ──────┘           then the value of the state that they led to

A window of n steps stops early at an end; at a truncation or a lost episode it takes the value of the last state it saw.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.frames import as_seen, gather_stacks, next_age
from agents.storage import check_room, fits_on, steps_that_fit
from envs.contract import GameDescription

_CPU = torch.device("cpu")


class Transitions(NamedTuple):
    """A batch sampled from replay."""

    stacks: Tensor  # (B, depth, *shape)
    extra: Tensor  # (B, E) the numbers beside the picture
    actions: Tensor  # (B,)
    rewards: Tensor  # (B,) discounted sum of up to n steps
    discounts: Tensor  # (B,) weight of the value of `next_stacks`; 0 where the task was over
    next_stacks: Tensor  # (B, depth, *shape)
    next_extra: Tensor  # (B, E)
    weights: Tensor  # (B,) 1, or 0 where the action was ignored


class Replay:
    """The last `capacity` steps of N environments, in CPU memory; what was observed on the device, where that has room."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        depth: int,
        game: GameDescription,
        n_step: int = 1,
        device: torch.device = _CPU,
        transform: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda rewards: rewards,
    ) -> None:
        """Lay out the memory (the system gives a frame its place when it is first written).

        It holds at least one stack with its window of `n_step` rewards, whatever the capacity. They are the game's own;
        `transform` makes of them, (B,) -> (B,), what is learned from.

        Raises:
            InputError: it would need more memory than is free.
        """
        self.num_envs, self.depth, self._transform = num_envs, depth, transform
        self.first = 0  # first step that was ever put; later where a run went on without what it had in replay
        self.newest = -1  # last step whose frame was put for any environment
        self.complete = 0  # first step that may still change: an environment's newest, whose outcome is not there yet
        self.rows = max(-(-capacity // num_envs), depth + n_step + 1)
        dtype = getattr(torch, game.observation_dtype)
        steps, each = self.rows * num_envs, bytes_per_step(game.observation_shape, dtype, game.extra_size)
        what = f"replay of {steps:,} steps ({each:,} bytes each)"
        self.device = device if fits_on(device, steps * each) else _CPU
        """Where frames and the numbers beside them lie."""
        if self.device == _CPU:
            check_room(what, steps * each, f"--capacity {steps_that_fit(each)} fits")
        self.frames = torch.empty((self.rows, num_envs, *game.observation_shape), dtype=dtype, device=self.device)
        self.extra = torch.empty((self.rows, num_envs, game.extra_size), device=self.device)
        self.rewards = torch.zeros((self.rows, num_envs))
        self.age = torch.zeros((self.rows, num_envs), dtype=torch.uint8)
        self.actions = torch.zeros((self.rows, num_envs), dtype=torch.int16)
        self.terminated, self.ends, self.mask = torch.zeros((3, self.rows, num_envs), dtype=torch.bool)
        # The same memory, for writing: with numpy where it can be, which takes a quarter of torch's time for a few numbers.
        self._arrays = {name: table.numpy() for name, table in self._tables.items() if table.device == _CPU}

    def put_frame(
        self, t: int, slots: slice, observation: NDArray[Any], extra: NDArray[np.float32], is_first: NDArray[np.bool_]
    ) -> None:
        """Store the observation of step t, in place of the one that is `rows` steps older."""
        age = next_age(self._arrays["age"][t % self.rows - 1, slots], is_first, self.depth)
        self._put(t, slots, frames=observation, extra=extra, age=age)

    def put_action(self, t: int, slots: slice, action: NDArray[np.integer[Any]]) -> None:
        """Store what was done at step t."""
        self._put(t, slots, actions=action)

    def put_outcome(
        self,
        t: int,
        slots: slice,
        reward: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        end: NDArray[np.bool_],
        mask: NDArray[np.bool_],
    ) -> None:
        """Store what the action of step t brought."""
        self._put(t, slots, rewards=reward, terminated=terminated, ends=end, mask=mask)

    def _put(self, t: int, slots: slice, **given: NDArray[Any]) -> None:
        for name, values in given.items():
            if name in self._arrays:
                self._arrays[name][t % self.rows, slots] = values
            else:
                self._tables[name][t % self.rows, slots] = torch.from_numpy(values).to(self.device)

    def seen_at(self, t: int, slots: slice) -> tuple[Tensor, Tensor]:
        """Stacks of step t of a group, and the numbers beside: (n, depth, *shape), (n, E); may be what is stored itself."""
        row = t % self.rows
        if row >= self.depth - 1:
            stacks = self.frames[row - self.depth + 1 : row + 1, slots].transpose(0, 1)
        else:
            stacks = torch.stack([self.frames[row - back, slots] for back in reversed(range(self.depth))], 1)
        return as_seen(stacks, self._arrays["age"][row, slots]), self.extra[row, slots]

    @property
    def newest_stacks(self) -> int:
        """First step that is seen with those whose outcome is not there yet."""
        return max(self.first, self.complete - self.depth)

    def forget(self) -> None:
        """Fill anew: nothing that is held is sampled, and the newest steps keep their stacks."""
        self.first = self.newest_stacks

    @property
    def forgotten(self) -> bool:
        """Whether nothing that is held is sampled."""
        return 0 < self.first == self.newest_stacks

    @property
    def oldest(self) -> int:
        """First step that is still there for every environment."""
        return max(self.first, self.newest - self.rows + 1)

    def span(self, n: int) -> tuple[int, int]:
        """First step that may be sampled, and the first that may no more; the frame after the n rewards has to be there."""
        return (self.oldest + self.depth - 1 if self.oldest else 0), self.complete - n + 1

    @property
    def _tables(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def bytes_a_row(self) -> int:
        """Memory of one step of every environment."""
        return sum(table[0].nbytes for table in self._tables.values())

    def steps(self, start: int, stop: int) -> dict[str, Tensor]:
        """All that is held of some steps: copies of (stop - start, N, ...) of each table."""
        rows = torch.arange(start, stop) % self.rows
        return {name: table.index_select(0, rows.to(table.device)).cpu() for name, table in self._tables.items()}

    def put_steps(self, start: int, steps: dict[str, Tensor]) -> None:
        """Put back what `steps` returned; of a step that others have taken the place of, nothing."""
        for name, table in self._tables.items():
            there = steps[name][max(0, self.oldest - start) :]
            first = start + len(steps[name]) - len(there)
            rows = torch.arange(first, first + len(there), device=table.device) % self.rows
            table.index_copy_(0, rows, there.to(table.device))

    def draw(self, size: int, span: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Steps and environments of transitions, uniformly from a span of steps: (size,), (size,)."""
        return torch.randint(*span, (size,), generator=generator), torch.randint(self.num_envs, (size,), generator=generator)

    def look_up(self, t: Tensor, slots: Tensor, n: int, discount: float) -> tuple[Tensor, Tensor]:
        """The transitions that begin at some steps, (B,) and (B,), but for what was observed.

        Returns:
            (6, B) environment, row and age of the state, row and age of the next, action, and
            (3, B) reward, discount, weight; as in `Transitions`, on the CPU.
        """
        tables, at, slot = self._arrays, t.numpy(), slots.numpy()
        going = np.ones(len(at), np.bool_)  # the window has not ended yet
        over = np.zeros(len(at), np.bool_)  # the task has
        reward, length = np.zeros(len(at), np.float32), np.zeros(len(at), np.int64)
        for k in range(n):
            row = (at + k) % self.rows
            going &= tables["mask"][row, slot]
            reward += going * np.float32(discount**k) * self._transform(tables["rewards"][row, slot])
            length += going
            over |= going & tables["terminated"][row, slot]
            going &= ~tables["ends"][row, slot]
        row, after = at % self.rows, (at + length) % self.rows
        age, actions, mask = tables["age"], tables["actions"], tables["mask"]
        places = np.stack([slot, row, age[row, slot], after, age[after, slot], actions[row, slot]])
        outcomes = np.stack([reward, discount**length * ~over, mask[row, slot]])
        return torch.from_numpy(places), torch.from_numpy(outcomes.astype(np.float32))

    def gather(self, places: Tensor, outcomes: Tensor) -> Transitions:
        """Transitions with what was observed, of what `look_up` returned, brought to `device`."""
        slots, row, age, after, next_age, actions = places
        rewards, discounts, weights = outcomes
        stacks = gather_stacks(self.frames, row, slots, age, self.depth)
        next_stacks = gather_stacks(self.frames, after, slots, next_age, self.depth)
        extra, next_extra = self.extra[row, slots], self.extra[after, slots]
        return Transitions(stacks, extra, actions, rewards, discounts, next_stacks, next_extra, weights)

    def transitions(self, t: Tensor, slots: Tensor, n: int, discount: float) -> Transitions:
        """The transitions that begin at some steps: (B,), (B,)."""
        return self.gather(*(own.to(self.device) for own in self.look_up(t, slots, n, discount)))


def bytes_per_step(shape: tuple[int, ...], dtype: torch.dtype, extra: int = 0) -> int:
    """Memory of one step in bytes: its frame, the numbers beside it, reward, age, action and three flags."""
    frame = torch.Size(shape).numel() * dtype.itemsize
    return frame + 4 * extra + 4 + 1 + 2 + 3
