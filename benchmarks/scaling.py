"""How cost grows with the work: with games side by side, with the batch, with replay and with cores. Linux only.

    python benchmarks/scaling.py [--parts games batch replay cores] [--seconds 2] [--rounds 3]

What stands in one table takes turns, round by round. In `games` and `cores` each case has a process of its own, which keeps its
games open from round to round and stands still while another is measured. These games open without seeds, which would load each
ROM a second time. Memory is the resident memory (RSS) of trainer and workers; pages that they share are counted in each.
"""

import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import tyro
from throughput import CASES, RESULTS, Bench, Case, Options, machine
from turns import Part, rate

sys.path.insert(0, str(Path(__file__).parent.parent))

from agents.replay import Replay
from envs.contract import InputError
from training.start import commit

Figures = dict[str, float]
Rounds = dict[str, list[Figures]]  # by size, the figures of each round

PIXELS = CASES["ppo"].env
SAMPLES_PER_STEP = 8  # of DQN in Nature: a batch of 32 every 4 steps
# Of each part: what grows, and the figures in its table with how they are written.
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "games": ("games", {"games, steps/s": ",.0f", "training, steps/s": ",.0f", "memory, MB": ",.0f", "workers": ".0f"}),
    "batch": ("samples a gradient step", {"samples/s": ",.0f"}),
    "replay": ("steps held", {"bytes a step": ",.0f", "us a transition": ".2f", "share of a DQN step": ".1%"}),
    "cores": ("cores", {"games, steps/s": ",.0f", "training, steps/s": ",.0f"}),
}


@dataclass(frozen=True)
class Scaling:
    """Measure how cost grows with the work."""

    parts: tuple[str, ...] = tuple(TABLES)
    """What grows."""
    seconds: float = 2.0
    """Length of one measurement."""
    rounds: int = 3
    """Measurements of each."""
    games: tuple[int, ...] = tuple(2**power for power in range(11))
    """Games side by side."""
    out: Path | None = None
    """JSON file for the figures; below benchmarks/results, named after the machine, where not given."""


def games(options: Scaling) -> Rounds:
    """A2C with more and more games; five steps a rollout, so that an update of many games stays short."""
    cases = {f"{n:,}": Case("a2c", PIXELS, {"num_envs": n, "rollout_steps": 5}) for n in options.games}
    return own_processes({size: (case, os.sched_getaffinity(0)) for size, case in cases.items()}, options)


def cores(options: Scaling) -> Rounds:
    """PPO on more and more cores."""
    every = sorted(os.sched_getaffinity(0))
    counts = [2**power for power in range(len(every).bit_length())]
    return own_processes({str(count): (CASES["ppo"], every[:count]) for count in counts}, options)


def own_processes(cases: dict[str, tuple[Case, Collection[int]]], options: Scaling) -> Rounds:
    """What cases measure, each in a process of its own on some cores."""
    context, every = multiprocessing.get_context("spawn"), os.sched_getaffinity(0)
    pipes: dict[str, Connection] = {}
    processes = []

    def ask(size: str) -> Figures:
        pipes[size].send("go on")
        figures: Figures = pipes[size].recv()
        return figures

    try:
        for size, (case, bound) in cases.items():
            pipes[size], theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(case, options.seconds, theirs)))
            os.sched_setaffinity(0, bound)  # which all threads of the process and its workers inherit
            processes[-1].start()
            theirs.close()  # so that its end is seen
        os.sched_setaffinity(0, every)
        for pipe in pipes.values():
            pipe.recv()
        return by_turns(pipes, ask, options)
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def serve(case: Case, seconds: float, pipe: Connection) -> None:
    """In a process of its own: play and train for some seconds whenever told to, and answer with the figures."""
    bench = Bench(case, Options(seconds=seconds))
    with bench.open() as envs:
        envs.reset([[]] * bench.num_envs)
        train, play = bench.trainer(envs, seconds), bench.player(envs, seconds)
        pipe.send("ready")
        with contextlib.suppress(EOFError):  # the end
            while True:
                pipe.recv()
                training, playing = rate(train), rate(play)
                figures = (playing, training, memory_with_workers() / 1e6, bench.plan.workers)
                pipe.send(dict(zip(TABLES["games"][1], figures, strict=True)))


def memory_with_workers() -> int:
    """Resident memory in bytes of this process and those that it has started."""
    started = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return sum(map(resident, ["self", *started]))


def resident(pid: str) -> int:
    """Resident memory of a process in bytes."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Rss"].split()[0]) * 1024


def batch(options: Scaling) -> Rounds:
    """Gradient steps of PPO's network with larger and larger batches."""

    def learn(size: str) -> Figures:
        changes = {"num_envs": 1, "rollout_steps": int(size.replace(",", "")), "minibatches": 1}
        bench = Bench(Case("ppo", PIXELS, changes), Options())
        return {"samples/s": rate(Part(bench.learner(bench.agent()), options.seconds))}

    return by_turns([f"{2**power:,}" for power in range(4, 11)], learn, options)


