"""What saving, stopping and resuming take.

    python benchmarks/interruptions.py [--cases ppo ppo-ram dqn] [--period 1000000]

Each case trains in a process of its own, with a checkpoint every `--period` frames, and is stopped by SIGTERM nine tenths of
the way from one to the next: how long that takes is from the signal to the end of the process. Then it is opened again, once
from the checkpoint that the signal caused and, with that one deleted, once from the periodic one before it, as after a kill.
Opening plays games again where they cannot be copied, and reads replay.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path

import tyro
from throughput import RESULTS, machine

sys.path.insert(0, str(Path(__file__).parent.parent))

from training import checkpoint, metrics, start
from training.start import commit

ROOT = Path(__file__).parent.parent
CASES = {
    "ppo": ["ppo", "--env", "Berzerk-v0"],
    "ppo-ram": ["ppo", "--env", "Bowling-ram-v0"],
    "ppo-doom": ["ppo", "--env", "VizdoomBasic-v1"],
    "dqn": ["dqn", "--env", "Berzerk-v0"],
}
COLUMNS = {
    "checkpoint, MB": ",.1f",
    "replay, MB": ",.1f",
    "saving": ".2%",
    "signal to end, s": ".2f",
    "resume, s": ".2f",
    "resume after a kill, s": ".2f",
}


@dataclass(frozen=True)
class Interruptions:
    """Measure what saving, stopping and resuming take."""

    cases: tuple[str, ...] = tuple(CASES)
    """What to train."""
    period: int = 100_000
    """Emulator frames from checkpoint to checkpoint."""
    checkpoints: int = 3
    """Periodic checkpoints before the signal."""
    out: Path | None = None
    """JSON file for the figures; below benchmarks/results where not given."""


def measure(arguments: list[str], period: int, checkpoints: int, folder: Path) -> dict[str, float]:
    """Train, stop and resume one case."""
    run_dir = folder / "run"
    flags = ["--checkpoint-frames", str(period), "--total-frames", str(10 * period), "--run-dir", str(run_dir)]
    command = [sys.executable, str(ROOT / "train.py"), *arguments, *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    rows: list[dict[str, float]] = []
    while not rows or rows[-1]["frames"] < (checkpoints + 0.9) * period:
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        time.sleep(0.05)
        rows = metrics.read(run_dir / "metrics.jsonl")
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    process.wait()
    stopping = time.perf_counter() - began
    saved = checkpoint.checkpoints(run_dir / "checkpoints")
    figures = {
        "checkpoint, MB": size(saved[-1]) / 1e6,
        "replay, MB": size(run_dir / "replay") / 1e6,
        "saving": share_of_saving(rows, period),
        "signal to end, s": stopping,
        "resume, s": opening(run_dir),
    }
    shutil.rmtree(saved[-1])
    return {**figures, "resume after a kill, s": opening(run_dir)}


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*"))


def share_of_saving(rows: list[dict[str, float]], period: int) -> float:
    """The part of training's time that went into saving, from the first periodic checkpoint on."""
    seconds = saving = 0.0
    for before, row in pairwise(rows):
        if before["frames"] >= period / 2:
            spent = (row["frames"] - before["frames"]) / row["speed/frames_per_second"]
            seconds, saving = seconds + spent, saving + spent * row.get("time/saving", 0.0)
    return saving / seconds


def opening(run_dir: Path) -> float:
    """Seconds until a run is ready to go on; Python and its imports are there."""
    began = time.perf_counter()
    with start.old_run(run_dir):
        return time.perf_counter() - began


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as Markdown."""
    lines = [f"| case | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for case, figures in found.items():
        lines.append(f"| {case} | {' | '.join(format(figures[name], style) for name, style in COLUMNS.items())} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the figures."""
    options = tyro.cli(Interruptions)
    found = {}
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            found[case] = measure(CASES[case], options.period, options.checkpoints, Path(folder))
            print(case, {name: round(value, 4) for name, value in found[case].items()}, flush=True)
    title = f"{machine()}, commit {commit()}, a checkpoint every {options.period:,} frames"
    print(f"\n{title}\n\n{table(found)}")
    out = options.out or RESULTS / "interruptions.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", *sys.argv])
    out.write_text(
        json.dumps({"machine": title, "command": command, "date": str(date.today()), "summary": found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
