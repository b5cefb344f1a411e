"""A run that was stopped or killed, however often, is at its end the run that never was: every byte of its checkpoint."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from agents.agent import BrokenOff
from agents.dqn import DQN
from envs.contract import InputError
from envs.shared_memory import RESTORE
from envs.worker_handle import WorkerHandle
from tests.envs.test_processes import alive, children, names_in_memory
from tests.test_train import wait_for
from train import main as train_main
from training import checkpoint, metrics, start
from training.config import RunConfig
from training.loop import Run, Stopped
from training.presets import preset

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {
        "num_envs": 4,
        "rollout_steps": 16,
        "epochs": 2,
        "minibatches": 2,
        "memory": "gru",
        "memory_steps": 8,
        "reward": "normalize",
    },
    "a2c": {"num_envs": 4},
    "dqn": {"num_envs": 4, "capacity": 500, "update_steps": 16, "batch_size": 16},
}
ENVS = {"Berzerk-v0": 3_000, "Bowling-ram-v0": 6_000, "CartPole-v1": 1_000}  # emulator frames
Trainer = Callable[..., "subprocess.Popen[str]"]
PAIRS = [(algorithm, env) for algorithm in SETTINGS for env in ENVS]
KILLED = [pair for pair in PAIRS if pair[1] != "CartPole-v1"]
_LONGER = [("a2c", "Bowling-ram-v0"), ("dqn", "Bowling-ram-v0")]  # `make test` kills these, and leaves out stopping them here
IN_ANY_TURN = [pytest.param(*pair, marks=[pytest.mark.slow] if pair in _LONGER else []) for pair in PAIRS]


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

    with run, patch.object(run.scores, "watch", watch):  # called once a turn
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


@pytest.mark.parametrize(("algorithm", "env"), IN_ANY_TURN)
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


def test_a_worker_that_dies_while_a_run_resumes_is_no_fault_of_the_checkpoint(
    whole: Callable[[str, str], tuple[Path, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, _ = whole("ppo", "CartPole-v1")
    shutil.copytree(reference, tmp_path / "run")
    send = WorkerHandle.write

    def kill_first(self: WorkerHandle, signal_byte: int) -> None:
        if signal_byte == RESTORE:
            self._process.kill()
            self._process.wait()
        send(self, signal_byte)

    monkeypatch.setattr(WorkerHandle, "write", kill_first)
    with pytest.raises(InputError, match="may be whole: a worker process ended on its own with exit status -9"):
        start.old_run(tmp_path / "run")


@pytest.mark.parametrize("env", [pytest.param("Bowling-ram-v0", marks=pytest.mark.slow), "CartPole-v1"])
def test_a_run_with_a_lag_that_was_stopped_ends_as_if_it_never_was(env: str, tmp_path: Path) -> None:
    """In the first turn, twice in an update that is broken off, in random turns, and in the last update."""

    def config(name: str) -> RunConfig[Any]:
        plain = config_of("ppo", env, tmp_path / name)
        return dataclasses.replace(plain, agent=dataclasses.replace(plain.agent, lag=1))

    turns = train(start.new_run("ppo", config("whole")), [])
    behind = 2 * 16 + 1  # turns: an update has just begun
    stops = sorted([1, behind, behind + 1, *random.Random(env).sample(range(behind + 2, turns - 1), 3), turns - 1])
    at, run, broken_off = 0, start.new_run("ppo", config("stopped")), 0
    for stop in stops:
        agent: Any = run.agent
        if stop in (behind, behind + 1):
            agent.gradient_step = functools.partial(slowly, agent.gradient_step)
        at += train(run, [stop - at])
        if at < turns:
            saved = checkpoint.checkpoints(tmp_path / "stopped" / "checkpoints")[-1]
            broken_off += checkpoint.load(saved)["agent"]["lag"]["waits"]
            run = start.old_run(tmp_path / "stopped")
    agent = run.agent
    agent.gradient_step = functools.partial(signalled, agent, agent.gradient_step)  # in the learner's thread
    with run, pytest.raises(Stopped):
        run.train(lambda row: None)
    saved = checkpoint.checkpoints(tmp_path / "stopped" / "checkpoints")[-1]
    assert checkpoint.load(saved)["agent"]["lag"]["taken"]
    train(start.old_run(tmp_path / "stopped"), [])
    assert broken_off >= 2
    assert last_of(tmp_path / "stopped") == last_of(tmp_path / "whole")
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_an_update_beside_playing_does_not_outlive_its_run(tmp_path: Path) -> None:
    agent = dataclasses.replace(config_of("ppo", "CartPole-v1", tmp_path).agent, lag=1, epochs=1_000)
    run = start.new_run("ppo", RunConfig("CartPole-v1", agent, total_frames=1_000, run_dir=tmp_path / "run"))
    turns = itertools.count()

    def watch(*_: Any) -> None:
        if next(turns) == 2 * 16 + 2:
            raise KeyboardInterrupt

    with patch.object(run.scores, "watch", watch), run, pytest.raises(KeyboardInterrupt):
        run.train(lambda row: None)
    trained: Any = run.agent
    with pytest.raises(BrokenOff):
        trained.learner._running.result(timeout=10)


def signalled(agent: Any, function: Callable[..., Any], *args: Any) -> Any:
    """A gradient step; in the update that learns from a whole rollout before the next one begins, a signal comes first."""
    if agent.learner._taken and not agent.hurry:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    return function(*args)


def slowly(function: Callable[..., Any], *args: Any) -> Any:
    time.sleep(0.1)
    return function(*args)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize(("algorithm", "env", "changes"), [*((*pair, {}) for pair in PAIRS), ("ppo", "Berzerk-v0", {"lag": 1})])
def test_on_cuda_a_run_that_repeats_itself_goes_on_as_if_it_never_stopped(
    algorithm: str, env: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """With `--deterministic`: the same run twice, the second stopped in four turns; in bfloat16 where the device has it."""

    def config(name: str) -> RunConfig[Any]:
        plain = config_of(algorithm, env, tmp_path / name)
        agent = dataclasses.replace(plain.agent, **changes)
        return dataclasses.replace(plain, agent=agent, device="cuda", deterministic=True)

    turns = train(start.new_run(algorithm, config("whole")), [])
    at, stops = 0, sorted([2, *random.Random(f"{algorithm} {env}").sample(range(3, turns), 3)])
    run = start.new_run(algorithm, config("stopped"))
    for stop in [*stops, turns + 1]:
        at += train(run, [stop - at])
        if at < turns:
            run = start.old_run(tmp_path / "stopped")
    assert last_of(tmp_path / "stopped") == last_of(tmp_path / "whole")
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("algorithm", "env"), KILLED)
def test_a_run_that_is_killed_ends_as_if_it_never_was(
    algorithm: str,
    env: str,
    whole: Callable[[str, str], tuple[Path, int]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    trainer: Trainer,
) -> None:
    """Real processes, SIGKILL and SIGTERM in random moments of their progress, by turns; nothing of them is left.

    A run that comes to its end before it was killed often enough is followed by another.
    """
    reference, _ = whole(algorithm, env)
    draw, shared = random.Random(f"{algorithm} {env}"), names_in_memory()
    kills = len(range(KILLED.index((algorithm, env)), request.config.getoption("--kills"), len(KILLED)))  # of them all
    signals, hits = itertools.cycle((signal.SIGKILL, signal.SIGTERM)), [0]
    while sum(hits) < kills:
        killed = tmp_path / f"killed {len(hits)}"
        with start.new_run(algorithm, config_of(algorithm, env, killed)):
            pass  # config.json is written
        code = None
        while code != 0:
            began = inode(killed)
            process = trainer("resume", killed)
            workers: list[int] = []
            if sum(hits) < kills:
                early = draw.random() < 0.2
                if early:
                    time.sleep(draw.uniform(0, 3))  # while it starts, or soon after
                else:
                    more = draw.randrange(20, 200) / 1_000 * ENVS[env] * 4 / kills
                    wait_for_frames(process, killed, began, more)
                workers, kill = children(process.pid), next(signals)
                hits[-1] += process.poll() is None
                process.send_signal(kill)
                if kill == signal.SIGTERM and not early:  # as where a whole job is ended
                    for worker in workers:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(worker, kill)
            _, said = process.communicate(timeout=180)
            code = process.returncode
            assert "Traceback" not in said
            assert code in (0, -signal.SIGKILL, 143, -signal.SIGTERM)  # the last while it starts
            wait_for(functools.partial(gone, workers), seconds=5)
            assert names_in_memory() == shared
        assert last_of(killed) == last_of(reference)
        assert rows_of(killed) == rows_of(reference)
        frames = [row["frames"] for row in rows_of(killed)]
        assert frames == sorted(set(frames))
        hits.append(0)
    print(f"{algorithm} on {env}: killed {' + '.join(map(str, hits[:-1]))} times")


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    """Starts processes of `train.py`; neither they nor their workers outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(*args: str | Path) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "train.py"), *map(str, args)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        return processes[-1]

    yield start_one
    for process in processes:
        workers = children(process.pid) if process.poll() is None else []
        process.kill()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        process.wait()


def gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


def inode(run_dir: Path) -> int:
    """Of the metrics, which are written anew when training begins or goes on."""
    path = run_dir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def wait_for_frames(process: "subprocess.Popen[str]", run_dir: Path, began: int, more: float) -> None:
    """Until it goes on and has trained so many frames more, or is done."""
    saved = checkpoint.checkpoints(run_dir / "checkpoints")
    end = more + (int(saved[-1].name) if saved else 0)
    while process.poll() is None and inode(run_dir) == began:
        time.sleep(0.01)
    while process.poll() is None and not any(row["frames"] >= end for row in metrics.read(run_dir / "metrics.jsonl")):
        time.sleep(0.01)


@pytest.mark.parametrize("env", [pytest.param("Bowling-ram-v0", marks=pytest.mark.slow), "CartPole-v1"])
def test_a_signal_in_an_update_undoes_it(env: str, whole: Callable[[str, str], tuple[Path, int]], tmp_path: Path) -> None:
    """In the third gradient step of an update, twice; the runs that go on make it again."""
    reference, _ = whole("ppo", env)
    stopped = tmp_path / "stopped"
    run = start.new_run("ppo", config_of("ppo", env, stopped))
    for _ in range(2):
        stop_in_update(run, 3)
        run = start.old_run(stopped)
    with run, pytest.raises(KeyboardInterrupt):  # as a kill would end it, when the update has its row
        run.train(raise_interrupt)
    train(start.old_run(stopped), [])
    assert last_of(stopped) == last_of(reference)
    assert rows_of(stopped) == rows_of(reference)


