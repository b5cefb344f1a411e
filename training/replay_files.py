"""A run's replay on disk: written once, in pieces that are never changed, and named by the checkpoints that need them.

    replay/000000000000-000000001024        steps 0 to 1,023 of every game: safetensors, compressed by zlib

A piece is written beside training as soon as its steps will not change any more. What may still change is not here: the steps
whose outcome some game has yet to bring are part of the checkpoint itself.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from agents.replay import Replay
from envs.contract import InputError
from envs.cores import usable_cores
from training import checkpoint
from training.checkpoint import write_whole
from training.disk import Disk

ROWS = 1_024  # most steps of a piece
_TRANSITIONS = 8 * 1_024  # of all games together, at most; with images of 84 x 84 bytes that is 58 MB before it is compressed
_LEVEL = 1  # zlib's fastest: frames of Atari games shrink to a twentieth
_DIGITS = "[0-9]" * 12
_HEADER = 2**16  # bytes of a piece beside its tables, at most
_Piece = tuple[int, int]  # first step, and the one after the last


class ReplayFiles:
    """The pieces of one run."""

    def __init__(self, directory: Path, disk: Disk, *, saved: bool = True) -> None:
        """Nothing is written until there is a piece; where replay is not `saved`, never."""
        self._directory, self._disk, self._saved = directory, disk, saved
        self._pieces: list[_Piece] = []
        self._sums: dict[_Piece, Future[str]] = {}  # SHA-256, once they are written
        self._pool = ThreadPoolExecutor(1)

    def advance(self, replay: Replay) -> None:
        """Begin to write what has become a whole piece."""
        if not self._saved:
            return
        rows = max(1, min(ROWS, _TRANSITIONS // replay.num_envs))
        while replay.complete - (start := self._next_start(replay)) >= rows:
            self._add(replay, (start, start + rows))

    def _next_start(self, replay: Replay) -> int:
        return max(self._pieces[-1][1] if self._pieces else 0, replay.oldest)

    def _add(self, replay: Replay, piece: _Piece) -> None:
        for future in [*self._sums.values()][:-2]:  # so that no more than three are in memory, and a failure ends the run
            future.result()
        self._pieces.append(piece)
        self._sums[piece] = self._pool.submit(self._write, piece, replay.steps(*piece))

    def _write(self, piece: _Piece, steps: dict[str, Tensor]) -> str:
        data = zlib.compress(safetensors.torch.save(steps), _LEVEL)

        def write() -> None:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(piece), data)

        self._disk.write(self._directory.parent, len(data), write)
        return hashlib.sha256(data).hexdigest()

    def save(self, replay: Replay, *, keep: bool) -> dict[str, Any]:
        """Write what is new and will not change any more; returns what a checkpoint needs to find all of it again.

        Where the checkpoint is one that not every run makes, its last piece is not kept: the next one begins where it did.

        Raises:
            DiskFullError: there was no room, and waiting was given up.
        """
        if not self._saved:
            first = replay.newest_stacks
            return {"pieces": [], "kept": 0, **_standing(replay, first, first)}
        self.advance(replay)
        start = self._next_start(replay)
        if start < replay.complete:
            self._add(replay, (start, replay.complete))
        named = [piece for piece in self._pieces if piece[1] > replay.oldest]
        self._pieces = named if keep or start == replay.complete else named[:-1]
        self._sums = {piece: self._sums[piece] for piece in named}
        pieces = [[*piece, self._sums[piece].result()] for piece in named]
        return {"pieces": pieces, "kept": len(self._pieces), **_standing(replay, replay.first, replay.complete)}

    def load(self, replay: Replay, state: dict[str, Any]) -> None:
        """Fill replay with what a checkpoint names.

        Raises:
            InputError: a piece is missing or damaged.
        """
        pieces = [(start, stop) for start, stop, *_ in state["pieces"]]
        replay.newest = state["newest"]
        recent = replay.newest + 1 - len(state["recent"]["age"])
        replay.first, replay.complete = state.get("first", 0), state.get("complete", recent)
        with ThreadPoolExecutor(usable_cores()) as pool:
            sums = list(pool.map(lambda piece: self._read(replay, piece), pieces))
        replay.put_steps(recent, state["recent"])
        self._pieces = pieces[: state["kept"]]
        for piece, found in zip(pieces, sums, strict=True):
            self._sums[piece] = Future()
            self._sums[piece].set_result(found)

    def _read(self, replay: Replay, piece: _Piece) -> str:
        path, (start, stop) = self._path(piece), piece
        try:
            if not 0 < stop - start <= min(ROWS, replay.rows):
                raise ValueError(f"{stop - start} steps")
            data = checkpoint.read_file(path)
            most = (stop - start) * replay.bytes_a_row + _HEADER
            reader = zlib.decompressobj()
            replay.put_steps(start, safetensors.torch.load(reader.decompress(data, most)))
        except (OSError, zlib.error, safetensors.SafetensorError, RuntimeError, LookupError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
        return hashlib.sha256(data).hexdigest()

    def sweep(self, states: Iterable[dict[str, Any]]) -> None:
        """Delete the pieces that no checkpoint names any more, but for those that the next one will.

        Where a state does not fit into memory, what it names is not known, and all stay until it does.
        """
        there = list(self._directory.glob(f"{_DIGITS}-{_DIGITS}"))  # before those that are new are looked at
        try:
            named = {(start, stop) for state in states for start, stop, *_ in state["pieces"]}
        except checkpoint.TooLargeError:
            return
        needed = {self._path(piece) for piece in named.union(self._pieces)}
        for path in there:
            if path not in needed:
                with checkpoint.unneeded(path):
                    path.unlink()

    def close(self) -> None:
        """Wait for the thread that writes."""
        self._pool.shutdown(cancel_futures=True)

    def _path(self, piece: _Piece) -> Path:
        return self._directory / f"{piece[0]:012d}-{piece[1]:012d}"


def _standing(replay: Replay, first: int, recent: int) -> dict[str, Any]:
    """Where replay stands, with all that is held of the steps from `recent` on; none before `first` comes back."""
    steps = replay.steps(recent, replay.newest + 1)
    return {"first": first, "newest": replay.newest, "complete": replay.complete, "recent": steps}


def verify(saved: Path) -> None:
    """Compare a checkpoint and the pieces of replay that it names with what was written.

    Raises:
        InputError: one of them is missing or damaged.
    """
    checkpoint.verify(saved)
    try:
        state = json.loads(checkpoint.read_file(saved / "state.json", most=checkpoint.MOST_JSON))
        pieces = state.get("replay", {}).get("pieces", [])
        for start, stop, *sums in pieces:
            path = saved.parent.parent / "replay" / f"{start:012d}-{stop:012d}"
            if sums and checkpoint.sha256(path) != sums[0]:
                raise InputError(f"{path} is damaged: it is not what was written")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{saved} names a piece of replay that cannot be read ({type(error).__name__}: {error})") from error
