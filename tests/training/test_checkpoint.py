import json
import math
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.a2c import A2CConfig
from envs.contract import InputError, TimeStep
from training import checkpoint, start
from training.config import RunConfig
from training.disk import Disk
from training.replay_files import ReplayFiles
from training.scores import Scores

LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text("abc", max_size=3)
TENSORS = st.builds(lambda values: torch.tensor(values), st.lists(st.floats(-9, 9, width=32), max_size=4))
KEYS = st.text("abcxyz._", min_size=1, max_size=4) | st.integers(0, 9)
STATES = st.recursive(
    LEAVES | TENSORS, lambda below: st.lists(below, max_size=3) | st.dictionaries(KEYS, below, max_size=3), max_leaves=9
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@given(STATES)
def test_a_state_comes_back_from_json_and_tensors(state: Any) -> None:
    plain, tensors = checkpoint.flatten(state)
    assert same(checkpoint.unflatten(json.loads(json.dumps(plain)), tensors), state)


def scores_of(score: float | None, games: int) -> dict[str, Any]:
    """What training itself saves after some games of one score; without a score, before the first game ends."""
    scores = Scores(["Bowling-v0"])
    for _ in range(games if score is not None else 0):
        for reward, opens in ((0.0, True), (score, False)):
            flags = np.array([not opens]), np.array([False]), np.array([opens]), np.array([False])
            nothing = np.zeros((1, 1), np.float32)
            scores.watch(
                TimeStep(nothing, nothing, np.array([reward], np.float32), *flags, np.array([1], np.int32)), slice(0, 1)
            )
    return scores.state_dict()


def state_of(score: float | None, seed: int = 0, games: int = 100) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "agent": {"generator": generator.get_state(), "counters": {"frames": 7}},
        "scores": scores_of(score, games),
    }


def save(directory: Path, frames: int, state: dict[str, Any]) -> Path:
    return checkpoint.save(directory, frames, checkpoint.encode(state))


def test_a_checkpoint_holds_weights_optimizer_and_the_rest_apart(tmp_path: Path) -> None:
    state = state_of(1.0)
    path = save(tmp_path, 1_048_576, state)
    assert path == tmp_path / "000001048576"
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
        "tensors.safetensors",
        "weights.safetensors",
    ]
    loaded = checkpoint.load(path)
    assert same(loaded["weights"], dict(state["weights"]))
    assert torch.equal(loaded["agent"]["generator"], state["agent"]["generator"])
    assert same(checkpoint.load_weights(path), dict(state["weights"]))
    torch.optim.Adam(torch.nn.Linear(3, 2).parameters()).load_state_dict(loaded["optimizer"])


def test_what_could_not_be_read_back_is_not_saved() -> None:
    state = {"weights": {}, "optimizer": {}, "long": "x" * (checkpoint.MOST_JSON - 100)}
    checkpoint.encode(state)
    with pytest.raises(checkpoint.TooLargeError, match=r"a state.json of [\d,]+ bytes cannot be saved"):
        checkpoint.encode({**state, "more": "x" * 100})


def test_as_many_games_as_there_may_be_have_a_state_that_is_read(tmp_path: Path) -> None:
    """Their copies are no part of it."""
    sizes = []
    for games in (2, 6):
        config = RunConfig("Bowling-ram-v0", A2CConfig(num_envs=games), run_dir=tmp_path / str(games))
        with start.new_run("a2c", config) as run:
            path = run.save(clone=True)
        sizes.append((path / "state.json").stat().st_size)
        assert (path / "tensors.safetensors").stat().st_size > 1_000 * games
    small, large = sizes
    assert small + (large - small) / 4 * 65_536 < checkpoint.MOST_JSON / 2


