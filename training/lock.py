"""One run, one writer."""

import contextlib
import errno
import fcntl
import os
import re
import socket
from pathlib import Path

from envs.contract import InputError


class Lock:
    """Holds a run's directory for this process. The system lets go of it when the process ends, however it ends."""

    def __init__(self, run_dir: Path) -> None:
        """Take the lock, and write down who has it; one that a killed process has left is taken over.

        Raises:
            InputError: another process has it, or it cannot be written.
        """
        path = run_dir / "lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._take(run_dir)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            os.close(self._file)
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        except InputError:
            os.close(self._file)
            raise

    def _take(self, run_dir: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 200, 0).decode(errors="replace").strip()
            # Some file systems of clusters have no locks: there the process that is written down decides.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES) or _lives(holder):
                raise InputError(f"{run_dir} is being trained by {holder or 'another process'}") from error

    def release(self) -> None:
        """Let go of it."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)  # a later process may have this one's number
            os.close(self._file)
            self._file = -1


def trainer_of(run_dir: Path) -> str | None:
    """Who trains a run now, as its lock says; None where nobody does. Nothing is written."""
    with contextlib.suppress(OSError):
        file = os.open(run_dir / "lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            holder = os.read(file, 200).decode(errors="replace").strip()
        finally:
            os.close(file)
        return holder if _lives(holder) else None  # no lock is taken to find out: a trainer that begins might meet it
    return None


def _lives(holder: str) -> bool:
    """Whether what holds a lock may still run: another process of this machine that does, or one of another machine."""
    found = re.fullmatch(r"process (\d+) on (.+)", holder)
    if found is None or found[2] != socket.gethostname():
        return found is not None
    if int(found[1]) == os.getpid():  # as of a killed one in a container, where numbers begin anew
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
