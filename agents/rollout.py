"""Storage and returns of on-policy agents: T steps of N environments, time first.

frame:      rows 0 .. depth-2      the stack's past, carried over from the rollout before
            rows depth-1 ..        one a step; the last row is the observation after step T-1, which opens the next rollout
decision t: action, log-probability, value of frame t
outcome t:  reward, terminated, end, mask: what action t brought, read from the step after it
"""

import torch
from torch import Tensor

from agents.frames import blacken, gather_stacks, next_age


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
    delta = rewards + discount * values[1:] * ~terminated - values[:-1]
    carry = discount * trace * (~ends).to(delta.dtype)
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(rewards.shape[0])):
        following = mask[t] * (delta[t] + carry[t] * following)
        advantages[t] = following
    return advantages


class Rollout:
    """T steps of N environments, each frame stored once."""

    def __init__(
        self, steps: int, num_envs: int, depth: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Lay out the memory; `depth` is the number of frames in a stack."""
        self.steps, self.num_envs, self.depth = steps, num_envs, depth

        def table(dtype: torch.dtype, rows: int = steps) -> Tensor:
            return torch.zeros((rows, num_envs), dtype=dtype, device=device)

        self.frames = torch.zeros((steps + depth, num_envs, *shape), dtype=dtype, device=device)
        self.age = table(torch.uint8, steps + depth)
        self.actions = table(torch.int64)
        self.log_probs = table(torch.float32)
        self.values = table(torch.float32, steps + 1)
        self.rewards = table(torch.float32)
        self.terminated, self.ends, self.mask = table(torch.bool), table(torch.bool), table(torch.bool)

    def put_frame(self, t: int, slots: slice, observation: Tensor, is_first: Tensor) -> None:
        """Store the observation of step t."""
        row = t + self.depth - 1
        self.frames[row, slots] = observation
        self.age[row, slots] = next_age(self.age[row - 1, slots], is_first, self.depth)

    def put_outcome(self, t: int, slots: slice, reward: Tensor, terminated: Tensor, end: Tensor, mask: Tensor) -> None:
        """Store what action t brought."""
        self.rewards[t, slots], self.terminated[t, slots], self.ends[t, slots], self.mask[t, slots] = (
            reward,
            terminated,
            end,
            mask,
        )

    def stacks_at(self, t: int, slots: slice) -> Tensor:
        """Observations of step t as the agent sees them: (slots, depth, *shape)."""
        stacks = self.frames[t : t + self.depth, slots].transpose(0, 1)
        if self.depth == 1:
            return stacks
        stacks = stacks.clone(memory_format=torch.contiguous_format)  # of one environment it would be the stored frames
        back = torch.arange(self.depth - 1, -1, -1, device=stacks.device)
        return blacken(stacks, self.age[t + self.depth - 1, slots][:, None].int() < back)

    def stacks(self, t: Tensor, slots: Tensor) -> Tensor:
        """Observations as the agent sees them: (B,), (B,) -> (B, depth, *shape)."""
        return gather_stacks(self.frames, self.age, t + self.depth - 1, slots, self.depth)

    def carry_over(self) -> None:
        """Make the last observation, with its past, the first of the next rollout."""
        self.frames[: self.depth] = self.frames[-self.depth :].clone()
        self.age[: self.depth] = self.age[-self.depth :].clone()
