"""Writing to a disk that may be full: training waits until there is room, and nothing is lost."""

import errno
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from envs.contract import InputError

RETRY_SECONDS = 2.0
_Written = TypeVar("_Written")


class DiskFullError(InputError):
    """The disk is full, and the run was asked to stop."""

    exit_code = 4


class Disk:
    """Writes, and where there is no room waits for it, in whatever thread it is called."""

    def __init__(self) -> None:
        """There is room as far as is known."""
        self._waiting: set[int] = set()  # threads
        self._given_up = False  # no Event: a signal's handler sets it, and may come while its lock is held

    @property
    def full(self) -> bool:
        """Whether a thread waits for room."""
        return bool(self._waiting)

    def give_up(self) -> None:
        """Wait no longer, now and from now on: the run was asked to stop."""
        self._given_up = True

    def write(self, directory: Path, size: int, write: Callable[[], _Written]) -> _Written:
        """Call `write` until it does not fail for want of room.

        Args:
            directory: Where it writes.
            size: Bytes that it needs.
            write: Fails with an OSError, and leaves nothing behind when it does.

        Raises:
            DiskFullError: there was no room, and waiting was given up.
            OSError: it fails for another reason.
        """
        thread = threading.get_ident()
        try:
            while True:
                try:
                    return write()
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    free = shutil.disk_usage(directory).free
                    said = f"{directory}: the disk is full, {size:,} bytes are needed and {free:,} free"
                    if thread not in self._waiting:
                        print(f"{said}; training waits for room, and a signal ends it", file=sys.stderr, flush=True)
                    self._waiting.add(thread)
                    if self._wait():
                        raise DiskFullError(f"{said}; the run stands at its last checkpoint, if it has one") from error
        finally:
            self._waiting.discard(thread)

    def _wait(self) -> bool:
        """Wait for a while; whether waiting was given up."""
        end = time.monotonic() + RETRY_SECONDS
        while not self._given_up and time.monotonic() < end:
            time.sleep(0.02)
        return self._given_up
