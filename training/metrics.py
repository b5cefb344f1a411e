"""Where metrics go: one flat JSON object a line, and the same names in TensorBoard. `docs/metrics.md` explains each."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import write_whole

ROWS = 1_000  # most rows that a run writes, whatever its length


class Metrics:
    """Averages what comes in and writes a row whenever the run is a thousandth further."""

    def __init__(self, run_dir: Path, total_frames: int, frames: int = 0) -> None:
        """Open the files of a run; rows of later frames than `frames` are from before a resume, and go."""
        self._path = run_dir / "metrics.jsonl"
        kept = [row for row in read(self._path) if row["frames"] <= frames]
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), purge_step=frames + 1)
        self._period = total_frames / ROWS
        self._written = frames
        self._seen: defaultdict[str, list[float]] = defaultdict(list)

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
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._tensorboard.add_scalar(name, value, frames)
        self._written = frames
        self._seen.clear()
        return row

    def state_dict(self) -> dict[str, Any]:
        """What the next row will be made of."""
        return {"written": self._written, "seen": {name: list(values) for name, values in self._seen.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; nothing where the run begins."""
        self._written = state.get("written", self._written)
        for name, values in state.get("seen", {}).items():
            self._seen[name] = list(values)

    def __enter__(self) -> Self:
        """Close the files at the end of a `with` block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files."""
        self._file.close()
        self._tensorboard.close()


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Clock:
    """Wall-clock seconds by what they were spent on."""

    def __init__(self) -> None:
        """Start at zero."""
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._since = perf_counter()
        self._frames = 0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        start = perf_counter()
        try:
            yield
        finally:
            self._spent[name] += perf_counter() - start

    def lap(self, frames: int) -> dict[str, float]:
        """Frames a second since the last lap, and the share of the time that went into each name."""
        now = perf_counter()
        seconds = max(now - self._since, 1e-9)
        shares = {f"time/{name}": spent / seconds for name, spent in self._spent.items()}
        speed = {"speed/frames_per_second": (frames - self._frames) / seconds, **shares}
        self._spent.clear()
        self._since, self._frames = now, frames
        return speed
