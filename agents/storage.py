"""Whether what an agent stores has room: said before it is laid out, since a system without memory kills without a word."""

import contextlib
import os
from pathlib import Path

import torch

from envs.contract import InputError

_SHARE = 0.9  # of the free memory that storage may take
_SHARE_BESIDE = 0.5  # of a device's, where it may lie elsewhere
_CONTROL_GROUPS = (  # version 2 and version 1: files of the limit, the use and counts, and which count is of cached files
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def check_room(what: str, size: int, advice: str, device: torch.device | None = None) -> None:
    """Refuse storage that does not fit.

    Args:
        what: How the storage is called.
        size: What it needs, in bytes.
        advice: What to do about it.
        device: Where it lies; CPU where not given.

    Raises:
        InputError: it needs more than nine tenths of what is free.
    """
    on_cuda = device is not None and device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_cuda else free_memory()
    if free is not None and size > _SHARE * free:
        raise InputError(f"{what} needs {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; {advice}")


def fits_on(device: torch.device, size: int) -> bool:
    """Whether a CUDA device has room for storage of `size` bytes, and for what is computed beside it."""
    return device.type == "cuda" and size <= _SHARE_BESIDE * torch.cuda.mem_get_info(device)[0]


def steps_that_fit(bytes_a_step: int) -> int:
    """Steps that storage has room for, in thousands."""
    return max(int(_SHARE * (free_memory() or 0)) // bytes_a_step // 1000 * 1000, 1000)


def free_memory() -> int | None:
    """Bytes that can be taken without swapping, of the machine and of the container; None where the system does not say."""
    known = [free for free in (_of_machine(), _of_container()) if free is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    table = Path("/proc/meminfo")
    if table.exists():
        fields = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    names = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in names else None


def _of_container(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What its limit leaves, where it has one; cached files count as free, since the system gives them up."""
    for limit, used, stat, cached in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such file, or `max`
            counts = dict(line.split() for line in (group / stat).read_text().splitlines())
            return max(0, int((group / limit).read_text()) - int((group / used).read_text()) + int(counts[cached]))
    return None
