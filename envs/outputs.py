"""What a program prints when who reads it has left: a closed terminal, `| head`. Imports nothing that takes long."""

import errno
import io
import os
import sys
from typing import Any


class _Unread(io.TextIOWrapper):
    """Standard output or error that nobody need take."""

    def write(self, text: str) -> int:
        """How many characters were taken, or are lost."""
        try:
            super().write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Bring what is left to whoever takes it."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if error.errno in (errno.EPIPE, errno.EIO):  # nobody will read any more, so what is still held may go too
            nobody = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nobody, self.fileno())
            os.close(nobody)


def outlive_readers() -> None:
    """Go on when nobody reads standard output or error any more, and without the standard streams that were closed before.

    A file that is opened next would have the number of a closed one, and all that is printed would go into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
    sys.stdout, sys.stderr = _unread(1, sys.stdout), _unread(2, sys.stderr)


def _unread(descriptor: int, stream: Any) -> _Unread:
    """A stream of the same sort; one that was closed is None."""
    sort = {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through") if stream}
    raw = io.FileIO(descriptor, "w", closefd=False)
    return _Unread(raw if sort.get("write_through") else io.BufferedWriter(raw), **sort)  # the first with `python -u`
