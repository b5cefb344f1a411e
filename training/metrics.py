"""Where metrics go: one flat JSON object a line, and the same names in TensorBoard. `docs/metrics.md` explains each."""

import contextlib
import errno
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from training import checkpoint
from training.checkpoint import write_whole
from training.disk import Disk

ROWS = 1_000  # most rows that a run writes, whatever its length


class Metrics:
    """Averages what comes in and writes a row whenever the run is a thousandth further."""

    def __init__(
        self, run_dir: Path, total_frames: int, state: Mapping[str, Any] | None = None, disk: Disk | None = None
    ) -> None:
        """Open the files of a run where `state_dict` stood; rows that were written later are from before a resume, and go.

        TensorBoard's files are copies: they are written anew from the rows that stay.
        """
        state = state or {"written": 0, "seen": {}}
        self._written: int = state["written"]
        self._seen = defaultdict[str, list[float]](list, {name: list(values) for name, values in state["seen"].items()})
        self._run_dir, self._disk = run_dir, disk or Disk()
        path = run_dir / "metrics.jsonl"
        kept = [row for row in read(path) if row["frames"] <= self._written]
        content = "".join(map(_line, kept)).encode()
        self._disk.write(run_dir, len(content), lambda: write_whole(path, content))
        self._file = path.open("ab", buffering=0)
        self._size = len(content)
        for old in (run_dir / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()
        self._tensorboard: SummaryWriter | None = None
        self._copy(kept)
        self._period = total_frames / ROWS

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of one update."""
        for name, value in metrics.items():
            self._seen[name].append(value)

    def due(self, frames: int) -> bool:
        """Whether there is something to write and it is time to."""
        return bool(self._seen) and frames - self._written >= self._period

    def write(self, frames: int, steps: int, now: Mapping[str, float]) -> dict[str, float]:
        """Write a row: the means of what came in since the last, and `now` as it is."""
        means = {name: sum(values) / len(values) for name, values in self._seen.items()}
        row = {"frames": frames, "steps": steps, **means, **now}
        line = _line(row).encode()
        self._disk.write(self._run_dir, len(line), lambda: self._append(line))
        self._copy([row])
        self._written = frames
        self._seen.clear()
        return row

    def _append(self, line: bytes) -> None:
        """Add a line to the file, or nothing of it."""
        if self._file.write(line) < len(line):
            self._file.truncate(self._size)
            raise OSError(errno.ENOSPC, "no room for the rest of a line")
        self._size += len(line)

    def _copy(self, rows: list[dict[str, float]]) -> None:
        """Write rows for TensorBoard too; where its own thread could not write, all of them at the next resume."""
        with contextlib.suppress(OSError):
            if self._tensorboard is None:
                self._tensorboard = SummaryWriter(str(self._run_dir / "tensorboard"))
            for row in rows:
                for name, value in row.items():
                    self._tensorboard.add_scalar(name, value, int(row["frames"]))

    def state_dict(self) -> dict[str, Any]:
        """The frames of the last row, and what the next one will be made of."""
        return {"written": self._written, "seen": {name: list(values) for name, values in self._seen.items()}}

    def __enter__(self) -> Self:
        """Close the files at the end of a `with` block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files."""
        self._file.close()
        with contextlib.suppress(OSError):
            if self._tensorboard is not None:
                self._tensorboard.close()


def check_state(state: Any) -> dict[str, Any]:
    """What `Metrics.state_dict` has returned, or nothing, where a run was stopped before its first update.

    Raises:
        ValueError: it has not.
    """
    if state and not (
        _is_number(state["written"])
        and all(isinstance(values, list) and all(map(_is_number, values)) for values in state["seen"].values())
    ):
        raise ValueError("metrics are numbers")
    return dict(state)


def _is_number(value: Any) -> bool:
    """Whether it is one that every reader of metrics takes."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row) + "\n"


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, in its order; a line that is damaged is left out, as a last one cut off by a kill is."""
    rows = []
    for line in checkpoint.read_file(path).splitlines() if path.exists() else ():
        try:
            row = {name: value for name, value in json.loads(line).items() if _is_number(value)}
            frames = row.pop("frames")
        except (ValueError, KeyError, AttributeError, RecursionError):
            continue
        if isinstance(frames, int) and frames >= 0:
            rows.append({"frames": frames, **row})
    return rows


class _Stopwatch:
    """Seconds spent in its blocks. Not made of a generator: one costs five times as much where a network has just computed."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds = 0.0

    def __enter__(self) -> None:
        """A block begins."""
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        """It ends."""
        self.seconds += perf_counter() - self._start


class Clock:
    """Wall-clock seconds by what they were spent on."""

    def __init__(self) -> None:
        """Start at zero."""
        self._spent: defaultdict[str, _Stopwatch] = defaultdict(_Stopwatch)
        self._since = perf_counter()
        self._frames = 0

    def measure(self, name: str) -> _Stopwatch:
        """Add the block's time to `name`."""
        return self._spent[name]

    def lap(self, frames: int) -> dict[str, float]:
        """Frames a second since the last lap, and the share of the time that went into each name."""
        now = perf_counter()
        seconds = max(now - self._since, 1e-9)
        shares = {f"time/{name}": spent.seconds / seconds for name, spent in self._spent.items()}
        speed = {"speed/frames_per_second": (frames - self._frames) / seconds, **shares}
        self._spent.clear()
        self._since, self._frames = now, frames
        return speed
