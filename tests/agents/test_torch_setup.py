"""How torch is set up on the CPU."""

import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import resource, sys, torch
from agents.torch_setup import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    tensors = [torch.ones(3 * 2**20) for _ in range(8)]
for _ in range(20):  # until the heap is as large as it becomes
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="what other C libraries do with freed memory is their own business"
)
def test_freed_memory_is_kept():
    """Ten times eight tensors of 12 MB: without it their pages come anew from the system each time."""

    def faults(word):
        done = subprocess.run([sys.executable, "-c", ALLOCATE, word], capture_output=True, text=True, check=True)
        return int(done.stdout)

    # Something small that lies at the end of the heap, as by chance in half of all processes, keeps it too.
    assert all(faults("keep") < 200 for _ in range(5))
    assert any(faults("give back") > 5_000 for _ in range(20))
