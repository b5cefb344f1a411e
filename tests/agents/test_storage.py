"""What storage will need is said beforehand, and is what it then takes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from agents import storage
from agents.ppo import PPOConfig
from agents.storage import check_room, free_memory
from envs.contract import InputError
from tests.agents.driving import build, describe

# Fill a replay or a rollout, and print what was predicted and how much larger the process then is, in bytes.
FILL = """
import re, sys
import torch
from pathlib import Path
from agents.replay import Replay, bytes_per_step
from agents.rollout import Rollout
from tests.agents.driving import describe

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

game = describe((1, 84, 84), "uint8")
tables = torch.ones(100)
before = resident()
if sys.argv[1] == "replay":
    predicted = 30_000 * bytes_per_step((1, 84, 84), torch.uint8)
    held = Replay(30_000, 8, 4, game)
else:
    predicted = Rollout(128, 256, 4, game, torch.device("meta")).size
    held = Rollout(128, 256, 4, game, torch.device("cpu"))
for table in vars(held).values():
    if isinstance(table, torch.Tensor):
        table.fill_(1)
print(predicted, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")
@pytest.mark.parametrize("kind", ["replay", "rollout"])
def test_the_memory_predicted_is_the_memory_taken(kind: str) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, kind], capture_output=True, text=True, check=True)
    predicted, taken = map(int, done.stdout.split())
    assert predicted > 2e8
    assert taken == pytest.approx(predicted, rel=0.1)


def test_a_rollout_that_does_not_fit_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "free_memory", lambda: 10**9)
    game, config = describe((1, 84, 84), "uint8"), PPOConfig(num_envs=1_024, rollout_steps=128)
    needs = f"{1_024 * 132 * 7_056 / 1e9:.1f} GB"  # of frames alone, with the stack's past
    with pytest.raises(InputError, match=rf"128 steps in each of 1,024 games needs {needs} and 1.0 GB are free; take fewer"):
        build("ppo", game, config)
    build("ppo", game, dataclasses.replace(config, num_envs=128))
    with pytest.raises(InputError, match="128 games, twice for --lag 1, with a checkpoint of it needs"):
        build("ppo", game, dataclasses.replace(config, num_envs=128, lag=1))


def test_a_container_has_no_more_than_its_limit(tmp_path: Path) -> None:
    """With what cached files take, since the system gives that up."""
    assert storage._of_container(tmp_path) is None
    for name, text in {
        "memory.max": "5000\n",
        "memory.current": "4000\n",
        "memory.stat": "anon 7\ninactive_file 300\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert storage._of_container(tmp_path) == 1_300
    (tmp_path / "memory.max").write_text("max\n")
    assert storage._of_container(tmp_path) is None
    (tmp_path / "memory").mkdir()  # control groups of version 1
    for name, text in {
        "limit_in_bytes": "6000\n",
        "usage_in_bytes": "4000\n",
        "stat": "inactive_file 7\ntotal_inactive_file 300\n",
    }.items():
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert storage._of_container(tmp_path) == 2_300


def test_free_memory_is_known_here() -> None:
    free = free_memory()
    assert free is None or 2**20 < free < 2**50
    check_room("nothing", 0, "")
