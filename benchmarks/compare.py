"""Training steps a second of two source trees: what a change is worth.

    git worktree add /tmp/before HEAD~1
    python benchmarks/compare.py /tmp/before . [--algorithms ppo a2c dqn] [--env BerzerkNoFrameskip-v0] [--seconds 2]

Processes train by turns, while the others stand still, and the ratio is the median over the rounds. Both trees have to know the
names that this file imports.

One process of each would not do: processes of one tree differ by some hundredths as long as they live, most of all the one that
was started first (`docs/log.md`). So each tree has four, after one that does not count, started in an order in which neither
tree is earlier than the other.
"""

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import tyro

_STARTS = (0, 1, 1, 0, 1, 0, 0, 1)  # which of the trees: both are as early as each other, and as close to the middle


@dataclass(frozen=True)
class Options:
    """Compare two source trees."""

    trees: tyro.conf.Positional[tuple[Path, Path]]
    """Before and after."""
    algorithms: tuple[str, ...] = ("ppo", "a2c", "dqn")
    """Which to train, with their presets but for the number of games."""
    num_envs: int = 8
    """Games side by side."""
    env: str = "BerzerkNoFrameskip-v0"
    """What to play."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """fp32, bf16 or auto."""
    seconds: float = 2.0
    """Length of one measurement."""
    rounds: int = 5
    """Measurements of each process."""


def train(tree: Path, algorithm: str, options: Options, pipe: Connection) -> None:
    """In a process of its own: train for some seconds whenever told to, and answer with the steps a second."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    import dataclasses

    from envs.contract import game_seeds
    from training.config import RunConfig
    from training.loop import Turns
    from training.metrics import Clock
    from training.presets import preset
    from training.start import build_agent, open_envs, plan_of

    changes: dict[str, Any] = {"start_frames": 4_000, "capacity": 100_000} if algorithm == "dqn" else {}
    settings = dataclasses.replace(preset(algorithm, options.env), num_envs=options.num_envs, **changes)
    config = RunConfig(options.env, settings, device="cpu", precision=options.precision)
    plan = plan_of(config)
    with open_envs(config, plan) as envs:
        agent: Any = build_agent(algorithm, config, plan, envs.description)
        envs.reset([[seed] for seed in game_seeds(0, 1, range(options.num_envs))])
        updates = (None for turn in Turns(envs, agent, Clock()) if turn.metrics is not None)
        while not agent.updates:  # DQN has metrics while it fills its replay
            next(updates)
        _rate(agent, updates, 6)  # by then code lies where it will, see training/large_pages.py
        pipe.send("ready")
        with contextlib.suppress(EOFError):  # the end
            while True:
                pipe.recv()
                pipe.send(_rate(agent, updates, options.seconds))


def _rate(agent: Any, updates: Iterator[None], seconds: float) -> float:
    start, before = time.perf_counter(), agent.steps
    while time.perf_counter() - start < seconds:
        next(updates)
    return float(agent.steps - before) / (time.perf_counter() - start)


def compare(algorithm: str, options: Options) -> list[tuple[float, float]]:
    """Mean steps a second of both trees in each round, after one that does not count."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes, rounds = [], []
    try:
        for tree in (0, *_STARTS):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            processes.append(context.Process(target=train, args=(options.trees[tree].absolute(), algorithm, options, theirs)))
            processes[-1].start()
            theirs.close()  # so that its end is seen
            ours.recv()
        counted = list(zip(_STARTS, pipes[1:], strict=True))
        for number in range(options.rounds + 1):
            rates: tuple[list[float], list[float]] = ([], [])
            for tree, pipe in counted[number % len(counted) :] + counted[: number % len(counted)]:  # another begins
                pipe.send("go on")
                rates[tree].append(pipe.recv())
            rounds.append((statistics.mean(rates[0]), statistics.mean(rates[1])))
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()
    return rounds[1:]


def main() -> None:
    """Print rates and ratios."""
    options = tyro.cli(Options)
    for algorithm in options.algorithms:
        rounds = compare(algorithm, options)
        before, after = (statistics.median(rates) for rates in zip(*rounds, strict=True))
        ratios = [after / before for before, after in rounds]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{algorithm}: {before:,.0f} and {after:,.0f} steps/s, ratio {statistics.median(ratios):.2f} ({spread})", flush=True
        )


if __name__ == "__main__":
    main()
