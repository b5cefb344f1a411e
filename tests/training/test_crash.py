"""A process that dies between any two system calls of a save leaves a run that goes on: every prefix of the calls is tried."""

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from agents.replay import Replay
from tests.agents.driving import describe
from tests.training.test_checkpoint import same, state_of
from training import checkpoint, replay_files
from training.disk import Disk
from training.replay_files import ReplayFiles

CALLS = {"open", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "scandir", "close", "ftruncate"}


def dies_at(number: int, work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> bool:
    """Do some work in a process of its own that ends before one of its calls to the file system; whether it came to that."""
    child = os.fork()
    if child == 0:
        left, counts = number, False

        def count(_: FrameType, event: str, called: Any) -> None:
            nonlocal left
            if counts and event == "c_call" and called.__name__ in CALLS:
                if left == 0:
                    os._exit(7)
                left -= 1

        code = 1
        try:
            sys.setprofile(count)
            threading.setprofile(count)  # of the threads that are to come
            prepare()
            counts = True
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 7)
    return status == 7


def save_and_prune(directory: Path, frames: int, files: dict[str, bytes]) -> None:
    checkpoint.prune(checkpoint.save(directory, frames, files))


@pytest.mark.parametrize("frames", [2, 1], ids=["new", "in place of one"])
def test_every_prefix_of_a_save_leaves_a_checkpoint(frames: int, tmp_path: Path) -> None:
    """The one before or the new one, and what is left of either is no hindrance to the next save."""
    before, after, later = (state_of(score, seed) for seed, score in enumerate((1.0, 2.0, 3.0)))
    for number in range(1_000):
        directory = tmp_path / str(number)
        checkpoint.save(directory, 1, checkpoint.encode(before))
        files = checkpoint.encode(after)
        died = dies_at(number, partial(save_and_prune, directory, frames, files))
        checkpoint.sweep(directory)
        found = checkpoint.newest(directory)
        assert found is not None
        scores = checkpoint.load(found)["scores"]
        assert same(scores, before["scores"]) or same(scores, after["scores"])
        assert all(path.name.isdecimal() for path in directory.iterdir())
        saved = checkpoint.save(directory, 3, checkpoint.encode(later))
        assert same(checkpoint.load(saved)["scores"], later["scores"])
        if not died:
            assert same(scores, after["scores"])
            break
    print(f"{number} prefixes of a save")
    assert number > 30  # so many calls were there to die between


def test_every_prefix_of_writing_a_file_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    for number in range(100):
        died = dies_at(number, lambda: checkpoint.write_whole(path, "new"))
        assert path.read_text() in ("old", "new")
        if not died:
            break
        path.write_text("old")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    print(f"{number} prefixes of writing a file")
    assert number > 5


def test_every_prefix_of_a_save_with_replay_leaves_pieces_that_its_checkpoint_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `Run` does: pieces, checkpoint, and then what is needed no more goes."""
    monkeypatch.setattr(replay_files, "ROWS", 8)
    game = describe((1, 6, 6), "uint8")
    everyone = slice(0, 2)

    def grow(replay: Replay, steps: int) -> None:
        for t in range(replay.newest + 1, steps):
            replay.put_frame(t, everyone, np.full((2, 1, 6, 6), t, np.uint8), np.zeros((2, 0)), np.zeros(2, np.bool_))
            replay.put_outcome(t, everyone, np.zeros(2), *np.zeros((3, 2), np.bool_))
            replay.newest = replay.complete = t

    def save(run_dir: Path, files: ReplayFiles, replay: Replay, frames: int) -> None:
        state = {"weights": {}, "optimizer": {}, "replay": files.save(replay, keep=True)}
        checkpoint.prune(checkpoint.save(run_dir / "checkpoints", frames, checkpoint.encode(state)))
        files.sweep(checkpoint.state_parts(run_dir / "checkpoints", "replay"))

    for number in range(1_000):
        run_dir = tmp_path / str(number)

        kept: list[Any] = []

        def prepare(run_dir: Path = run_dir, kept: list[Any] = kept) -> None:  # in the child, whose threads are its own
            kept += [ReplayFiles(run_dir / "replay", Disk()), Replay(32, 2, 4, game)]
            for frames in range(1, 5):
                grow(kept[1], 10 * frames)
                save(run_dir, *kept, frames)
            grow(kept[1], 50)

        def work(run_dir: Path = run_dir, kept: list[Any] = kept) -> None:
            save(run_dir, *kept, 5)

        died = dies_at(number, work, prepare)
        checkpoint.sweep(run_dir / "checkpoints")
        for saved in checkpoint.checkpoints(run_dir / "checkpoints"):
            replay_files.verify(saved)
        newest = checkpoint.newest(run_dir / "checkpoints", check=replay_files.verify)
        assert newest is not None
        again = Replay(32, 2, 4, game)
        ReplayFiles(run_dir / "replay", Disk()).load(again, checkpoint.load(newest)["replay"])
        assert again.newest + 1 == 10 * int(newest.name)
        assert again.frames[again.newest % again.rows, 0, 0, 0, 0] == again.newest
        if not died:
            assert int(newest.name) == 5
            break
    print(f"{number} prefixes of a save with replay")
    assert number > 30
