"""Agent steps a second of one family's games in worker processes, against the bare library in as many processes.

    python benchmarks/environments.py [--env VizdoomBasic-v1] [--num-envs 16] [--processes N] [--seconds 10] [--rounds 3]

What is compared takes turns, round by round, on the same machine. The bare library is what `gymnasium.make` gives, stepped by
random actions in a loop of its own, one process a game, with the same frame skip and screen. It makes no picture smaller but
for Atari, where `AtariPreprocessing` does (`--raw` leaves that out). With `--processes` it plays fewer games: one a core is the
most that the cores can give.
Only the ratio means anything: the machine may be busy with something else.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro
from gymnasium.wrappers import AtariPreprocessing

sys.path.insert(0, str(Path(__file__).parent.parent))

from envs import registry
from envs.contract import InputError, game_seeds
from envs.cores import usable_cores
from envs.workers import WorkerEnvs

_all_ready: Any = None  # in a process of the bare library: the barrier at which it waits for the others


@dataclass(frozen=True)
class Options:
    """Measure how fast games are played."""

    env: str = "VizdoomBasic-v1"
    """What to play."""
    num_envs: int = 16
    """Games at once."""
    processes: int | None = None
    """Games of the bare library, each in a process of its own; as many as --num-envs where not given."""
    raw: bool = False
    """Leave Atari's pictures in the bare library as they are, while the workers make theirs small and grey."""
    seconds: float = 10.0
    """Length of one measurement."""
    rounds: int = 3
    """Measurements of each."""


def in_workers(options: Options) -> float:
    """Agent steps a second; two groups take turns where the games divide into two."""
    num_groups = 1 if options.num_envs % 2 else 2
    with WorkerEnvs(options.env, options.num_envs, num_groups=num_groups) as envs:
        actions = np.random.default_rng(0).integers(envs.description.num_actions, size=(1000, options.num_envs))
        envs.reset([game_seeds(0, slot, range(1)) for slot in range(options.num_envs)])
        steps, start = 0, 0.0
        while not start or time.perf_counter() - start < options.seconds:
            for group, slots in enumerate(envs.groups):
                envs.recv(group)
                envs.send(actions[steps % 1000, slots], group)
            steps += 1
            if steps == 50:
                start, steps = time.perf_counter(), 51
        return (steps - 51) * options.num_envs / (time.perf_counter() - start)


def bare_environment(env_id: str, *, raw: bool) -> gymnasium.Env[Any, Any]:
    """As the library gives it, with what ours plays by default."""
    family = registry.family_of(env_id)
    if family == "atari":
        return _bare_atari(env_id, raw=raw)
    if family != "doom":
        return gymnasium.make(env_id)
    import vizdoom

    return gymnasium.make(env_id, frame_skip=4, max_buttons_pressed=1, screen_resolution=vizdoom.ScreenResolution.RES_160X120)


def _bare_atari(env_id: str, *, raw: bool) -> gymnasium.Env[Any, Any]:
    """The game of an id without `-ram`, which nobody registers; a NoFrameskip id with four frames a step."""
    game, ram = env_id.replace("-ram", ""), "-ram" in env_id
    skip = 4 if "NoFrameskip" in game else 1  # the others skip frames themselves
    if ram or raw:
        options: dict[str, Any] = {"obs_type": "ram" if ram else "rgb", **({"frameskip": skip} if skip > 1 else {})}
        return gymnasium.make(game, **options)
    return AtariPreprocessing(gymnasium.make(game), noop_max=0, frame_skip=skip)


def bare(options: Options) -> float:
    """Agent steps a second of one environment in each of some processes, together; they are timed once all of them play."""
    context = multiprocessing.get_context("spawn")
    processes = options.processes or options.num_envs
    with context.Pool(processes, _wait_together, [context.Barrier(processes, timeout=120)]) as pool:
        return sum(pool.map(_in_process, [options] * processes, chunksize=1))


def _wait_together(barrier: Any) -> None:
    global _all_ready
    _all_ready = barrier


def _in_process(options: Options) -> float:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # libraries greet there
    os.dup2(nowhere, 2)
    with tempfile.TemporaryDirectory() as folder:  # ViZDoom leaves its settings where it is started
        os.chdir(folder)
        return _rate(bare_environment(options.env, raw=options.raw), options.seconds)


def _rate(env: gymnasium.Env[Any, Any], seconds: float) -> float:
    env.action_space.seed(0)
    env.reset(seed=0)
    _all_ready.wait()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Print the rates of each round, and the median ratio."""
    options = tyro.cli(Options)
    ratios = []
    try:
        registry.family_of(options.env)
    except InputError as error:
        sys.exit(str(error))
    for _ in range(options.rounds):
        ours, library = in_workers(options), bare(options)
        ratios.append(ours / library)
        print(f"{options.env}: workers {ours:,.0f}, bare library {library:,.0f} steps/s ({ratios[-1]:.0%})", flush=True)
    processes = options.processes or options.num_envs
    print(f"median {statistics.median(ratios):.0%} of {processes} processes on {usable_cores()} cores")


if __name__ == "__main__":
    main()
