"""Code and data in pages of 2 MB, where Linux has such ("transparent huge pages").

A processor has at hand where some thousand pages lie, and looks others up (TLB misses), which takes longest in a virtual
machine. What training uses of torch's code is spread over thousands of pages of 4 KB. Where a sixteenth of 2 MB is used, they
are copied into one page, which takes their place: "large code pages" to Intel, `--use-largepages` to Node.js. Linux moves data
itself. Profilers of native code that are attached later find no names in what was moved; debuggers and tracebacks do.
"""

import contextlib
import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from agents.storage import free_memory

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS, _PAGES, _MEMORY = Path("/proc/self/maps"), Path("/proc/self/pagemap"), Path("/proc/self/mem")
_PRESENT, _SWAPPED, _OF_A_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))  # of an entry of `pagemap`
_USED = 1 / 16  # of a large page: what is used of less stays where it is, since a copy takes memory
_LARGEST = 2**21  # bytes of a large page: other processors have some of 32 or 512 MB, too much for what is used of them
_SPARE = 2**30  # bytes that are free, or nothing moves
_MOST = 2**30  # bytes of data in one place: a replay memory would take seconds, and is looked at seldom
_COLLAPSE = 25  # as Linux numbers this advice, which it takes since 6.1; before, it moves data by and by
_MAY_MOVE, _FIXED = 1, 2  # and what `mremap` may do
_FAILED = ctypes.c_void_p(-1).value


class LargePages:
    """Moves the code that is used most, and data, a few seconds after the start of a run and once a minute from then on.

    Nothing is learned otherwise, so a clock may decide. With CUDA, whose driver has tables of this memory, nothing is moved.
    """

    def __init__(self, watch: float = 2.0, pause: float = 60.0) -> None:
        """Nothing is moved yet.

        Args:
            watch: Seconds before it is watched for the first time what is used, and those for which it is watched.
            pause: Seconds until it is watched again: DQN begins to learn when it has played for a while.
        """
        self.moves = 0
        """How often it was time to move something, whether or not anything could be."""
        self._size = _large_page()
        self._watches = False
        self._watch, self._pause = watch, pause
        self._due = perf_counter() + watch

    def look(self) -> None:
        """Begin to watch, or move what was used since then, where it is time to."""
        now = perf_counter()
        if now < self._due:
            return
        if self._size and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # torch has no types for it
            with contextlib.suppress(OSError, ValueError):  # what /proc does not tell everybody, or tells otherwise
                if not self._watches:
                    _forget(self._size)
                elif not _move(self._size):
                    self._size = 0  # nor would it be allowed later
        self.moves += self._watches
        self._watches = not self._watches
        self._due = now + (self._watch if self._watches else self._pause)


def _large_page() -> int:
    """Bytes of a large page; 0 where there are none to be had."""
    try:
        given = "[never]" not in (_SETTINGS / "enabled").read_text()
        size = int((_SETTINGS / "hpage_pmd_size").read_text())
    except OSError:
        return 0
    return size if given and size <= _LARGEST and platform.libc_ver()[0] == "glibc" else 0


def _areas(size: int, *, code: bool) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Where code of files lies, or data of none, as far as it fills large pages.

    Yields:
        Its address, and what the system says of its pages: (large, small).
    """
    for line in os.fsdecode(_MAPS.read_bytes()).rstrip("\n").split("\n"):
        addresses, permissions, _, _, _, *rest = line.split(maxsplit=5)
        path = "".join(rest)
        begin, end = (int(address, 16) for address in addresses.split("-"))
        begin, end = -(-begin // size) * size, end // size * size
        if code:
            wanted = permissions == "r-xp" and path.startswith("/")
        else:
            wanted = permissions == "rw-p" and path in ("", "[heap]") and end - begin <= _MOST
        if wanted and begin < end:
            yield begin, _told(begin, end - begin).reshape(-1, size // mmap.PAGESIZE)


def _told(begin: int, size: int) -> NDArray[np.uint64]:
    """What the system says of small pages."""
    with _PAGES.open("rb", buffering=0) as pages:
        return np.frombuffer(os.pread(pages.fileno(), size // mmap.PAGESIZE * 8, begin // mmap.PAGESIZE * 8), np.uint64)


def _used(pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of which large pages enough is there: (large,)."""
    used: NDArray[np.bool_] = np.count_nonzero(pages & _PRESENT, axis=1) >= _USED * pages.shape[1]
    return used


def _unchanged(pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which large pages of code are as in their file, with no debugger's breakpoint, say: (large,)."""
    own: NDArray[np.bool_] = (pages & (_PRESENT | _OF_A_FILE)) == _PRESENT
    return np.logical_not((own | _away(pages)).any(axis=-1))


def _away(pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which small pages the system has written to its swap space."""
    away: NDArray[np.bool_] = (pages & _SWAPPED) != 0
    return away


def _runs(begin: int, size: int, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Addresses and bytes of wanted large pages that lie side by side."""
    for first, last in np.flatnonzero(np.diff(wanted, prepend=False, append=False)).reshape(-1, 2).tolist():
        yield begin + first * size, (last - first) * size


def _forget(size: int) -> None:
    """Take code out of the process's table of pages, so that what is there later lies where some was used since then."""
    for begin, pages in _areas(size, code=True):
        for address, length in _runs(begin, size, _unchanged(pages)):
            _c().madvise(address, length, mmap.MADV_DONTNEED)


def _move(size: int) -> bool:
    """Move data and used code into large pages, where there is room for some; returns whether the system allows it."""
    if (free_memory() or 0) < _SPARE:
        return True
    for begin, pages in _areas(size, code=False):
        _c().madvise(begin, pages.size * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
        for address, length in _runs(begin, size, _used(pages) & ~_away(pages).any(axis=1)):
            _c().madvise(address, length, _COLLAPSE)
    return all(
        _copy(begin + index * size, size)
        for begin, pages in list(_areas(size, code=True))
        for index in np.flatnonzero(_used(pages) & _unchanged(pages)).tolist()
    )


def _copy(code: int, size: int) -> bool:
    """Put a copy of code in its place, in one step for all threads; returns whether the system allows it."""
    c = _c()
    room = c.mmap(None, 2 * size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if room == _FAILED:
        return False
    page = -(-room // size) * size
    for begin, end in ((room, page), (page + size, room + 2 * size)):
        if begin < end:
            c.munmap(begin, end - begin)
    moved = False
    try:
        c.madvise(page, size, mmap.MADV_HUGEPAGE)
        with _MEMORY.open("rb", buffering=0) as memory:  # which has an error, and no signal, where a file was cut meanwhile
            if os.preadv(memory.fileno(), [(ctypes.c_char * size).from_address(page)], code) < size:
                return True
        if not _unchanged(_told(code, size)):  # looked at behind the copy, which might have what was written meanwhile
            return True
        allowed: bool = c.mprotect(page, size, mmap.PROT_READ | mmap.PROT_EXEC) == 0
        moved = allowed and c.mremap(page, size, size, _MAY_MOVE | _FIXED, code) == code
        return moved
    finally:
        if not moved:
            c.munmap(page, size)


@cache
def _c() -> ctypes.CDLL:
    """The C library, which takes addresses."""
    library, address, size = ctypes.CDLL(None), ctypes.c_void_p, ctypes.c_size_t
    library.mmap.restype = library.mremap.restype = address
    library.mmap.argtypes = [address, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.mremap.argtypes = [address, size, size, ctypes.c_int, address]
    library.munmap.argtypes = [address, size]
    library.madvise.argtypes = library.mprotect.argtypes = [address, size, ctypes.c_int]
    return library
