"""A run's replay on disk: written once, in pieces that are never changed, and named by the checkpoints that need them.

    replay/000000000000-000000001024        steps 0 to 1,023 of every game: safetensors, compressed by zlib

What may still change is not here: the steps whose outcome some game has yet to bring are part of the checkpoint itself.
"""

import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch

from agents.replay import Replay
from envs.contract import InputError
from envs.workers import usable_cores
from training.checkpoint import write_whole

ROWS = 1_024  # most steps of a piece; with 8 games of 84 x 84 bytes that is 58 MB before it is compressed
_LEVEL = 1  # zlib's fastest: frames of Atari games shrink to a twentieth


class ReplayFiles:
    """The pieces of one run."""

    def __init__(self, directory: Path) -> None:
        """Nothing is written until something is saved."""
        self._directory = directory
        self._pieces: list[tuple[int, int]] = []  # first step, and the one after the last

    def save(self, replay: Replay, *, keep: bool) -> dict[str, Any]:
        """Write what is new and will not change any more; returns what a checkpoint needs to find all of it again.

        Where the checkpoint is one that not every run makes, the pieces are not kept: the next one begins where they did.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        written = self._pieces[-1][1] if self._pieces else 0
        starts = range(max(written, replay.oldest), replay.complete, ROWS)
        new = [(start, min(start + ROWS, replay.complete)) for start in starts]
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(lambda piece: self._write(replay, *piece), new))
        old = [piece for piece in self._pieces if piece[1] > replay.oldest]
        if keep:
            self._pieces = [*old, *new]
        return {
            "pieces": [*old, *new],
            "kept": len(old) + (len(new) if keep else 0),
            "newest": replay.newest,
            "recent": replay.steps(replay.complete, replay.newest + 1),
        }

    def _write(self, replay: Replay, start: int, stop: int) -> None:
        data = safetensors.torch.save(replay.steps(start, stop))
        write_whole(self._path(start, stop), zlib.compress(data, _LEVEL))

    def load(self, replay: Replay, state: dict[str, Any]) -> None:
        """Fill replay with what a checkpoint names.

        Raises:
            InputError: a piece is missing or damaged.
        """
        pieces = [(start, stop) for start, stop in state["pieces"]]
        self._pieces = pieces[: state["kept"]]
        replay.newest = state["newest"]
        replay.complete = replay.newest + 1 - len(state["recent"]["age"])
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(lambda piece: self._read(replay, *piece), pieces))
        replay.put_steps(replay.complete, state["recent"])

    def _read(self, replay: Replay, start: int, stop: int) -> None:
        path = self._path(start, stop)
        try:
            replay.put_steps(start, safetensors.torch.load(zlib.decompress(path.read_bytes())))
        except (OSError, zlib.error, safetensors.SafetensorError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read ({type(error).__name__}: {error})") from error

    def sweep(self, states: Iterable[dict[str, Any]]) -> None:
        """Delete the pieces that no checkpoint names any more."""
        needed = {self._path(start, stop) for state in states for start, stop in state["pieces"]}
        for path in self._directory.glob("*"):
            if path not in needed:
                path.unlink()

    def _path(self, start: int, stop: int) -> Path:
        return self._directory / f"{start:012d}-{stop:012d}"
