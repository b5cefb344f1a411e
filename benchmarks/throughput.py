"""Training steps a second: against the limit that its parts set, and against stable-baselines3 on the same work.

    python benchmarks/throughput.py [--cases ppo a2c dqn] [--seconds 10] [--rounds 3] [--device cpu]
    python benchmarks/throughput.py --groups 4 --out four.json

A step is one agent step. Where stable-baselines3 stands beside ours, both play 8 games of `BerzerkNoFrameskip-v0` with sticky
actions, see stacks of four 84x84 images, and run the same update schedule. The limit is `1 / (1/e + 1/f + k/l)`:

    e   steps a second of the games alone on every core, random actions, nothing learned: ours or ale-py's AtariVectorEnv,
        whichever is faster
    f   observations a second that pass forward through the network, in batches of a group, on every core at once
    l   samples a second of gradient steps (forward, backward, optimiser), in batches of the run's size, shared as in training
    k   samples that are learned from for each step

in the precision of the run. It is a limit where each part fills the same cores; with a GPU, or with cores that no worker takes,
parts run beside each other. l has the forward pass, which A2C leaves out where acting has made it. The samples of f and l lie
ready: what stacking, storing, sampling, counting and waiting cost is the distance from it.

Everything of a case is open at once, and within a round its parts take turns, a tenth of their time each, in whole updates
where they learn. So a machine that is fast in one second and slow in the next is so for all of them alike. The cases take turns
round by round; a ratio is the median over the rounds. Only ratios mean anything: the machine may be busy with something else.
Each round of a case has a process of its own, since some are slower than others as long as they live (`docs/log.md`), and
stable-baselines3 another one, in which this project sets nothing.
"""

import dataclasses
import json
import multiprocessing
import platform
import re
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import tyro
from gymnasium.spaces import Discrete
from sb3 import stable_baselines3
from torch import Tensor, nn
from turns import Part, Work, rate, take_turns

sys.path.insert(0, str(Path(__file__).parent.parent))

from agents.networks import Inputs
from agents.shards import Threads
from agents.torch_setup import pick_device
from envs import atari
from envs.contract import game_seeds
from envs.cores import usable_cores
from envs.workers import WorkerEnvs
from training.config import Plan, RunConfig
from training.loop import Turns
from training.metrics import Clock
from training.presets import preset
from training.start import build_agent, commit, open_envs, plan_of

RESULTS = Path(__file__).parent / "results"
_PIXELS = "BerzerkNoFrameskip-v0"


@dataclass(frozen=True)
class Case:
    """Something to train: the preset of an algorithm on a game, changed by `ours`."""

    algorithm: str
    env: str
    ours: dict[str, Any]
    sb3: dict[str, Any] | None = None
    """The same work in stable-baselines3's words; None where it is not compared."""


_PPO = {"rollout_steps": 128, "epochs": 4, "minibatches": 4, "clip": 0.1}
_PPO_SB3 = {"n_steps": 128, "n_epochs": 4, "batch_size": 256, "clip_range": 0.1, "ent_coef": 0.01, "learning_rate": 2.5e-4}
_A2C_SB3 = {"n_steps": 5, "ent_coef": 0.01, "vf_coef": 0.25, "learning_rate": 7e-4}
_DQN = {"batch_size": 32, "capacity": 100_000, "start_frames": 4_000}
_DQN_SB3 = {
    "train_freq": 4,
    "gradient_steps": 1,
    "batch_size": 32,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "exploration_initial_eps": 0.01,  # where it explores it leaves the forward pass out, which ours never does
    "exploration_final_eps": 0.01,
}
CASES = {
    "ppo": Case("ppo", _PIXELS, {"num_envs": 8, **_PPO}, _PPO_SB3),
    "a2c": Case("a2c", _PIXELS, {"num_envs": 8, "rollout_steps": 5}, _A2C_SB3),
    "dqn": Case("dqn", _PIXELS, {"num_envs": 8, "update_steps": 32, **_DQN}, _DQN_SB3),  # a batch every 4 steps of all 8 games
    "dqn-nature": Case("dqn", _PIXELS, {"num_envs": 8, "update_steps": 4, **_DQN}),  # 8 samples a step
    "ppo-ram": Case("ppo", "Bowling-ram-v0", {}),
    "ppo-doom": Case("ppo", "VizdoomBasic-v1", {}),
}
# Only where its engine is installed, so only where it is named.
LAB_CASES = {"ppo-lab": Case("ppo", "dmlab/lt_chasm", {})}
# With a GPU: as many games as keep 16 cores and the GPU busy.
_MANY = {"num_envs": 128}
GPU_CASES = {
    "ppo-gpu": Case("ppo", _PIXELS, {**_PPO, **_MANY}, {**_PPO_SB3, "batch_size": 4_096}),
    "ppo-gpu-lag": Case("ppo", _PIXELS, {**_PPO, **_MANY, "lag": 1}),
    "dqn-gpu": Case("dqn", _PIXELS, {**_MANY, "batch_size": 256, "update_steps": 32, "start_frames": 40_000}),
    "ppo-ram-gpu": Case("ppo", "Bowling-ram-v0", {"num_envs": 256}),
}


