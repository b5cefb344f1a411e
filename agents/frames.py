"""Frame stacking. Environments hand out single frames; here they become the short film that an agent looks at.

frame:     a0  a1  a2  b0  b1        (b0 opens an episode)
stack of 3 at b1:      0   b0  b1    a frame from before the episode is black
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class FrameStack:
    """The last `depth` frames of each environment, kept on the device for acting."""

    def __init__(self, num_envs: int, depth: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Start with black frames."""
        self.frames = torch.zeros((num_envs, depth, *shape), dtype=dtype, device=device)

    def push(self, observation: Tensor, is_first: Tensor, slots: slice) -> Tensor:
        """Add one frame to some environments; (n, *shape), (n,) -> a view of their stacks (n, depth, *shape)."""
        stack = self.frames[slots]
        if stack.shape[1] > 1:
            stack[:, :-1] = stack[:, 1:].clone()
            blacken(stack[:, :-1], is_first[:, None].expand(-1, stack.shape[1] - 1))
        stack[:, -1] = observation
        return stack


def next_age(age: NDArray[np.uint8], is_first: NDArray[np.bool_], depth: int) -> NDArray[np.uint8]:
    """How many frames of its episode lie before each frame, as far as a stack can see: 0 to depth - 1."""
    older: NDArray[np.uint8] = np.minimum(age + np.uint8(1), np.uint8(depth - 1))
    return older * ~is_first


def as_seen(stacks: Tensor, age: NDArray[np.uint8]) -> Tensor:
    """Stored stacks as the agent sees them: a copy where a frame is black, else what is stored itself.

    Args:
        stacks: (n, depth, *shape).
        age: (n,) of the newest frames, see `next_age`.
    """
    depth = stacks.shape[1]
    if age.min() == depth - 1:
        return stacks
    return blacken(stacks.clone(), torch.from_numpy(age[:, None] < np.arange(depth - 1, -1, -1)))


def gather_stacks(frames: Tensor, rows: Tensor, slots: Tensor, age: Tensor, depth: int) -> Tensor:
    """Build stacks out of frames that are stored once.

    Args:
        frames: (R, N, *shape) a ring of R rows in time; the row before row 0 is row R - 1.
        rows: (..., B) row of each stack's newest frame.
        slots: (B,) environment of each stack.
        age: (..., B) of the newest frames, see `next_age`.
        depth: Frames in a stack.

    Returns:
        (..., B, depth, *shape), oldest frame first.
    """
    back = torch.arange(depth - 1, -1, -1, device=rows.device)
    at = (rows[..., None] - back) % len(frames) * frames.shape[1] + slots[:, None]
    whole = frames.flatten(0, 1).flatten(1).index_select(0, at.flatten())  # a frame is copied in one piece
    stacks = whole.view(*at.shape, *frames.shape[2:])
    return stacks if depth == 1 else blacken(stacks, age[..., None] < back)


def blacken(stacks: Tensor, black: Tensor) -> Tensor:
    """Make some frames black, in place: (..., depth, *shape), (..., depth) bool."""
    if stacks.device.type == "cpu":  # numpy clears a frame in one piece, torch byte by byte
        stacks.numpy()[black.numpy()] = 0
        return stacks
    black = black.to(stacks.device, non_blocking=True)
    return stacks.masked_fill_(black.view(*black.shape, *[1] * (stacks.dim() - black.dim())), 0)
