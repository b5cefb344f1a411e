"""An hour of training, and whether anything grows that should not. Linux only.

    python benchmarks/soak.py [--minutes 60]

A run of PPO on pixels and one of DQN on RAM, whose replay is soon full, train side by side, each with checkpoints every
minute or so. Every few seconds it is looked at what each trainer and its workers hold: memory of their own (PSS, so that
shared pages count once, without files: whoever else maps a library changes each one's share of it), open descriptors,
threads, and what lies in `/dev/shm`. Memory fills until a few checkpoints were made: the hour begins when each run has three
of them, and its first tenth is not counted.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import tyro
from throughput import RESULTS, machine

sys.path.insert(0, str(Path(__file__).parent.parent))

from training.checkpoint import KEEP
from training.start import commit

RUNS = {
    "ppo": ["ppo", "--env", "Berzerk-v0", "--checkpoint-frames", "100k"],
    "dqn": ["dqn", "--env", "Bowling-ram-v0", "--capacity", "20k", "--checkpoint-frames", "50k"],
}
ENDLESS = ["--total-frames", "10B"]


@dataclass(frozen=True)
class Soak:
    """Train for long, and watch what is held."""

    minutes: float = 60.0
    """How long."""
    out: Path | None = None
    """JSON file for the figures; below benchmarks/results, named after the machine, where not given."""


def wait_for_checkpoints(directory: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until a run has as many as it keeps."""
    while len(list(directory.glob("[0-9]*"))) < KEEP:
        if process.poll() is not None:
            raise SystemExit(f"{directory.parent.name} ended with {process.returncode}")
        time.sleep(0.1)


def family(pid: int) -> list[int]:
    """A process and those that it has started."""
    started = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *started]


def held(pid: int) -> dict[str, float]:
    """What a trainer and its workers hold now."""
    pids = family(pid)
    memory = 0
    for each in pids:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:])
        memory += sum(int(fields[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem"))
    return {
        "memory, MB": memory / 1e6,
        "descriptors": sum(len(os.listdir(f"/proc/{each}/fd")) for each in pids),
        "threads": sum(len(os.listdir(f"/proc/{each}/task")) for each in pids),
        "/dev/shm, names": len(os.listdir("/dev/shm")),
    }


def watch(runs: dict[str, "subprocess.Popen[bytes]"], minutes: float) -> dict[str, list[dict[str, float]]]:
    """What each run holds, again and again."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    begin = time.monotonic()
    while (gone := time.monotonic() - begin) < minutes * 60:
        for name, process in runs.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended after {gone:.0f} s with {process.returncode}")
            seen[name].append({"seconds": gone, **held(process.pid)})
        time.sleep(max(1.0, minutes / 12))
    return seen


def table(seen: dict[str, list[dict[str, float]]]) -> str:
    """Medians of the first and the last third behind the first tenth, as Markdown."""
    lines = ["| run | what | first third | last third | change |", "|---|---|---|---|---|"]
    for name, samples in seen.items():
        counted = samples[len(samples) // 10 :]
        third = max(1, len(counted) // 3)
        for what in [key for key in counted[0] if key != "seconds"]:
            first, last = (statistics.median(sample[what] for sample in part) for part in (counted[:third], counted[-third:]))
            change = f"{last / first - 1:+.1%}" if first else str(last)
            lines.append(f"| {name} | {what} | {first:,.0f} | {last:,.0f} | {change} |")
    return "\n".join(lines)


def main() -> None:
    """Train, watch, print, and write the figures."""
    options = tyro.cli(Soak)
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: subprocess.Popen(
                [sys.executable, str(root / "train.py"), *args, *ENDLESS, "--run-dir", f"{folder}/{name}"],
                stderr=subprocess.DEVNULL,
            )
            for name, args in RUNS.items()
        }
        try:
            for name, process in runs.items():
                wait_for_checkpoints(Path(folder) / name / "checkpoints", process)
            seen = watch(runs, options.minutes)
        finally:
            for process in runs.values():
                process.send_signal(signal.SIGTERM)
        codes = [process.wait() for process in runs.values()]
    title = f"{machine()}, commit {commit()}, {options.minutes:g} minutes, exit codes {codes}"
    print(f"{title}\n\n{table(seen)}")
    out = options.out or RESULTS / "soak.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", *sys.argv])
    out.write_text(json.dumps({"machine": title, "command": command, "date": str(date.today()), "samples": seen}) + "\n")


if __name__ == "__main__":
    main()
