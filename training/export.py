"""Put a trained agent into the zoo: `python -m training.export RUN zoo/NAME`.

An entry holds what playing needs and what a reader asks for, and nothing that only training needs: weights, the run's config
with what was trained, and the learning curve. The scores.json that `evaluate.py zoo/NAME` writes goes beside them.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from envs.contract import InputError
from training import checkpoint
from training.config import check_path


def export(path: Path, entry: Path) -> Path:
    """Copy a checkpoint's weights, config and curve into a new directory; of a run, its newest checkpoint's.

    Returns:
        The checkpoint.

    Raises:
        InputError: there is none or it cannot be read, or the directory exists or cannot be written; nothing is left of it.
    """
    check_path("export", path)
    check_path("export", entry)
    if entry.exists():
        raise InputError(f"{entry} exists already")
    saved = path if (path / "state.json").exists() else checkpoint.newest(path / "checkpoints")
    if saved is None:
        raise InputError(f"{path} is neither a run with a checkpoint nor a checkpoint")
    state = checkpoint.load(saved)
    run_dir = saved.resolve().parent.parent
    aside = entry.with_name(f".{entry.name}.new")
    try:
        config = json.loads(checkpoint.read_file(run_dir / "config.json", most=2**20))
        scores = state["scores"]
        trained = {
            **state["agent"]["counters"],
            "checkpoint": saved.name,
            "score_mean_100": scores["mean_100"],
            "games": scores["games"],
        }
        config["run"]["run_dir"] = str(entry)
        checkpoint.remove(aside)
        aside.mkdir(parents=True)
        (aside / "config.json").write_text(json.dumps({**config, "trained": trained}, indent=1) + "\n")
        for source in (saved / "weights.safetensors", run_dir / "metrics.jsonl"):
            (aside / source.name).write_bytes(checkpoint.read_file(source))
        aside.rename(entry)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{entry} cannot be made of {saved} ({type(error).__name__}: {error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return saved


def main(args: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    if len(args) != 2:
        print("usage: python -m training.export RUN|CHECKPOINT zoo/NAME", file=sys.stderr)
        return 0 if args in (["-h"], ["--help"]) else 2
    try:
        saved = export(Path(args[0]), Path(args[1]))
    except InputError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"{args[1]} has the agent of {saved}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
