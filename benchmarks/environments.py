"""Agent steps a second of one family's games in worker processes, against the bare library in as many processes.

    python benchmarks/environments.py [--env VizdoomBasic-v1] [--num-envs 8] [--seconds 10] [--rounds 3]

What is compared takes turns, round by round, on the same machine. The bare library is what `gymnasium.make` gives, stepped by
random actions in a loop of its own, one process a core, with the same frame skip and screen; it makes no picture smaller and
shares nothing.
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

sys.path.insert(0, str(Path(__file__).parent.parent))

from envs import registry
from envs.contract import InputError, game_seeds
from envs.workers import WorkerEnvs, usable_cores


@dataclass(frozen=True)
class Options:
    """Measure how fast games are played."""

    env: str = "VizdoomBasic-v1"
    """What to play."""
    num_envs: int = 8
    """Games at once, in the workers; the bare library plays one in each process."""
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


def bare_environment(env_id: str) -> gymnasium.Env[Any, Any]:
    """As the library gives it, with what ours plays by default."""
    if registry.family_of(env_id) != "doom":
        return gymnasium.make(env_id)
    import vizdoom

    return gymnasium.make(env_id, frame_skip=4, max_buttons_pressed=1, screen_resolution=vizdoom.ScreenResolution.RES_160X120)


def bare(env_id: str, seconds: float) -> float:
    """Agent steps a second of one environment in this process."""
    with tempfile.TemporaryDirectory() as folder:  # ViZDoom leaves its settings where it is started
        os.chdir(folder)
        return _rate(env_id, seconds)


def _rate(env_id: str, seconds: float) -> float:
    env = bare_environment(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)
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
    cores, ratios = usable_cores(), []
    context = multiprocessing.get_context("spawn")
    try:
        registry.family_of(options.env)
    except InputError as error:
        sys.exit(str(error))
    for _ in range(options.rounds):
        ours = in_workers(options)
        with context.Pool(cores) as pool:
            library = sum(pool.starmap(bare, [(options.env, options.seconds)] * cores))
        ratios.append(ours / library)
        print(f"{options.env}: workers {ours:,.0f}, bare library {library:,.0f} steps/s ({ratios[-1]:.0%})", flush=True)
    print(f"median {statistics.median(ratios):.0%} on {cores} cores")


if __name__ == "__main__":
    main()
