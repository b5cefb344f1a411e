"""Put a checkpoint into the zoo: `python -m training.export CHECKPOINT zoo/NAME`.

An entry holds what playing needs and what a reader asks for, and nothing that only training needs: weights, the run's config
with what was trained, and the learning curve. `evaluate.py zoo/NAME --out zoo/NAME` adds the scores.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.contract import InputError
from training import checkpoint


def export(saved: Path, entry: Path) -> None:
    """Copy a checkpoint's weights, config and curve into a new directory.

    Raises:
        InputError: the checkpoint cannot be read, or the directory exists.
    """
    if entry.exists():
        raise InputError(f"{entry} exists already")
    state = checkpoint.load(saved)
    run_dir = saved.parent.parent
    config = json.loads((run_dir / "config.json").read_text())
    scores = state["scores"]
    trained = {
        **state["agent"]["counters"],
        "checkpoint": saved.name,
        "score_mean_100": scores["mean_100"],
        "games": scores["games"],
    }
    config["run"]["run_dir"] = str(entry)
    entry.mkdir(parents=True)
    (entry / "config.json").write_text(json.dumps({**config, "trained": trained}, indent=1) + "\n")
    shutil.copy(saved / "weights.safetensors", entry / "weights.safetensors")
    shutil.copy(run_dir / "metrics.jsonl", entry / "metrics.jsonl")


def main(args: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    if len(args) != 2:
        print("usage: python -m training.export CHECKPOINT zoo/NAME", file=sys.stderr)
        return 2
    try:
        export(Path(args[0]), Path(args[1]))
    except InputError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