def stop_in_update(run: Run, number: int) -> None:
    """Train until the third gradient step of an update; each has two epochs of two."""
    agent: Any = run.agent
    steps, step = itertools.count(), agent.gradient_step

    def watched(*args: Any) -> Any:
        if next(steps) == 4 * number + 2:
            run._on_signal(signal.SIGINT, None)
        return step(*args)

    agent.gradient_step = watched
    with run, pytest.raises(Stopped):
        run.train(lambda row: None)
    assert next(steps) == 4 * number + 3  # the update did not go on


def raise_interrupt(_: dict[str, float]) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["the last turn but one", "the last update"])
def test_a_run_that_was_stopped_behind_its_last_frame_is_not_at_its_end(
    at: str, whole: Callable[[str, str], tuple[Path, int]], tmp_path: Path
) -> None:
    reference, turns = whole("ppo", "Bowling-ram-v0")
    updates = checkpoint.load(checkpoint.checkpoints(reference / "checkpoints")[-1])["agent"]["counters"]["updates"]
    stopped = tmp_path / "stopped"
    run = start.new_run("ppo", config_of("ppo", "Bowling-ram-v0", stopped))
    if at == "the last update":
        stop_in_update(run, updates - 1)
    else:
        train(run, [turns - 1])
    assert int(checkpoint.checkpoints(stopped / "checkpoints")[-1].name) >= run.total_frames
    assert train_main(["resume", str(stopped)]) == 0
    assert last_of(stopped) == last_of(reference)
    assert rows_of(stopped) == rows_of(reference)
    last = (stopped / "metrics.jsonl").stat().st_mtime_ns
    assert train_main(["resume", str(stopped)]) == 0
    assert (stopped / "metrics.jsonl").stat().st_mtime_ns == last  # now it is


