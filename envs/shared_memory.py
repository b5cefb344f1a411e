"""What the trainer and its workers have in common: the memory that both see, and the pipes between them."""

import json
import mmap
import os
import select
import tempfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from envs.contract import GameDescription, GameProtocol, TimeStep

# Command bytes; lower ones are group numbers.
RESET = 255  # every slot opens a game at its next step
CLONE = 253  # answer with a copy of every game that can be copied
RESTORE = 252  # a message says from where each slot goes on; answer with RESTORE as soon as each is there
_LENGTH = 8  # bytes before a message that say how long it is
FAILED = 254  # reply byte: a message that says why follows


class SharedMemory:
    """The arrays that the trainer and its workers both see, laid out one after the other in one file."""

    def __init__(self, fd: int, num_envs: int, game: GameDescription, record: Sequence[int], *, create: bool) -> None:
        """Lay the arrays over the file; `create` first makes it long enough."""
        screen = game.screen_shape or (0, 0, 3)
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "observation": ((num_envs, *game.observation_shape), game.observation_dtype),
            "extra": ((num_envs, game.extra_size), np.float32),
            "reward": ((num_envs,), np.float32),
            "terminated": ((num_envs,), np.bool_),
            "truncated": ((num_envs,), np.bool_),
            "is_first": ((num_envs,), np.bool_),
            "life_lost": ((num_envs,), np.bool_),
            "frames": ((num_envs,), np.int32),
            "actions": ((num_envs,), np.int64),
            "seeds": ((num_envs,), np.int64),
            "screens": ((len(record), game.protocol.frame_skip[1], *screen), np.uint8),
            "screen_counts": ((len(record),), np.int64),
        }
        starts, end = {}, 0
        for name, (shape, dtype) in layout.items():
            starts[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64  # each array on a cache line of its own
        if create:
            os.ftruncate(fd, max(end, 1))
        buffer = mmap.mmap(fd, max(end, 1))
        arrays = {name: np.ndarray(shape, dtype, buffer, starts[name]) for name, (shape, dtype) in layout.items()}
        self.step = TimeStep(*(arrays[name] for name in TimeStep._fields))
        self.actions, self.seeds = arrays["actions"], arrays["seeds"]
        self.screens, self.screen_counts = arrays["screens"], arrays["screen_counts"]

    def step_of(self, slots: slice) -> TimeStep:
        """Views of some slots' step."""
        fields: list[Any] = [field[slots] for field in self.step]
        return TimeStep(*fields)


class GoneError(Exception):
    """The other side of a channel is gone."""


class Channel:
    """One-byte signals, and JSON messages with their length before them, over a pair of pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        """Take two file descriptors."""
        self._incoming, self._outgoing = incoming, outgoing

    def fileno(self) -> int:
        """What to wait for."""
        return self._incoming

    def write(self, signal: int) -> None:
        """Send one byte."""
        self._write(bytes((signal,)))

    def read(self) -> int | None:
        """The next signal; None when the other side is gone."""
        signal = os.read(self._incoming, 1)
        return signal[0] if signal else None

    def check_other_side(self) -> None:
        """Look whether it is still there; for what takes long between two signals.

        Raises:
            GoneError: it is not.
        """
        poll = select.poll()
        poll.register(self._incoming, select.POLLIN)
        if any(events & select.POLLHUP for _, events in poll.poll(0)):
            raise GoneError

    def write_message(self, message: Any) -> None:
        """Send what JSON can say."""
        data = json.dumps(message).encode()
        left = memoryview(len(data).to_bytes(_LENGTH, "big") + data)
        while left:
            left = left[self.write_some(left) :]

    def write_some(self, data: memoryview) -> int:
        """Send some of these bytes; returns how many."""
        return self._write(data)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self._outgoing, data)
        except BrokenPipeError as error:
            raise GoneError from error

    def read_message(self) -> Any:
        """The next message; an empty dict when the other side is gone."""
        length = self._read_whole(_LENGTH)
        data = self._read_whole(int.from_bytes(length, "big")) if length else b""
        return json.loads(data) if data else {}

    def _read_whole(self, size: int) -> bytes:
        """So many bytes; none when the other side is gone."""
        data = bytearray()
        while len(data) < size:
            piece = os.read(self._incoming, size - len(data))
            if not piece:
                return b""
            data += piece
        return bytes(data)

    def close(self) -> None:
        """Close both ends: the other side reads end-of-file."""
        os.close(self._incoming)
        os.close(self._outgoing)


def anonymous_file() -> BinaryIO:
    """A file in memory that no name leads to, so that nothing is left when every process that holds it is gone."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("playfield"), "r+b")
    return tempfile.TemporaryFile()


def with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """What JSON made lists of, as it was."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def description_from(fields: dict[str, Any]) -> GameDescription:
    """A description from its JSON."""
    return GameDescription(**with_tuples({**fields, "protocol": GameProtocol(**with_tuples(fields["protocol"]))}))