@dataclass(frozen=True)
class Options:
    """Measure training throughput."""

    cases: tuple[str, ...] = ()
    """Which to measure; the six for a CPU, or those for a GPU, where none are named; `ppo-lab` for DeepMind Lab."""
    seconds: float = 10.0
    """Length of one measurement of training; its parts take a third of that each."""
    rounds: int = 3
    """Measurements of each."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """fp32, bf16 or auto, for ours; stable-baselines3 has fp32 only."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """cpu, cuda or auto, for both."""
    groups: int | None = None
    """Groups that take turns; as many as a run has where not given. Wants --out."""
    workers: int | None = None
    """Processes that play in ours; as many as a run has where not given. Wants --out."""
    out: Path | None = None
    """JSON file for the figures, written anew with each; at the end and below benchmarks/results where not given."""


class Bench:
    """One case on this machine."""

    def __init__(self, case: Case, options: Options) -> None:
        """Make the plan that a run would have."""
        settings = preset(case.algorithm, case.env)
        self.case, self.seconds = case, options.seconds
        agent = dataclasses.replace(settings, **case.ours)
        self.config: RunConfig[Any] = RunConfig(case.env, agent, device=options.device, precision=options.precision)
        self.num_envs: int = self.config.agent.num_envs
        plan = plan_of(self.config)
        self.plan: Plan = dataclasses.replace(
            plan, groups=options.groups or plan.groups, workers=options.workers or plan.workers
        )
        self.players = min(usable_cores(), self.num_envs // self.plan.groups)  # workers of the games alone
        with WorkerEnvs(case.env, 1) as envs:
            self.game = envs.description

    def measure(self) -> dict[str, float]:
        """Rates of one round, by name."""
        with ExitStack() as opened:
            rates = take_turns(self._parts(opened))
        fastest = max(rates["games"], rates.get("AtariVectorEnv", 0))
        if self.plan.device == "cpu" and self.players >= usable_cores():  # every part has the whole machine
            rates["limit"] = 1 / (1 / fastest + 1 / rates["forward"] + self.samples_per_step / rates["learn"])
        return rates

    def _parts(self, opened: ExitStack) -> dict[str, Part]:
        """What is measured; what it needs stays open as long as `opened` is."""
        third, agent = self.seconds / 3, self.agent()
        ours = self.trainer(opened.enter_context(self.games()), self.seconds)  # behind the agent, whose weights it moves too
        games = opened.enter_context(self.games(self.players))
        for group in range(len(games.groups)):
            games.recv(group)  # what a reset gives
        parts = {"games": self.player(games, third)}
        rom = atari.rom_of(self.case.env)
        if rom and "-ram" not in self.case.env:
            parts["AtariVectorEnv"] = Part(opened.enter_context(vector_env(rom, self.num_envs)), third)
        parts["forward"] = Part(self.forward(agent), third)
        parts["learn"] = Part(self.learner(agent), third)
        parts["ours"] = ours
        if self.case.sb3 is not None:
            work = opened.enter_context(
                stable_baselines3(self.case.algorithm, self.case.env, self.num_envs, self.case.sb3, self.plan.device)
            )
            parts["stable-baselines3"] = Part(work, self.seconds)
        return parts

    @property
    def samples_per_step(self) -> float:
        """Samples that are learned from for each agent step."""
        agent = self.config.agent
        return agent.batch_size / agent.update_steps if self.case.algorithm == "dqn" else getattr(agent, "epochs", 1)

    @property
    def batch(self) -> int:
        """Samples of a gradient step."""
        agent = self.config.agent
        if self.case.algorithm == "dqn":
            return int(agent.batch_size)
        return int(agent.num_envs * agent.rollout_steps // getattr(agent, "minibatches", 1))

    def open(self, workers: int | None = None) -> WorkerEnvs:
        """The games, as a run opens them, or in as many workers."""
        return open_envs(self.config, dataclasses.replace(self.plan, workers=workers or self.plan.workers))

    @contextmanager
    def games(self, workers: int | None = None) -> Iterator[WorkerEnvs]:
        """The same, and each has begun with a seed of its own."""
        with self.open(workers) as envs:
            envs.reset([[seed] for seed in game_seeds(0, 1, range(self.num_envs))])
            yield envs

    def player(self, envs: WorkerEnvs, seconds: float) -> Part:
        """Steps of games with random actions and nothing learned; at both ends of what is timed one of each is under way."""
        actions = np.random.default_rng(0).integers(envs.description.num_actions, size=(997, self.num_envs))
        step = 0

        def send(group: int) -> None:
            envs.send(actions[step % len(actions), envs.groups[group]], group)

        def play() -> int:
            nonlocal step
            step += 1
            for group in range(len(envs.groups)):
                envs.recv(group)
                send(group)
            return self.num_envs

        def begin() -> None:
            for group in range(len(envs.groups)):
                send(group)
            play()

        def end() -> None:
            for group in range(len(envs.groups)):
                envs.recv(group)

        return Part(play, seconds, begin, end)

    def agent(self) -> Any:
        """An agent, as a run builds it."""
        return build_agent(self.case.algorithm, self.config, self.plan, self.game)

    def forward(self, agent: Any) -> Work:
        """Observations through the network, in batches of a group, on every core."""
        size = self.num_envs // self.plan.groups
        threads = Threads(usable_cores() if self.plan.device == "cpu" else 1)
        inputs = [self._inputs(agent, size) for _ in range(threads.count)]

        def pass_forward(seen: Inputs) -> None:
            with torch.inference_mode():
                for _ in range(20):
                    _outputs(agent, agent.shards.network, seen)
                _wait(self.plan.device)

        def work() -> int:
            threads.run(pass_forward, inputs)
            return 20 * size * threads.count

        return work

    def learner(self, agent: Any) -> Work:
        """Samples of gradient steps."""
        seen = self._inputs(agent, self.batch)

        def gradients(network: nn.Module, part: Tensor) -> dict[str, Tensor]:
            own = Inputs(*(field[0].index_select(0, part)[None] for field in seen))  # torch indexes bytes one by one otherwise
            if self.case.algorithm == "dqn":
                with torch.no_grad():
                    _outputs(agent, agent.target, own)
            outputs = _outputs(agent, network, own)
            loss = torch.stack([output.square().sum() for output in outputs]).sum() / self.batch
            torch.autograd.backward(loss)
            return {"loss": loss.detach()}

        def step() -> int:
            agent.shards.gradients(gradients, torch.arange(self.batch, device=agent.setting.device))
            agent.shards.step(agent.optimizer, 0.5)
            _wait(self.plan.device)
            return self.batch

        return step

    def _inputs(self, agent: Any, size: int) -> Inputs:
        game, depth = agent.setting.game, self.config.agent.frame_stack
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (1, size, depth, *game.observation_shape)).astype(game.observation_dtype)
        zeros = np.zeros((1, size))
        fields = (
            pixels,
            np.zeros((1, size, game.extra_size), np.float32),
            zeros.astype(np.int64),
            zeros.astype(np.float32),
            zeros > 0,
        )
        return Inputs(*(torch.from_numpy(field).to(agent.setting.device) for field in fields))

    def train(self) -> float:
        """Steps a second of our training loop."""
        with self.games() as envs:
            return rate(self.trainer(envs, self.seconds))

    def trainer(self, envs: WorkerEnvs, seconds: float) -> Part:
        """Trains up to the next update; code and data lie where they stay. With a lag one is under way at both ends."""
        agent = self.agent()
        loop = Turns(envs, agent, Clock())

        def train() -> int:
            steps, updates = agent.steps, agent.updates
            while agent.updates == updates:
                next(loop)
            assert not envs.lost_games, "a worker died, and was started anew"
            return int(agent.steps - steps)

        while not loop.pages.moves:
            train()
        return Part(train, seconds, begin=train if getattr(agent, "lag", 0) else None)


def _outputs(agent: Any, network: nn.Module, seen: Inputs) -> tuple[Tensor, ...]:
    if hasattr(agent, "state"):
        logits, values, _ = network(seen, agent.state.new_zeros(seen.is_first.shape[1], agent.state.shape[1]))
        return logits, values
    return (network(seen.stacks[0], seen.extra[0]),)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def vector_env(rom: str, num_envs: int) -> Iterator[Work]:
    """ale-py's own vector environment under the same rules, random actions."""
    from ale_py.vector_env import AtariVectorEnv

    envs = AtariVectorEnv(rom, num_envs, repeat_action_probability=0.25, use_fire_reset=False, reward_clipping=False)
    envs.reset(seed=0)
    space = envs.single_action_space
    assert isinstance(space, Discrete)
    actions = np.random.default_rng(0).integers(space.n, size=(997, num_envs))
    step = 0

    def play() -> int:
        nonlocal step
        step += 1
        envs.step(actions[step % len(actions)])
        return num_envs

    try:
        yield play
    finally:
        envs.close()