def replay(options: Scaling) -> Rounds:
    """Sampling from larger and larger replays, beside a training step of DQN."""
    torch.set_num_threads(1)  # as in training
    trained = Bench(CASES["dqn-nature"], Options(seconds=options.seconds))
    held: dict[str, tuple[Replay, float]] = {}
    for steps in (10_000, 100_000, 1_000_000):
        try:
            memory = full_replay(trained, steps)
            tables = [table for table in vars(memory).values() if isinstance(table, torch.Tensor)]
            held[f"{steps:,}"] = memory, sum(table.nbytes for table in tables) / steps
        except InputError as problem:
            print(f"left out: {problem}", flush=True)

    def measure(size: str) -> Figures:
        memory, bytes_a_step = held[size]
        generator = torch.Generator().manual_seed(0)

        def sample() -> int:
            t, slots = memory.draw(32, memory.span(1), generator)
            return len(memory.transitions(t, slots, 1, 0.99).actions)

        seconds = 1 / rate(Part(sample, options.seconds))
        share = SAMPLES_PER_STEP * seconds * trained.train()
        return dict(zip(TABLES["replay"][1], (bytes_a_step, seconds * 1e6, share), strict=True))

    return by_turns(held, measure, options)


def full_replay(bench: Bench, steps: int) -> Replay:
    """A replay whose every frame was written.

    Raises:
        InputError: it does not fit into free memory.
    """
    with bench.open() as envs:
        game = envs.description
    size, every = bench.num_envs, slice(None)
    memory = Replay(steps, size, 4, game)
    picture = np.random.default_rng(0).integers(0, 256, (size, *game.observation_shape), np.uint8)
    no = np.zeros(size, np.bool_)
    for t in range(memory.rows):
        memory.put_frame(t, every, picture, np.zeros((size, game.extra_size), np.float32), no if t % 500 else ~no)
        memory.put_outcome(t, every, np.zeros(size, np.float32), no, no, ~no)
    memory.newest = memory.complete = memory.rows - 1
    return memory


def by_turns(sizes: Collection[str], measure: Callable[[str], Figures], options: Scaling) -> Rounds:
    """What is measured for each size, in rounds."""
    rounds: Rounds = {size: [] for size in sizes}
    for number in range(options.rounds):
        for size, found in rounds.items():
            found.append(measure(size))
            print(f"round {number + 1}, {size}: " + ", ".join(f"{k} {v:,.4g}" for k, v in found[-1].items()), flush=True)
    return rounds


def table(part: str, rounds: Rounds) -> str:
    """Medians and, in brackets, the least and the most of the rounds, as Markdown."""
    grows, columns = TABLES[part]
    lines = [f"| {grows} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for size, found in rounds.items():
        cells = [_spread([figures[name] for figures in found], style) for name, style in columns.items()]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], style: str) -> str:
    middle, least, most = (format(value, style) for value in (statistics.median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


def plot(path: Path, title: str, parts: dict[str, Rounds]) -> None:
    """What each table shows, with the spread of the rounds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    rates = ("games, steps/s", "training, steps/s")
    panels = (("games", rates), ("games", ("memory, MB",)), ("batch", ("samples/s",)), ("replay", ("us a transition",)))
    figure = Figure((12, 7), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for number, (part, names) in enumerate(panel for panel in (*panels, ("cores", rates)) if panel[0] in parts):
        unit = " and ".join(names)
        axes = figure.add_subplot(2, 3, number + 1, xscale="log", yscale="log", xlabel=TABLES[part][0], ylabel=unit)
        sizes = [int(size.replace(",", "")) for size in parts[part]]
        for name in names:
            found = np.array([[figures[name] for figures in rounds] for rounds in parts[part].values()])
            middle = np.median(found, 1)
            axes.errorbar(sizes, middle, (middle - found.min(1), found.max(1) - middle), marker="o", label=name)
        axes.set_xticks(sizes, parts[part], rotation=45)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path)


def main() -> None:
    """Measure, print, and write figures and plot."""
    options = tyro.cli(Scaling)
    makers = {"games": games, "batch": batch, "replay": replay, "cores": cores}
    parts = {part: makers[part](options) for part in options.parts}
    precision = Bench(CASES["ppo"], Options()).plan.precision
    title = f"{machine()}, {precision}, torch {version('torch')}, commit {commit()}"
    print("\n\n".join([f"\n{title}, medians of {options.rounds} rounds", *(table(*part) for part in parts.items())]))
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine()} {precision}".lower())
    out = options.out or RESULTS / f"scaling-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": title, "command": " ".join(sys.argv), "date": str(date.today()), "rounds": parts}
    out.write_text(json.dumps(content, indent=1) + "\n")
    plot(out.with_suffix(".svg"), title, parts)
    print(f"\n{out} and {out.with_suffix('.svg').name}")


if __name__ == "__main__":
    main()
