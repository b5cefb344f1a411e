"""What a program prints when who reads it has left: a closed terminal, `| head`. Imports nothing that takes long."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator


class _Stderr(io.TextIOWrapper):
    """Standard error that nobody need take."""

    def write(self, text: str) -> int:
        """How many characters were taken, or are lost."""
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Bring what is left to whoever takes it."""
        with contextlib.suppress(OSError):
            super().flush()


def outlive_readers() -> None:
    """Go on when nobody reads standard error any more, and without the standard streams that were closed at the start.

    A file that is opened next would have the number of a closed one, and all that is printed would go into it.
    """
    for stream in range(3):
        try:
            os.fstat(stream)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free is this one
    encoding = sys.stderr.encoding if sys.stderr else None
    sys.stderr = _Stderr(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), encoding, errors="backslashreplace", line_buffering=True
    )


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Inside, text is printed of which somebody may want the first lines alone, as with `--help | head`.

    Raises:
        SystemExit: they have gone; as if their leaving had ended the process.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # nor is it there where it was closed before
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to print at the end
        raise SystemExit(128 + signal.SIGPIPE) from None