def test_equal_states_make_equal_bytes(tmp_path: Path) -> None:
    first, second = (save(tmp_path / name, 5, state_of(1.0)) for name in "ab")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_nothing_but_whole_checkpoints_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5, state_of(1.0))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "sync", fail)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 6, state_of(1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["000000000005"]


def test_the_newest_three_and_the_best_are_kept(tmp_path: Path) -> None:
    for frames, score in enumerate([None, 3.0, 9.0, 4.0, 5.0, 6.0], start=1):
        checkpoint.prune(save(tmp_path, frames, state_of(score)))
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [3, 4, 5, 6]


def test_the_best_is_the_best_of_those_with_a_hundred_games(tmp_path: Path) -> None:
    for frames, (score, games) in enumerate([(9.0, 60), (4.0, 100), (3.0, 100), (3.0, 100), (3.0, 100)], start=1):
        checkpoint.prune(save(tmp_path, frames, state_of(score, games=games)))
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [2, 3, 4, 5]


def test_a_checkpoint_of_the_same_frame_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two renames, with all of the new one on the disk before the first; what a killed save left is swept away."""
    (tmp_path / ".writing-000000000004").mkdir()
    path = save(tmp_path, 5, state_of(1.0))
    calls: list[str] = []
    rename, fsync = Path.rename, os.fsync
    monkeypatch.setattr(Path, "rename", lambda self, target: calls.append(f"rename {target.name}") or rename(self, target))
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync") or fsync(descriptor))
    save(tmp_path, 5, state_of(2.0))
    files = 5
    assert calls == [*["fsync"] * (files + 1), "rename .before-000000000005", "rename 000000000005", "fsync", "fsync"]
    assert checkpoint.load(path)["scores"]["mean_100"] == 2.0
    assert list(tmp_path.iterdir()) == [path]


def test_without_any_score_only_the_newest_are_kept(tmp_path: Path) -> None:
    for frames in range(1, 6):
        checkpoint.prune(save(tmp_path, frames, state_of(None)))
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [3, 4, 5]


def test_the_one_just_saved_stays_where_later_ones_are_damaged(tmp_path: Path) -> None:
    """A run that went on from the first of four comes by the others again."""
    for frames in (1, 5, 6, 7):
        path = save(tmp_path, frames, state_of(None))
        if frames > 1:
            (path / "weights.safetensors").write_bytes(b"cut off")
    for frames in (2, 3, 4, 6):
        saved = save(tmp_path, frames, state_of(None))
        checkpoint.prune(saved)
        assert checkpoint.newest(tmp_path, quiet=True) == saved


def test_a_neighbour_that_cannot_be_read_does_not_hold_up_a_save(tmp_path: Path) -> None:
    for frames in range(1, 5):
        path = save(tmp_path, frames, state_of(1.0))
        if frames == 3:
            (path / "state.json").unlink()
            os.mkfifo(path / "state.json")
        checkpoint.prune(path)
    assert [int(path.name) for path in checkpoint.checkpoints(tmp_path)] == [2, 3, 4]
    assert len([*checkpoint.state_parts(tmp_path, "scores")]) == 2


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of somebody whom permissions bind, as whom the test runs."""
    with tempfile.TemporaryDirectory() as path:
        state_of(None)  # what is imported for it another user may not be able to read
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(path, 65_534, -1)
            os.seteuid(65_534)
        yield Path(path)
        if is_root:
            os.seteuid(0)


def test_what_cannot_be_deleted_stays_and_it_is_said_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "replay").mkdir()
    (place / "replay" / "000000000000-000000000001").write_text("")
    for frames in range(1, 7):
        path = save(place / "checkpoints", frames, state_of(None))
        if frames == 1:
            path.chmod(0o500)
            (place / "replay").chmod(0o500)
        checkpoint.prune(path)
        ReplayFiles(place / "replay", Disk()).sweep([])
    assert [int(path.name) for path in checkpoint.checkpoints(place / "checkpoints")] == [4, 5, 6]
    lines = capsys.readouterr().err.splitlines()
    names = ["000000000000-000000000001", "000000000001", ".gone-000000000001"]
    assert [line.split("/")[-1] for line in lines] == [
        f"{name} cannot be deleted (Permission denied); it is needed no more, and the run goes on" for name in names
    ]
    (place / "checkpoints" / ".gone-000000000001").chmod(0o700)
    checkpoint.sweep(place / "checkpoints")
    assert len(list((place / "checkpoints").iterdir())) == 3


def test_what_stands_in_the_way_of_a_save_has_to_go(place: Path) -> None:
    path = save(place, 1, state_of(1.0))
    aside = place / ".writing-000000000002"
    aside.mkdir()
    (aside / "state.json").write_text("")
    aside.chmod(0o500)
    with pytest.raises(PermissionError):
        save(place, 2, state_of(1.0))
    assert checkpoint.newest(place) == path


