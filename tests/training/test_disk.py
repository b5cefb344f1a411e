"""A disk that is full: nothing that was there is lost, one line says it, and training goes on when there is room."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.dqn import DQNConfig
from tests.training.test_checkpoint import same, state_of
from training import checkpoint, disk, metrics, start
from training.config import RunConfig
from training.disk import Disk, DiskFullError

ROOT = Path(__file__).parent.parent.parent
SIZE = 2**22  # of the small disk, in bytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, free: int) -> Path:
    """Leave so many bytes free, in whole pages."""
    filler = place / "filler"
    filler.unlink(missing_ok=True)
    room = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, room - free))
    return filler


def test_a_disk_that_is_full_at_any_of_fifty_offsets_leaves_the_old_checkpoint(small_disk: Path) -> None:
    directory = small_disk / "checkpoints"
    old = checkpoint.encode(state_of(1.0))
    kept = checkpoint.save(directory, 1, old)
    big = {**old, "tensors.safetensors": old["tensors.safetensors"] + bytes(2**20)}
    need = sum(map(len, big.values()))
    for offset in range(50):
        filler = fill(small_disk, need * offset // 50)
        with pytest.raises(OSError) as problem:
            checkpoint.save(directory, 2, big)
        assert problem.value.errno == errno.ENOSPC
        assert list(directory.iterdir()) == [kept]
        assert same(checkpoint.load(kept)["scores"], state_of(1.0)["scores"])
        filler.unlink()
    assert checkpoint.save(directory, 2, big).name == "000000000002"


def test_a_row_of_metrics_is_written_whole_or_not(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = Disk()
    with metrics.Metrics(small_disk, 1_000, disk=stop) as written:
        written.add({"loss/policy": 1.0})
        written.write(1, 1, {})
        os.posix_fallocate(os.open(small_disk / "metrics.jsonl", os.O_RDWR), 0, 1)
        fill(small_disk, 0)
        stop.give_up()
        row = {f"made/{number}": float(number) for number in range(1_000)}  # more than the last page has room for
        with pytest.raises(DiskFullError):
            written.write(2, 2, row)
        assert [row["frames"] for row in metrics.read(small_disk / "metrics.jsonl")] == [1]
        fill(small_disk, 2**16)
        written.write(3, 3, row)
    assert [row["frames"] for row in metrics.read(small_disk / "metrics.jsonl")] == [1, 3]
    assert "the disk is full" in capsys.readouterr().err


def test_what_fails_for_want_of_room_is_tried_again_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.01)
    tries = iter([errno.ENOSPC, errno.EDQUOT, errno.ENOSPC, None])

    def write() -> str:
        if (number := next(tries)) is not None:
            raise OSError(number, "full")
        return "written"

    writer = Disk()
    assert writer.write(tmp_path, 12_345, write) == "written"
    assert not writer.full
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"the disk is full, 12,345 bytes are needed and [\d,]+ free; training waits for room", said)


def test_each_writer_says_once_that_it_waits_whatever_others_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of metrics find room where a checkpoint does not; while one waits, training does."""
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.01)
    writer, tries = Disk(), itertools.count()

    def large() -> None:
        if next(tries) < 20:
            raise OSError(errno.ENOSPC, "full")

    saver = threading.Thread(target=writer.write, args=(tmp_path, 12_345, large))
    saver.start()
    while next(tries) < 20:
        full = writer.full
        writer.write(tmp_path, 1, lambda: None)
        assert not full or writer.full or not saver.is_alive()
        time.sleep(0.01)
    saver.join()
    assert not writer.full
    assert capsys.readouterr().err.count("\n") == 1


def test_half_a_row_of_metrics_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write a part of what it is given."""
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.01)
    with metrics.Metrics(tmp_path, 1_000) as written:
        file, calls = written._file, itertools.count()

        class Short:
            def write(self, line: bytes) -> int:
                return file.write(line if next(calls) else line[:9])

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        monkeypatch.setattr(written, "_file", Short())
        written.write(1, 1, {})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"frames": 1, "steps": 1}\n'


def test_any_call_that_fails_for_want_of_room_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories too, and what a disk says only when it is asked to keep what it was given."""
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.01)
    agent = DQNConfig(num_envs=2, capacity=200, start_frames=50, update_steps=16, batch_size=8)
    fails_at, calls = 0, 0

    def full(call: Callable[..., Any], place: Callable[..., str]) -> Callable[..., Any]:
        def wrapped(*args: Any, **flags: Any) -> Any:
            nonlocal calls
            if str(tmp_path) in place(args[0]):
                calls += 1
                if calls == fails_at:
                    raise OSError(errno.ENOSPC, "full")
            return call(*args, **flags)

        return wrapped

    monkeypatch.setattr(os, "fsync", full(os.fsync, lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "mkdir", full(os.mkdir, str))
    ends = set()
    for attempt in itertools.count():
        config = RunConfig("CartPole-v1", agent, total_frames=400, checkpoint_frames=200, run_dir=tmp_path / str(attempt))
        fails_at = 0
        run = start.new_run("dqn", config)
        calls, fails_at = 0, attempt
        with run:
            run.train(lambda row: None)
        last = checkpoint.checkpoints(tmp_path / str(attempt) / "checkpoints")[-1]
        ends.add((last / "manifest.json").read_bytes())
        if calls < fails_at:
            break
    assert len(ends) == 1
    assert attempt > 15


def test_who_waits_for_room_can_be_stopped_and_other_faults_are_not_waited_for(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    def broken() -> None:
        raise OSError(errno.EIO, "broken")

    writer = Disk()
    with pytest.raises(OSError, match="broken"):
        writer.write(tmp_path, 1, broken)
    threading.Timer(0.2, writer.give_up).start()
    with pytest.raises(DiskFullError) as stop:
        writer.write(tmp_path, 1, full)
    assert stop.value.exit_code == 4


@pytest.mark.parametrize("ends", ["room", "signal"])
def test_a_run_waits_for_room_and_goes_on_or_stops_cleanly(small_disk: Path, ends: str) -> None:
    run_dir = small_disk / "run"
    flags = ["--env", "CartPole-v1", "--num-envs", "2", "--checkpoint-frames", "500", "--total-frames", "2_500"]
    command = [sys.executable, str(ROOT / "train.py"), "ppo", *flags, "--rollout-steps", "50", "--run-dir", str(run_dir)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    saved = run_dir / "checkpoints"

    def newest() -> int:
        return max((int(path.name) for path in checkpoint.checkpoints(saved)), default=0)

    until(process, lambda: newest() >= 500)
    filler = fill(small_disk, 0)
    assert process.stderr is not None
    line = process.stderr.readline()
    while "the disk is full" not in line:
        assert process.poll() is None, line
        line = process.stderr.readline()
    stands = newest()
    assert stands < 2_500
    checkpoint.verify(saved / f"{stands:012d}")
    if ends == "room":
        filler.unlink()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert newest() >= 2_500
        frames = [row["frames"] for row in metrics.read(run_dir / "metrics.jsonl")]
        assert frames == sorted(set(frames))
    else:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 4
        assert said.strip().splitlines()[-1].endswith("the run stands at its last checkpoint, if it has one")
        assert newest() == stands
        json.loads((saved / f"{stands:012d}" / "state.json").read_text())
    assert "Traceback" not in said


def until(process: "subprocess.Popen[str]", condition: "object") -> None:
    assert callable(condition)
    while not condition():
        assert process.poll() is None
        time.sleep(0.01)
