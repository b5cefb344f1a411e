"""Training steps a second, against stable-baselines3 with the same hyper-parameters and against the environment alone.

    python benchmarks/throughput.py [--env BerzerkNoFrameskip-v0] [--seconds 20] [--rounds 3]

What is compared takes turns, round by round, on the same machine; each ratio is the median over the rounds. A step is one agent
step (4 emulator frames); both sides play 8 games with sticky actions, see stacks of four 84x84 images, and run the same update
schedule. Only ratios mean anything: the machine may be busy with something else.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from agents import registry
from agents.torch_setup import pick_precision
from envs.contract import game_seeds
from envs.workers import WorkerEnvs, usable_cores
from training.config import RunConfig, make_plan
from training.loop import turns
from training.metrics import Clock
from training.start import build_agent, commit

NUM_ENVS = 8
WARM_UP = 0.25  # share of the seconds


@dataclass(frozen=True)
class Options:
    """Measure training throughput."""

    env: str = "BerzerkNoFrameskip-v0"
    """Atari id, screen images."""
    algorithms: tuple[str, ...] = ("ppo", "a2c", "dqn")
    """Which to measure."""
    seconds: float = 20.0
    """Length of one measurement."""
    rounds: int = 3
    """Measurements of each."""
    precision: str = "auto"
    """fp32, bf16 or auto, for ours; stable-baselines3 has fp32 only."""
    out: Path | None = None
    """JSON file for the figures."""


# The same on both sides: (ours, stable-baselines3's).
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ppo": (
        {"rollout_steps": 128, "epochs": 4, "minibatches": 4, "clip": 0.1},
        {"n_steps": 128, "n_epochs": 4, "batch_size": 256, "clip_range": 0.1, "ent_coef": 0.01, "learning_rate": 2.5e-4},
    ),
    "a2c": ({"rollout_steps": 5}, {"n_steps": 5, "ent_coef": 0.01, "vf_coef": 0.25, "learning_rate": 7e-4}),
    # One batch of 32 every four steps of all eight games, from the first thousand steps on.
    "dqn": (
        {"update_steps": 32, "batch_size": 32, "capacity": 100_000, "start_frames": 4_000},
        {"train_freq": 4, "gradient_steps": 1, "batch_size": 32, "buffer_size": 100_000, "learning_starts": 1_000},
    ),
}


def environment_rate(env_id: str, seconds: float) -> float:
    """Agent steps a second of our workers with random actions and nothing learned."""
    with WorkerEnvs(env_id, NUM_ENVS, num_groups=2) as envs:
        envs.reset([[seed] for seed in game_seeds(0, 1, range(NUM_ENVS))])
        generator = np.random.default_rng(0)

        def play() -> int:
            for group in range(2):
                envs.recv(group)
                envs.send(generator.integers(envs.description.num_actions, size=NUM_ENVS // 2), group)
            return NUM_ENVS

        return rate(play, seconds)


def our_rate(algorithm: str, env_id: str, seconds: float, precision: str) -> float:
    """Agent steps a second of our training loop."""
    config = RunConfig(env=env_id, agent=registry.ALGORITHMS[algorithm].config(num_envs=NUM_ENVS, **SETTINGS[algorithm][0]))
    bf16 = pick_precision(precision, torch.device("cpu")) == torch.bfloat16
    plan = make_plan(NUM_ENVS, usable_cores(), "cpu", "bf16" if bf16 else "fp32")
    with WorkerEnvs(env_id, NUM_ENVS, num_groups=plan.groups, num_workers=plan.workers) as envs:
        agent = build_agent(algorithm, config, plan, envs.description)
        envs.reset([[seed] for seed in game_seeds(0, 1, range(NUM_ENVS))])
        loop = turns(envs, agent, Clock())

        def train() -> int:
            before = agent.steps
            for turn in islice(loop, 4096):
                if turn.metrics is not None:
                    break
            return agent.steps - before

        return rate(train, seconds)


def sb3_rate(algorithm: str, env_id: str, seconds: float) -> float:
    """Agent steps a second of stable-baselines3, its environments in processes of their own."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

    class Watch(BaseCallback):
        def _on_training_start(self) -> None:
            self.start, self.first = time.perf_counter(), None

        def _on_step(self) -> bool:
            spent = time.perf_counter() - self.start
            if self.first is None and spent > WARM_UP * seconds and self.num_timesteps > 2_048:
                self.first = (spent, self.num_timesteps)
            self.last = (spent, self.num_timesteps)
            return self.first is None or spent - self.first[0] < seconds

    torch.set_num_threads(usable_cores())

    def make_game(**options: Any) -> Any:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)  # its processes know no Atari ids otherwise
        return gymnasium.make(env_id, **options)

    envs = VecFrameStack(make_atari_env(make_game, NUM_ENVS, seed=1, vec_env_cls=SubprocVecEnv), 4)
    watch = Watch()
    try:
        model = getattr(stable_baselines3, algorithm.upper())("CnnPolicy", envs, seed=1, device="cpu", **SETTINGS[algorithm][1])
        model.learn(10**9, callback=watch)
    finally:
        envs.close()
    assert watch.first is not None
    return (watch.last[1] - watch.first[1]) / (watch.last[0] - watch.first[0])


def rate(work: Callable[[], int], seconds: float) -> float:
    """Steps a second of something that returns how many it made, after a warm-up."""
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_UP * seconds:
        work()
    start, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        steps += work()
    return steps / spent


def processor() -> str:
    """The processor's name as Linux knows it, or its architecture."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measure, print, and write the figures where asked to."""
    options = tyro.cli(Options)
    rows: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        rows.setdefault("environment", []).append(environment_rate(options.env, options.seconds / 2))
        for algorithm in options.algorithms:
            ours = our_rate(algorithm, options.env, options.seconds, options.precision)
            rows.setdefault(f"{algorithm} ours", []).append(ours)
            rows.setdefault(f"{algorithm} sb3", []).append(sb3_rate(algorithm, options.env, options.seconds))
    median = {name: statistics.median(values) for name, values in rows.items()}
    machine = f"{usable_cores()} cores of {processor()}, torch {torch.__version__}, commit {commit()}"
    print(f"{options.env}, {machine}, {options.rounds} rounds")
    for name, values in rows.items():
        print(f"{name:>12}: {median[name]:8.0f} steps/s  ({min(values):.0f} to {max(values):.0f})")
    ratios: dict[str, float] = {}
    for algorithm in options.algorithms:
        pairs = zip(rows[f"{algorithm} ours"], rows[f"{algorithm} sb3"], rows["environment"], strict=True)
        against = [(ours / sb3, ours / environment) for ours, sb3, environment in pairs]
        for at, other in enumerate(("sb3", "environment")):
            ratios[f"{algorithm} / {other}"] = statistics.median(pair[at] for pair in against)
            print(f"{algorithm} against {other}: {ratios[f'{algorithm} / {other}']:.2f}")
    if options.out:
        options.out.write_text(
            json.dumps({"options": str(options), "machine": machine, "steps_per_second": rows, "ratios": ratios}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
