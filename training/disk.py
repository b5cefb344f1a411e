"""Writing to a disk that may be full: training waits until there is room, and nothing is lost."""

import errno
import shutil
import sys
import threading
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
        self.full = False
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Wait no longer, now and from now on: the run was asked to stop."""
        self._given_up.set()

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
        while True:
            try:
                written = write()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                said = (
                    f"{directory}: the disk is full, {size:,} bytes are needed and {shutil.disk_usage(directory).free:,} free"
                )
                if not self.full:
                    print(f"{said}; training waits for room, and a signal ends it", file=sys.stderr, flush=True)
                self.full = True
                if self._given_up.wait(RETRY_SECONDS):
                    raise DiskFullError(f"{said}; the run stands at its last checkpoint") from error
            else:
                self.full = False
                return written
