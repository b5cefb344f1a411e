"""One run, one writer."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.contract import InputError
from training.lock import Lock, trainer_of

HOLD = """
import sys, time
from pathlib import Path
from training.lock import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def hold(run_dir: Path) -> "subprocess.Popen[str]":
    """A process that has a run's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


def test_the_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        with pytest.raises(InputError, match=rf"is being trained by process {holder.pid} on \S+"):
            Lock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert str(holder.pid) in (tmp_path / "lock").read_text()
    lock = Lock(tmp_path)
    assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
    lock.release()
    assert (tmp_path / "lock").read_text() == ""
    Lock(tmp_path).release()


def test_who_trains_a_run_can_be_asked_without_a_trace(tmp_path: Path) -> None:
    assert trainer_of(tmp_path) is None and list(tmp_path.iterdir()) == []
    process = hold(tmp_path)
    assert str(trainer_of(tmp_path)).startswith(f"process {process.pid} on ")
    process.kill()
    process.communicate()
    assert trainer_of(tmp_path) is None and str(process.pid) in (tmp_path / "lock").read_text()
    (tmp_path / "lock").unlink()
    os.mkfifo(tmp_path / "lock")  # which to open waits for a writer
    assert trainer_of(tmp_path) is None


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="cannot be written"):
        Lock(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_locks_in_the_file_system_the_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = hold(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(InputError, match=f"process {holder.pid}"):
        Lock(tmp_path)
    with pytest.raises(InputError, match=f"process {holder.pid}"):  # who was refused leaves it as it was
        Lock(tmp_path)
    holder.kill()
    holder.communicate()
    lock = Lock(tmp_path)
    left = (tmp_path / "lock").read_text()
    lock.release()
    (tmp_path / "lock").write_text(left)  # of a killed process that had the same number
    Lock(tmp_path).release()
    (tmp_path / "lock").write_text(f"process {os.getpid()} on another-machine\n")
    with pytest.raises(InputError, match="another-machine"):
        Lock(tmp_path)
