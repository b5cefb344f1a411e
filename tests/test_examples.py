"""What the pages show whole is run as it stands there."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import evaluate
import train
from agents import on_policy
from agents.registry import ALGORITHMS, Algorithm
from training import checkpoint, metrics

DOCS = Path(__file__).parent.parent / "docs"
RANDOM = 22  # steps for which a random player balances the pole, on average


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def code_of(page: str) -> str:
    """The one block of Python on a page."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    return code


def test_the_agent_that_extending_shows_learns_and_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("reinforce")
    monkeypatch.setitem(sys.modules, "reinforce", module)  # where its settings' types are looked up
    exec(compile(code_of("extending.md"), "reinforce.py", "exec"), vars(module))
    page = (DOCS / "extending.md").read_text()
    (imports,) = re.findall(r"`from agents.reinforce import (.*?)`", page)
    (row,) = re.findall(r"`\"reinforce\": (Algorithm\(.*?\))`", page)
    names = {name: getattr(module, name) for name in imports.split(", ")}
    algorithm = eval(row, {**names, "Algorithm": Algorithm, "on_policy": on_policy})
    monkeypatch.setitem(ALGORITHMS, "reinforce", algorithm)
    flags = [
        "--frame-stack",
        "1",
        "--reward",
        "none",
        "--total-frames",
        "100k",
        "--checkpoint-frames",
        "50k",
        "--run-dir",
        "run",
    ]
    assert train.main(["reinforce", "--env", "CartPole-v1", *flags]) == 0
    assert metrics.read(Path("run/metrics.jsonl"))[-1]["score/mean_100"] > 3 * RANDOM
    *_, last = checkpoint.checkpoints(Path("run/checkpoints"))
    whole = (last / "weights.safetensors").read_bytes()
    shutil.rmtree(last)
    assert train.main(["resume", "run"]) == 0
    assert (last / "weights.safetensors").read_bytes() == whole
    assert evaluate.main(["run", "--episodes", "10", "--videos", "0", "--blind-games", "0", "--out", "out"]) == 0
    assert json.loads(Path("out/scores.json").read_text())[0]["mean"] > 3 * RANDOM


def test_the_environment_that_gymnasium_shows_is_learned() -> None:
    Path("corridor.py").write_text(code_of("gymnasium.md"))
    command = ["--env", "corridor:Corridor-v0", "--total-frames", "30k", "--run-dir", "run"]
    assert train.main(["ppo", *command]) == 0
    last = metrics.read(Path("run/metrics.jsonl"))[-1]
    assert last["score/mean_100"] == 1
    assert last["score/frames_per_game"] < 15  # ten are the fewest
