"""Code and data move into large pages, and nothing else changes."""

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import large_pages
from training.large_pages import LargePages

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage/enabled")
on_request = pytest.mark.skipif(
    not SETTINGS.exists() or "[madvise]" not in SETTINGS.read_text() or platform.libc_ver()[0] != "glibc",
    reason="this system gives large pages to all or to none",
)

SCRIPT = """
import ctypes, sys, threading, time, torch
from training.large_pages import LargePages
torch.set_num_threads(1)
torch.manual_seed(0)
pixels, weights = torch.randn(4, 4, 84, 84), torch.randn(32, 4, 8, 8)
tensors = [torch.ones(3 * 2**20) for _ in range(8)]
def work():
    return torch.conv2d(pixels, weights, stride=4).relu().flatten(1).log_softmax(1)
def look(pages):
    moves = pages.moves
    while pages.moves == moves:
        assert torch.equal(work(), first)
        pages.look()
def report():
    large = dict.fromkeys(("r-xp", "rw-p"), 0)
    for line in open("/proc/self/smaps"):
        name, value, *_ = line.split()
        if not name.endswith(":"):
            permissions = value
        elif name == "AnonHugePages:" and permissions in large:
            large[permissions] += int(value)
    print(*large.values())
def beside():
    while not done:
        equal.append(torch.equal(work(), first))
first, done, equal = work(), False, []
thread = threading.Thread(target=beside)
thread.start()
while not equal:  # it has compiled what it needs
    time.sleep(0.01)
report()
if "refuse" in sys.argv:  # to make anything executable that was written to
    refused = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
    print("unknown" if refused else "refused")
look(LargePages(watch=0.3))
report()
done = True
thread.join()
assert torch.equal(work(), first) and len(equal) > 10 and all(equal)
"""


def large(*words):
    """Kilobytes of code and of data in large pages, before and after; what a script says besides."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, *said, after = done.stdout.splitlines()
    return [int(number) for number in f"{before} {after}".split()], said


@on_request
def test_used_code_and_all_data_move_while_a_thread_computes():
    """Of 330 MB of code a convolution uses some; eight tensors of 12 MB are 98,304 kB. The results stay the same bits."""
    (code_before, data_before, code, data), _ = large()
    assert code_before == 0
    assert data_before < 10_000
    assert 10_000 < code < 150_000
    assert data > 80_000


@on_request
def test_a_system_that_refuses_is_left_alone():
    """Linux refuses to make what was written executable where a process has asked for that; data still moves."""
    (_, _, code, data), said = large("refuse")
    if said == ["unknown"]:
        pytest.skip("this Linux is older than 6.3, which knows no such refusal")
    assert code == 0
    assert data > 80_000


def test_changed_code_is_not_forgotten(tmp_path):
    """A debugger writes its breakpoints into a process's own copy of a page, which the file does not know."""
    size = large_pages._large_page()
    if not size:
        pytest.skip("no large pages here")
    path = tmp_path / "code"
    path.write_bytes(bytes(2 * size))
    c = large_pages._c()
    with path.open("rb") as file:
        begin = c.mmap(None, 2 * size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE, file.fileno(), 0)
    page = -(-begin // size) * size  # the first that is whole
    view = (ctypes.c_char * size).from_address(page)
    view[100] = b"\xcc"
    assert c.mprotect(begin, 2 * size, mmap.PROT_READ | mmap.PROT_EXEC) == 0
    large_pages._forget(size)
    assert large_pages._copy(page, size)
    assert view[100] == b"\xcc"
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    assert [line[0] for line in maps if line[-1] == str(path)] == [f"{begin:x}-{begin + 2 * size:x}"]
    c.munmap(begin, 2 * size)


def test_a_file_of_any_name_that_was_cut_ends_nothing(tmp_path):
    """Reading code of which the file has nothing any more would be a signal that ends the process."""
    size = large_pages._large_page()
    if not size:
        pytest.skip("no large pages here")
    path = os.fsencode(tmp_path) + b"/c\xf6de"  # no UTF-8
    with open(path, "wb+") as file:
        file.truncate(2 * size)
        c = large_pages._c()
        begin = c.mmap(None, 2 * size, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, file.fileno(), 0)
        page = -(-begin // size) * size
        assert page in [address for address, _ in large_pages._areas(size, code=True)]
        file.truncate(0)
    with pytest.raises(OSError, match="error"):
        large_pages._copy(page, size)
    c.munmap(begin, 2 * size)


def test_nothing_moves_where_there_is_little_room(monkeypatch):
    """Nor is that a refusal: there may be more in a minute."""
    monkeypatch.setattr(large_pages, "free_memory", lambda: 2**30 - 1)
    monkeypatch.setattr(large_pages, "_areas", None)  # which would be called
    assert large_pages._move(2**21)


@pytest.mark.parametrize("why", ["never", "cuda", "large"])
def test_nothing_moves(why, tmp_path, monkeypatch):
    """Where the system gives no large pages or some of 32 MB, and with CUDA; it counts as looked for all the same."""
    moved = []
    monkeypatch.setattr(large_pages, "_forget", moved.append)
    monkeypatch.setattr(large_pages, "_move", moved.append)
    monkeypatch.setattr(large_pages, "_SETTINGS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: why == "cuda")
    (tmp_path / "hpage_pmd_size").write_text(f"{2**25 if why == 'large' else 2**21}\n")
    (tmp_path / "enabled").write_text("always madvise [never]\n" if why == "never" else "always [madvise] never\n")
    pages = LargePages(watch=0)
    pages.look()
    pages.look()
    assert pages.moves == 1
    assert not moved


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="addresses are taken by glibc's names")
def test_it_is_watched_before_anything_moves_and_again_after_a_pause(tmp_path, monkeypatch):
    """Nothing in the first seconds, then by turns."""
    done = []
    monkeypatch.setattr(large_pages, "_forget", lambda size: done.append(("watch", size)))
    monkeypatch.setattr(large_pages, "_move", lambda size: done.append(("move", size)) is None)
    monkeypatch.setattr(large_pages, "_SETTINGS", tmp_path)
    now = [0.0]
    monkeypatch.setattr(large_pages, "perf_counter", lambda: now[0])
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    (tmp_path / "enabled").write_text("[always] madvise never\n")
    pages = LargePages(watch=2, pause=60)
    seen = []
    for now[0] in (1.9, 2.0, 3.9, 4.1, 64.0, 64.2, 66.3):
        pages.look()
        seen.append((len(done), pages.moves))
    assert seen == [(0, 0), (1, 0), (1, 0), (2, 1), (2, 1), (3, 1), (4, 2)]
    assert done == [("watch", 2**21), ("move", 2**21)] * 2
