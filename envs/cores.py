"""Which CPU cores processes and threads run on; a system that does not let them choose, such as macOS, decides for itself."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

BINDS = hasattr(os, "sched_setaffinity")
"""Whether the system lets a thread choose its cores."""


def usable_cores(group: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may run on, or as many as its container's share of their time, rounded up."""
    cores = len(os.sched_getaffinity(0)) if BINDS else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # control groups, version 2 and version 1
        with contextlib.suppress(OSError, ValueError):  # no such files, or `max`
            quota, period = (int(number) for name in names for number in (group / name).read_text().split())
            return min(cores, -(-quota // period)) if quota > 0 else cores
    return cores


def cores_in_turn() -> list[int]:
    """Those cores, from which workers take one each by turns; trainers side by side usually begin with different ones."""
    cores = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(cores)
    return cores[first:] + cores[:first]


def keep_to(cores: Iterable[int]) -> None:
    """Let the calling thread run on these alone."""
    with contextlib.suppress(OSError):  # they may be out of reach by now; it is only faster there
        os.sched_setaffinity(0, cores)