def test_what_does_not_fit_into_memory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best checkpoint, or one that has need of replay: not all memory is short for long."""
    files = ReplayFiles(tmp_path / "replay", Disk())
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "000000000000-000000000001").write_text("")
    for frames, score in enumerate([9.0, 9.5, 3.0, 3.0, 3.0], start=1):
        path = save(tmp_path / "checkpoints", frames, state_of(score) | {"replay": {"pieces": []}})
    monkeypatch.setattr(checkpoint, "free_memory", lambda: 1)
    checkpoint.prune(path)
    files.sweep(checkpoint.state_parts(path.parent, "replay"))
    assert len(checkpoint.checkpoints(path.parent)) == 5 and len(list((tmp_path / "replay").iterdir())) == 1
    monkeypatch.undo()
    checkpoint.prune(path)
    files.sweep(checkpoint.state_parts(path.parent, "replay"))
    assert [int(path.name) for path in checkpoint.checkpoints(path.parent)] == [2, 3, 4, 5]
    assert list((tmp_path / "replay").iterdir()) == []


def test_what_does_not_fit_into_memory_is_not_taken_for_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older checkpoint would lose what was learned since, without a word."""
    for frames in (1, 2):
        save(tmp_path, frames, state_of(1.0))
    for free in (1, 0):
        monkeypatch.setattr(checkpoint, "free_memory", lambda free=free: free)
        with pytest.raises(checkpoint.TooLargeError, match=rf"000000000002/.* has [\d,]+ bytes; at most {free} are read"):
            checkpoint.newest(tmp_path)


FILES = ["manifest.json", "optimizer.safetensors", "state.json", "tensors.safetensors", "weights.safetensors"]


@pytest.mark.parametrize("file", FILES)
def test_a_part_that_is_missing_or_cut_off_anywhere_is_refused(tmp_path: Path, file: str) -> None:
    """At every hundredth of its length."""
    path = save(tmp_path, 5, state_of(1.0)) / file
    data = path.read_bytes()
    for percent in range(100):
        path.write_bytes(data[: math.floor(percent / 100 * len(data))])
        with pytest.raises(InputError, match=r"no checkpoint that can be read|is damaged"):
            checkpoint.load(path.parent)
    path.unlink()
    with pytest.raises(InputError, match=r"no checkpoint that can be read"):
        checkpoint.load(path.parent)


@pytest.mark.parametrize("other", [1, checkpoint.FORMAT + 1, "3", [3]])
def test_a_checkpoint_of_another_format_is_refused(other: Any, tmp_path: Path) -> None:
    path = save(tmp_path, 5, state_of(1.0))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": other}))
    with pytest.raises(InputError, match=r"has format .*, and this version reads \(2, 3, 4\)"):
        checkpoint.load(path)


def test_no_flipped_bit_is_read(tmp_path: Path) -> None:
    """A thousand, anywhere in any file; those in names and blanks of the manifest may be harmless, but never change a state."""
    path = save(tmp_path, 5, state_of(1.0))
    whole = checkpoint.load(path)
    draw = random.Random(0)
    refused = 0
    for _ in range(1_000):
        file = path / draw.choice(FILES)
        data = bytearray(file.read_bytes())
        kept = bytes(data)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        try:
            assert same(checkpoint.load(path), whole)
        except InputError:
            refused += 1
        file.write_bytes(kept)
    assert refused > 900


def test_the_newest_whole_checkpoint_is_taken_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [save(tmp_path, frames, state_of(1.0)) for frames in (1, 2, 3)]
    assert checkpoint.newest(tmp_path) == paths[2]
    assert checkpoint.newest(tmp_path / "none") is None
    (paths[2] / "weights.safetensors").write_bytes(b"")
    assert checkpoint.newest(tmp_path) == paths[1]
    assert "000000000003/weights.safetensors is damaged" in capsys.readouterr().err
    for path in paths[:2]:
        (path / "manifest.json").unlink()
    with pytest.raises(checkpoint.NoCheckpointError, match="none of the 3 checkpoints"):
        checkpoint.newest(tmp_path)