@pytest.mark.parametrize(("algorithm", "turn"), [("ppo", 30), ("a2c", 8)])
def test_a_run_that_was_stopped_before_its_first_update_writes_the_same_rows(
    algorithm: str, turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row comes every 200 frames here; rollouts have 64 and 20, 32 and 10 turns."""
    monkeypatch.setattr(metrics, "ROWS", 10)
    for name, stops in (("whole", [10**9]), ("stopped", [turn, 10**9])):
        run = start.new_run(algorithm, config_of(algorithm, "CartPole-v1", tmp_path / name))
        for stop in stops:
            train(run, [stop])
            if stop < 10**9:
                run = start.old_run(tmp_path / name)
    assert len(rows_of(tmp_path / "whole")) > 1
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")
    assert last_of(tmp_path / "stopped") == last_of(tmp_path / "whole")


@pytest.mark.parametrize("algorithm", ["dqn", pytest.param("a2c", marks=pytest.mark.slow), "ppo"])
def test_a_signal_while_it_saves_leaves_two_checkpoints(
    algorithm: str, whole: Callable[[str, str], tuple[Path, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The periodic one, which was on its way, and its own; the run goes on from either."""
    reference, _ = whole(algorithm, "Bowling-ram-v0")
    stopped, save, calls = tmp_path / "stopped", checkpoint.save, itertools.count()
    run = start.new_run(algorithm, config_of(algorithm, "Bowling-ram-v0", stopped))

    def slowly(*args: Any) -> Path:
        if next(calls) == 1:
            wait_for(lambda: run.agent.frames > args[1])  # else its own would be in place of this one
            signal.raise_signal(signal.SIGTERM)  # from the thread that writes; the main thread takes it
            time.sleep(0.5)
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", slowly)
    with run, pytest.raises(Stopped):
        run.train(lambda row: None)
    assert len(checkpoint.checkpoints(stopped / "checkpoints")) == 3
    shutil.copytree(stopped, tmp_path / "earlier")
    shutil.rmtree(checkpoint.checkpoints(tmp_path / "earlier" / "checkpoints")[-1])
    for run_dir in (stopped, tmp_path / "earlier"):
        train(start.old_run(run_dir), [])
        assert last_of(run_dir) == last_of(reference)
        assert rows_of(run_dir) == rows_of(reference)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_update_of_minutes_does_not_hold_up_a_signal(number: int, tmp_path: Path, trainer: Trainer) -> None:
    update = ["--num-envs", "4", "--rollout-steps", "64", "--epochs", "1000"]
    process = trainer("ppo", "--env", "Berzerk-v0", *update, "--run-dir", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    wait_for(lambda: stand_still(children(process.pid)))  # the rollout is full
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    state = checkpoint.load(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert state["turns"]["observed"]
    assert state["agent"]["counters"]["updates"] == 0


def stand_still(pids: list[int]) -> bool:
    """Whether processes use no processor for a second."""

    def used() -> list[str]:
        return [Path(f"/proc/{pid}/schedstat").read_text().split()[0] for pid in pids]

    before = used()
    time.sleep(1)
    return used() == before


@pytest.mark.parametrize("first", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_second_signal_ends_it_at_once(first: int, tmp_path: Path, trainer: Trainer) -> None:
    """The first one waits for a game that takes a minute to step."""
    game = ["--env", "tests.envs.own_games:Stuck-v0", "--torso", "impala", "--num-envs", "2"]
    process = trainer("a2c", *game, "--run-dir", tmp_path / "run")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
    time.sleep(1)  # by now the second step has begun
    workers = children(process.pid)
    process.send_signal(first)
    time.sleep(1)
    process.send_signal(signal.SIGHUP)  # from a terminal that closes, and no impatience
    time.sleep(0.5)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
    print(f"ended in {time.monotonic() - sent:.3f} s")
    assert workers
    for worker in workers:  # they sleep in the game for a minute, and then find the trainer gone
        os.kill(worker, signal.SIGKILL)


def test_two_processes_do_not_train_one_run(tmp_path: Path, trainer: Trainer) -> None:
    config = dataclasses.replace(config_of("a2c", "CartPole-v1", tmp_path / "run"), total_frames=2 * 10**6)
    with start.new_run("a2c", config):
        pass
    first = trainer("resume", tmp_path / "run")
    wait_for(lambda: checkpoint.checkpoints(tmp_path / "run" / "checkpoints"))
    second = trainer("resume", tmp_path / "run")
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"run is being trained by process {first.pid} on " in said
    assert said.count("\n") == 1
    first.kill()
    first.communicate()
    third = trainer("resume", tmp_path / "run")  # the lock of a killed process is none
    frames = len(metrics.read(tmp_path / "run" / "metrics.jsonl"))
    wait_for(lambda: len(metrics.read(tmp_path / "run" / "metrics.jsonl")) != frames)
    third.send_signal(signal.SIGTERM)
    third.communicate(timeout=60)
    assert third.returncode == 143


def test_without_its_replay_a_run_fills_it_again_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With no piece on the disk. Nothing is learned until replay has as much as at the start."""
    agent = dataclasses.replace(config_of("dqn", "Bowling-ram-v0", tmp_path).agent, start_frames=600)
    config = RunConfig(
        "Bowling-ram-v0", agent, total_frames=12_000, checkpoint_frames=3_000, run_dir=tmp_path / "run", save_replay=False
    )
    train(start.new_run("dqn", config), [300])
    assert not (tmp_path / "run" / "replay").exists()
    with start.old_run(tmp_path / "run") as run:
        dqn: Any = run.agent
        frames, updates = dqn.frames, dqn.updates
        assert updates > 0
        assert dqn.replay.first > 0
        assert dqn.replay.newest - dqn.replay.first <= dqn.replay.depth + 1
        while dqn.frames < frames + 500:
            next(run.turns)
        assert dqn.updates == updates
        while dqn.frames < frames + 900:
            next(run.turns)
        assert dqn.updates > updates
    assert train_main(["resume", str(tmp_path / "run")]) == 0
    assert "replay begins anew, since --no-save-replay asked for it" in capsys.readouterr().err


def test_a_replay_of_an_older_version_fills_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held what had been made of rewards; what is saved then is whole, and goes on as it is."""
    agent = dataclasses.replace(config_of("dqn", "Bowling-ram-v0", tmp_path).agent, start_frames=600, reward="scale")
    config = RunConfig("Bowling-ram-v0", agent, total_frames=12_000, checkpoint_frames=3_000, run_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        whole = DQN.state_dict
        patch.setattr(DQN, "state_dict", lambda agent: {**whole(agent), "rewards": agent.rewards.state_dict()})
        train(start.new_run("dqn", config), [300])
    with start.old_run(tmp_path / "run") as run:
        dqn: Any = run.agent
        updates, frames = dqn.updates, dqn.frames
        assert updates > 0
        assert dqn.replay.forgotten
        assert dqn.filling
        while dqn.frames < frames + 900:
            next(run.turns)
        assert dqn.updates > updates
        held = dqn.replay.first
        run.save(clone=True)
    with start.old_run(tmp_path / "run") as run:
        assert run.agent.replay is not None
        assert run.agent.replay.first == held
        assert not run.agent.replay.forgotten


def test_the_directory_says_which_checkpoints_need_which_pieces_of_replay(tmp_path: Path) -> None:
    """Nothing is left of what is older than replay, and everything is there that the oldest checkpoint needs."""
    train(start.new_run("dqn", config_of("dqn", "CartPole-v1", tmp_path / "run")), [])
    there = {path.name for path in (tmp_path / "run" / "replay").iterdir()}
    needed = set()
    for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints"):
        state = json.loads((path / "state.json").read_text())["replay"]
        needed |= {f"{first:012d}-{stop:012d}" for first, stop, _ in state["pieces"]}
    assert there == needed
    assert min(int(name.split("-")[0]) for name in there) > 0
