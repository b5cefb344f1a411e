"""A run that was stopped or killed, however often, is at its end the run that never was: every byte of its checkpoint."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import checkpoint, metrics, start
from training.config import RunConfig
from training.loop import Run, Stopped
from training.presets import preset

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"num_envs": 4, "rollout_steps": 16, "minibatches": 2, "memory": "gru", "memory_steps": 8, "reward": "normalize"},
    "a2c": {"num_envs": 4},
    "dqn": {"num_envs": 4, "capacity": 500, "update_steps": 16, "batch_size": 16},
}
ENVS = {"Berzerk-v0": 6_000, "Bowling-ram-v0": 12_000, "CartPole-v1": 2_000}  # emulator frames
PAIRS = [(algorithm, env) for algorithm in SETTINGS for env in ENVS]


def config_of(algorithm: str, env: str, run_dir: Path) -> RunConfig[Any]:
    agent = type(preset(algorithm, env))(**{**vars(preset(algorithm, env)), **SETTINGS[algorithm]})
    return RunConfig(env, agent, total_frames=ENVS[env], checkpoint_frames=ENVS[env] // 4, run_dir=run_dir)


def last_of(run_dir: Path) -> dict[str, bytes]:
    path = checkpoint.checkpoints(run_dir / "checkpoints")[-1]
    return {path.name: b"", **{file.name: file.read_bytes() for file in path.iterdir()}}


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    rows = metrics.read(run_dir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "speed/"))} for row in rows]


def train(run: Run, stops: list[int]) -> int:
    """Train to the end or to the next stop; returns the turns that were taken."""
    taken = 0
    advance = run.scores.watch

    def watch(*args: Any) -> None:
        nonlocal taken
        taken += 1
        advance(*args)
        if taken in stops:
            run._on_signal(signal.SIGTERM, None)

    run.scores.watch = watch  # type: ignore[method-assign] # called once a turn
    with run:
        try:
            run.train(lambda row: None)
        except Stopped:
            assert taken in stops
    return taken


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, int]]:
    """The run that is never stopped, and its turns: one for each pair."""

    @functools.cache
    def trained(algorithm: str, env: str) -> tuple[Path, int]:
        run_dir = tmp_path_factory.mktemp("whole") / f"{algorithm}-{env}"
        return run_dir, train(start.new_run(algorithm, config_of(algorithm, env, run_dir)), [])

    return trained


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("algorithm", "env"), PAIRS)
def test_a_run_that_was_stopped_in_any_turn_ends_as_if_it_never_was(
    algorithm: str, env: str, whole: Callable[[str, str], tuple[Path, int]], tmp_path: Path
) -> None:
    """In the first two turns, twice in a row, and in random ones: in rollouts, before and behind checkpoints."""
    reference, turns = whole(algorithm, env)
    draw = random.Random(f"{algorithm} {env}")
    at, stops = 0, sorted([1, 2, *draw.sample(range(3, turns), 3)])
    stopped = tmp_path / "stopped"
    run = start.new_run(algorithm, config_of(algorithm, env, stopped))
    for stop in [*stops, turns + 1]:
        at += train(run, [stop - at])
        if at < turns:
            run = start.old_run(stopped)
            assert run.envs.strays == []
    assert at == turns
    assert last_of(stopped) == last_of(reference)
    assert rows_of(stopped) == rows_of(reference)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("algorithm", "env"), [pair for pair in PAIRS if pair[1] != "CartPole-v1"])
def test_a_run_that_is_killed_ends_as_if_it_never_was(
    algorithm: str, env: str, whole: Callable[[str, str], tuple[Path, int]], tmp_path: Path
) -> None:
    """Real processes, SIGKILL and SIGTERM in random moments of their progress, four times a run."""
    reference, _ = whole(algorithm, env)
    killed = tmp_path / "killed"
    start.new_run(algorithm, config_of(algorithm, env, killed)).envs.close()  # writes config.json
    draw = random.Random(f"{algorithm} {env}")
    for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, None):
        command = [sys.executable, str(ROOT / "train.py"), "resume", str(killed)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        if kill is not None:
            more = draw.randrange(20, 200) / 1_000 * ENVS[env]
            _wait_for_frames(process, killed, more)
            process.send_signal(kill)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said
    assert process.returncode == 0
    assert last_of(killed) == last_of(reference)
    assert rows_of(killed) == rows_of(reference)
    frames = [row["frames"] for row in rows_of(killed)]
    assert frames == sorted(set(frames))


def _wait_for_frames(process: "subprocess.Popen[str]", run_dir: Path, more: float) -> None:
    """Until it has trained so many frames more, or is done."""
    saved = checkpoint.checkpoints(run_dir / "checkpoints")
    end = more + (int(saved[-1].name) if saved else 0)
    while process.poll() is None and not any(row["frames"] >= end for row in metrics.read(run_dir / "metrics.jsonl")):
        time.sleep(0.01)


def test_the_directory_says_which_checkpoints_need_which_pieces_of_replay(tmp_path: Path) -> None:
    """Nothing is left of what is older than replay, and everything is there that the oldest checkpoint needs."""
    train(start.new_run("dqn", config_of("dqn", "CartPole-v1", tmp_path / "run")), [])
    there = {path.name for path in (tmp_path / "run" / "replay").iterdir()}
    needed = set()
    for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints"):
        state = json.loads((path / "state.json").read_text())["replay"]
        needed |= {f"{first:012d}-{stop:012d}" for first, stop in state["pieces"]}
    assert there == needed
    assert min(int(name.split("-")[0]) for name in there) > 0