def machine() -> str:
    """What the figures come from: cores, processor, and the GPU where there is one."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{usable_cores()} cores of {names[0] if names else platform.machine()}{gpu}"


RATIOS = (("ours", "limit"), ("ours", "games"), ("ours", "AtariVectorEnv"), ("ours", "stable-baselines3"))


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the rates and of the ratios over the rounds."""
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    pairs = [(one, other) for one, other in RATIOS if other in medians]
    return medians | {f"{one}/{other}": statistics.median(each[one] / each[other] for each in rounds) for one, other in pairs}


def table(cases: dict[str, dict[str, float]]) -> str:
    """The summaries as Markdown."""
    rates = ("games", "AtariVectorEnv", "forward", "learn", "limit", "ours", "stable-baselines3")
    columns = (*rates, *(f"{one}/{other}" for one, other in RATIOS))
    lines = [f"| case | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, found in cases.items():
        cells = [(f"{found[c]:.2f}" if "/" in c else f"{found[c]:,.0f}") if c in found else "" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(path: Path, title: str, cases: dict[str, dict[str, float]]) -> None:
    """Training's rate beside its limit and stable-baselines3's, a group of bars a case."""
    from matplotlib.figure import Figure

    figure = Figure((8, 4), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(("limit", "ours", "stable-baselines3")):
        places = [index + 0.27 * (at - 1) for index, found in enumerate(cases.values()) if name in found]
        bars = axes.bar(places, [found[name] for found in cases.values() if name in found], 0.25, label=name)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    axes.set_xticks(range(len(cases)), cases)
    axes.set_yscale("log")
    axes.set_ylabel("agent steps a second")
    axes.set_title(title, fontsize=9)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    """Measure, print, and write figures and plot."""
    options = tyro.cli(Options)
    if (options.groups or options.workers) and not options.out:
        refuse("--groups and --workers measure something else than a run does by itself: name a file for it with --out")
    on_gpu = pick_device(options.device).type == "cuda"
    names = options.cases or tuple(GPU_CASES if on_gpu else CASES)
    cases = CASES | LAB_CASES | GPU_CASES
    if unknown := [name for name in names if name not in cases]:
        refuse(f"--cases {unknown[0]}: one of {', '.join(cases)}")
    benches = {name: Bench(cases[name], options) for name in names}
    precision = next(iter(benches.values())).plan.precision
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "stable-baselines3"))
    title = f"{machine()}, {precision}, {packages}, commit {commit()}"
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine()} {precision}".lower())
    out = options.out or RESULTS / f"throughput-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rounds: dict[str, list[dict[str, float]]] = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for number in range(options.rounds):
            for name, bench in benches.items():
                rounds.setdefault(name, []).append(pool.submit(bench.measure).result())
                shown = ", ".join(f"{what} {value:,.0f}" for what, value in rounds[name][-1].items())
                print(f"round {number + 1}, {name}: {shown}", flush=True)
                if options.out:
                    write(out, title, rounds)
    write(out, title, rounds)
    summaries = {name: summary(found) for name, found in rounds.items()}
    print(f"\n{title}, medians of {options.rounds} rounds, steps or samples a second\n\n{table(summaries)}")
    print(f"\n{out} and {out.with_suffix('.svg').name}")


def refuse(why: str) -> NoReturn:
    """End with one line and the exit code of a command line that cannot be run."""
    print(f"throughput.py: {why}", file=sys.stderr)
    raise SystemExit(2)


def write(out: Path, title: str, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Write figures and plot."""
    summaries = {name: summary(found) for name, found in rounds.items()}
    content = {
        "machine": title,
        "command": " ".join(sys.argv),
        "date": str(date.today()),
        "rounds": rounds,
        "summary": summaries,
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    plot(out.with_suffix(".svg"), title, summaries)


if __name__ == "__main__":
    main()
