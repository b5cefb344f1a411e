"""Training steps a second beside CleanRL with EnvPool and beside Sample Factory, on the same work.

    python benchmarks/peers.py --cleanrl PYTHON SCRIPT --sample-factory PYTHON [--seconds 60] [--rounds 3]

All train PPO on Berzerk's pixels: 8 games, 128 steps a rollout, 4 epochs of 4 minibatches of 256 samples. Beside that each has
its own defaults: CleanRL ends an episode with a life, Sample Factory normalises inputs and returns, and only ours has sticky
actions. The peers want other packages than this project, so each has an environment of its own, named by its Python;
`docs/performance.md` says how to make them.

A step is one agent step. What a peer makes is read off what it prints, by the clock of this program: CleanRL reports after
each update, Sample Factory every few seconds, so that its figure is uncertain by an update (1,024 steps) in all that it
makes. Of ours whole rollouts with their updates are counted, as in `benchmarks/throughput.py`. They take turns, round by
round, on the same machine; a ratio is the median over the rounds.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import tyro
from throughput import CASES, RESULTS, Bench, machine
from throughput import Options as Training

sys.path.insert(0, str(Path(__file__).parent.parent))

from training.start import commit

_BATCH = 8 * 128  # steps between two updates
_SKIP = 4  # emulator frames a step
_PATIENCE = 300.0  # seconds beside the measurement; the peers take long to start


@dataclass(frozen=True)
class Options:
    """Measure training beside CleanRL and Sample Factory."""

    cleanrl: tuple[Path, Path] | None = None
    """Python of an environment with EnvPool, and CleanRL's ppo_atari_envpool.py."""
    sample_factory: Path | None = None
    """Python of an environment with Sample Factory."""
    seconds: float = 60.0
    """Length of one measurement."""
    rounds: int = 3
    """Measurements of each."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """fp32, bf16 or auto, for ours; the peers have fp32 only."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where all of them compute."""
    out: Path | None = None
    """JSON file for the figures; below benchmarks/results, named after the machine, where not given."""


@dataclass(frozen=True)
class Peer:
    """Another program: how it is started, and how many steps it has made, by what it prints."""

    command: list[str]
    report: re.Pattern[str]
    """A line that comes after an update; its group, where it has one, is the number of emulator frames so far."""

    def rate(self, seconds: float) -> float:
        """Steps a second.

        Raises:
            SystemExit: it ended before it was asked to, or never reported.
        """
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(
                self.command,
                cwd=folder,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            end = threading.Timer(_PATIENCE + seconds, os.killpg, (process.pid, signal.SIGKILL))
            end.start()
            try:
                return self._watch(process, seconds)
            finally:
                end.cancel()
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _watch(self, process: "subprocess.Popen[str]", seconds: float) -> float:
        assert process.stdout is not None
        seen: list[tuple[float, int]] = []  # when, and the steps until then
        said = ""
        for said in process.stdout:
            now = time.perf_counter()
            found = self.report.search(said)
            steps = (int(found[1]) // _SKIP if found.groups() else (len(seen) + 1) * _BATCH) if found else 0
            if steps and (not seen or steps > seen[-1][1]):
                seen.append((now, steps))
            if len(seen) > 1 and now - seen[0][0] >= seconds:
                return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
        raise SystemExit(f"{' '.join(self.command)} was not measured; its last words: {said}")


def peers(options: Options) -> dict[str, Peer]:
    """Those whose environment was named."""
    found = {}
    if options.cleanrl is not None:
        python, script = (str(path.absolute()) for path in options.cleanrl)
        flags = ["--env-id", "Berzerk-v5", "--cuda" if options.device == "cuda" else "--no-cuda"]
        found["CleanRL + EnvPool"] = Peer([python, script, *flags], re.compile(r"^SPS: "))
    if options.sample_factory is not None:
        python, device = str(options.sample_factory.absolute()), {"cpu": "cpu", "cuda": "gpu"}[options.device]
        flags = [
            "--algo=APPO",
            "--env=atari_berzerk",
            "--experiment=peer",
            "--train_dir=.",
            f"--device={device}",
        ]
        command = [python, "-m", "sf_examples.atari.train_atari", *flags]
        found["Sample Factory"] = Peer(command, re.compile(r"Total num frames: ([1-9]\d*)\."))
    return found


def table(rounds: list[dict[str, float]]) -> str:
    """Medians of the rates and of ours against each, as Markdown."""
    lines = ["| what | steps/s | ours against it |", "|---|---|---|"]
    for name in rounds[0]:
        ratio = statistics.median(each["ours"] / each[name] for each in rounds)
        lines.append(f"| {name} | {statistics.median(each[name] for each in rounds):,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the figures."""
    options = tyro.cli(Options)
    if not (others := peers(options)):
        raise SystemExit("name an environment: --cleanrl PYTHON SCRIPT, --sample-factory PYTHON")
    bench = Bench(CASES["ppo"], Training(seconds=options.seconds, precision=options.precision, device=options.device))
    rounds = []
    for number in range(options.rounds):
        rounds.append({"ours": bench.train(), **{name: peer.rate(options.seconds) for name, peer in others.items()}})
        print(f"round {number + 1}: {', '.join(f'{name} {rate:,.0f}' for name, rate in rounds[-1].items())}", flush=True)
    title = f"{machine()}, {bench.plan.precision}, commit {commit()}"
    print(f"\n{title}, medians of {options.rounds} rounds\n\n{table(rounds)}")
    name = re.sub(r"[^a-z0-9]+", "-", f"{machine()} {bench.plan.precision}".lower())
    out = options.out or RESULTS / f"peers-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": title, "command": " ".join(["python", *sys.argv]), "date": str(date.today()), "rounds": rounds}
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
