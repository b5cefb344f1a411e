"""Replay on disk: what comes back, what is written once, and what is missing or damaged."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.replay import Replay
from envs.contract import InputError
from tests.agents.driving import describe
from training import checkpoint, replay_files
from training.disk import Disk
from training.replay_files import ReplayFiles

GAME = describe((1, 6, 6), "uint8")


def filled(steps: int) -> Replay:
    """Of two environments, with 40 rows, in which every number says where it is from."""
    replay = Replay(80, 2, 4, GAME)
    everyone = slice(0, 2)
    for t in range(steps):
        frames = np.full((2, 1, 6, 6), t % 251, np.uint8)
        replay.put_frame(t, everyone, frames, np.zeros((2, 0)), np.array([t == 0] * 2))
        if t < steps - 1:
            replay.put_outcome(t, everyone, np.array([t, -t]), *np.array([[t % 7 == 0, False]] * 3))
        replay.newest, replay.complete = t, t
    return replay


def tables(replay: Replay) -> dict[str, torch.Tensor]:
    return replay.steps(replay.oldest, replay.newest + 1)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_files, "ROWS", 16)


@pytest.mark.parametrize("steps", [1, 2, 30, 41, 75, 200])
def test_what_was_saved_comes_back(steps: int, tmp_path: Path) -> None:
    """Before and after the ring has gone round, whose oldest piece is then half overwritten."""
    files, replay = ReplayFiles(tmp_path / "replay", Disk()), filled(steps)
    state = files.save(replay, keep=True)
    again = Replay(80, 2, 4, GAME)
    ReplayFiles(tmp_path / "replay", Disk()).load(again, state)
    assert (again.newest, again.complete) == (replay.newest, replay.complete)
    for name, table in tables(replay).items():
        assert torch.equal(tables(again)[name], table), name


def test_a_piece_that_could_not_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon, not at the next checkpoint, which may be far away."""

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    files = ReplayFiles(tmp_path, Disk())
    monkeypatch.setattr(replay_files, "write_whole", broken)
    files.advance(filled(34))
    with pytest.raises(OSError, match="broken"):
        files.advance(filled(70))


def test_pieces_of_many_games_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three are in memory at once."""
    monkeypatch.setattr(replay_files, "_TRANSITIONS", 8)
    state = ReplayFiles(tmp_path, Disk()).save(filled(12), keep=True)
    assert [piece[:2] for piece in state["pieces"]] == [[0, 4], [4, 8], [8, 11]]


@pytest.mark.parametrize(("start", "stop"), [(0, 17), (0, 10**9), (3, 3), (9, 3)])
def test_the_steps_of_a_piece_are_not_a_strangers_to_choose(start: int, stop: int, tmp_path: Path) -> None:
    """They say how much it may unpack to."""
    files = ReplayFiles(tmp_path, Disk())
    state = files.save(filled(12), keep=True)
    (piece,) = tmp_path.iterdir()
    piece.rename(tmp_path / f"{start:012d}-{stop:012d}")
    state["pieces"] = [[start, stop, state["pieces"][0][2]]]
    with pytest.raises(InputError, match=f"{stop - start} steps"):
        files.load(Replay(80, 2, 4, GAME), state)


def test_a_frame_is_written_once(tmp_path: Path) -> None:
    files = ReplayFiles(tmp_path, Disk())
    first = files.save(filled(20), keep=True)
    times = {path: os.stat(path).st_mtime_ns for path in tmp_path.iterdir()}
    second = files.save(filled(38), keep=True)
    assert second["pieces"][: len(first["pieces"])] == first["pieces"]
    assert [piece[:2] for piece in second["pieces"]] == [[0, 16], [16, 19], [19, 35], [35, 37]]
    assert all(os.stat(path).st_mtime_ns == time for path, time in times.items())


def test_a_checkpoint_that_not_every_run_makes_moves_no_piece(tmp_path: Path) -> None:
    """A run was stopped after 20 steps and not after 30; both write the same pieces at 38."""
    stopped, whole = ReplayFiles(tmp_path / "stopped", Disk()), ReplayFiles(tmp_path / "whole", Disk())
    between = stopped.save(filled(20), keep=False)
    again = ReplayFiles(tmp_path / "stopped", Disk())
    again.load(Replay(80, 2, 4, GAME), between)
    expected = whole.save(filled(38), keep=True)["pieces"]
    assert stopped.save(filled(38), keep=True)["pieces"] == again.save(filled(38), keep=True)["pieces"] == expected


def test_old_steps_do_not_take_the_place_of_new_ones() -> None:
    replay, before = filled(60), filled(60)
    replay.put_steps(0, filled(35).steps(0, 34))
    for name, table in tables(before).items():
        assert torch.equal(tables(replay)[name], table), name


def test_what_no_checkpoint_needs_goes(tmp_path: Path) -> None:
    files = ReplayFiles(tmp_path, Disk())
    states = [files.save(filled(steps), keep=True) for steps in (20, 90)]
    assert states[1]["pieces"][0][0] > 19  # the first ones are older than replay
    files.sweep(states)
    assert len(list(tmp_path.iterdir())) == len(states[0]["pieces"]) + len(states[1]["pieces"])
    files.sweep(states[1:])
    assert len(list(tmp_path.iterdir())) == len(states[1]["pieces"])


def test_a_piece_that_waits_for_its_checkpoint_stays(tmp_path: Path) -> None:
    files = ReplayFiles(tmp_path, Disk())
    files.advance(filled(20))
    files._pool.submit(int).result()  # behind it
    files.sweep([])
    assert [path.name for path in tmp_path.iterdir()] == ["000000000000-000000000016"]


@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_damage_is_one_line(harm: str, tmp_path: Path) -> None:
    files = ReplayFiles(tmp_path, Disk())
    state = files.save(filled(30), keep=True)
    path = min(tmp_path.iterdir())
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if harm == "cut" else data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(InputError, match=f"{path.name} cannot be read"):
        files.load(Replay(80, 2, 4, GAME), state)


def test_a_checkpoint_whose_replay_is_damaged_is_not_whole(tmp_path: Path) -> None:
    """A thousand flipped bits and a cut at every hundredth of its length; an older checkpoint that needs other pieces is."""
    files, saved = ReplayFiles(tmp_path / "replay", Disk()), tmp_path / "checkpoints"
    for frames, steps in ((1, 20), (2, 38)):
        state = {"weights": {}, "optimizer": {}, "replay": files.save(filled(steps), keep=True)}
        checkpoint.save(saved, frames, checkpoint.encode(state))
    path, draw = max((tmp_path / "replay").iterdir()), random.Random(0)
    data = path.read_bytes()
    flips = [(draw.randrange(len(data)), 1 << draw.randrange(8)) for _ in range(1_000)]
    harms = [data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :] for at, bit in flips]
    for harm in [*harms, *(data[: len(data) * percent // 100] for percent in range(100))]:
        path.write_bytes(harm)
        newest = checkpoint.newest(saved, check=replay_files.verify, quiet=True)
        assert newest is not None and newest.name == "000000000001"
    path.write_bytes(data)
    newest = checkpoint.newest(saved, check=replay_files.verify)
    assert newest is not None and newest.name == "000000000002"
