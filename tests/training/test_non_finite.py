"""What is not finite ends a run before it is learned from, or before the checkpoint after it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.training.test_checkpoint import state_of
from training import checkpoint, metrics

SMALL = ["--total-frames", "2_000", "--num-envs", "2", "--checkpoint-frames", "20"]
OF_ALGORITHM = {
    "ppo": ["--rollout-steps", "8"],
    "ppo --lag 1": ["--rollout-steps", "8", "--lag", "1", "--checkpoint-frames", "16"],  # which waits for each update
    "a2c": [],
    "dqn": ["--update-steps", "1", "--start-frames", "10", "--capacity", "100"],
}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(algorithm: str, game: str, *flags: str) -> int:
    env = ["--env", f"tests.envs.own_games:{game}-v0", "--run-dir", "run"]
    return train.main([algorithm.split()[0], *env, *SMALL, *OF_ALGORITHM[algorithm], *flags])


@pytest.mark.parametrize("algorithm", OF_ALGORITHM)
@pytest.mark.parametrize(
    ("game", "flags", "what"),
    [
        ("NaNReward", (), "the environment's reward is not finite"),
        ("InfiniteObservation", (), "the environment's observation is not finite"),
        ("HugeReward", ("--reward", "none", "--precision", "fp32"), "is not finite"),
        ("HugeReward", ("--reward", "none", "--precision", "bf16"), "is not finite"),
    ],
)
def test_it_stops_within_one_update_and_keeps_what_was_learned(
    algorithm: str, game: str, flags: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(algorithm, game, *flags) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert len(said) == 1
    assert what in said[0]
    assert "run/non-finite.safetensors" in said[0]
    saved = checkpoint.checkpoints(Path("run/checkpoints"))
    assert saved and f"the run stands at {saved[-1]}" in said[0]
    assert int(saved[-1].name) <= 80  # two games, the fault in their 40th step
    for path in saved:
        state = checkpoint.load(path)
        assert all(weights.isfinite().all() for weights in state["weights"].values())
        assert all(map(math.isfinite, state["agent"].get("lag", {}).get("metrics", {}).values()))
    rows = metrics.read(Path("run/metrics.jsonl"))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[-1]["frames"] <= 80 + 16  # the rollout in which it came
    batch = load_file("run/non-finite.safetensors")
    names = {name for name, values in batch.items() if values.is_floating_point() and not values.isfinite().all()}
    if game == "NaNReward":
        assert names == {"reward"}
    elif game == "InfiniteObservation":
        assert names == {"observation"}
    else:
        assert any((values.abs() > 1e29).any() for name, values in batch.items() if "reward" in name)


def test_what_is_kept_replaces_a_link(tmp_path: Path) -> None:
    """One that came with a stranger's run may lead to something of the user's."""
    (tmp_path / "letter").write_text("mine")
    assert run("a2c", "Numbers", "--total-frames", "400", "--run-dir", "finite") == 0
    config = json.loads(Path("finite/config.json").read_text())
    config["run"]["env"] = "tests.envs.own_games:NaNReward-v0"
    shutil.rmtree("finite/checkpoints")
    Path("finite/config.json").write_text(json.dumps(config))
    Path("finite/non-finite.safetensors").symlink_to(tmp_path / "letter")
    assert train.main(["resume", "finite", "--env", "tests.envs.own_games:NaNReward-v0"]) == 4
    assert (tmp_path / "letter").read_text() == "mine"
    assert load_file("finite/non-finite.safetensors")


def test_a_run_whose_numbers_are_finite_does_not_stop() -> None:
    assert run("a2c", "Numbers", "--total-frames", "400") == 0


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_no_checkpoint_that_is_not_finite_is_published(part: str, tmp_path: Path) -> None:
    state: dict[str, Any] = state_of(1.0)
    tensors = state["weights"] if part == "weights" else state["optimizer"]["state"][0]
    name = next(name for name, tensor in tensors.items() if tensor.dim())
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = torch.inf
    with pytest.raises(FloatingPointError, match=f"{part}.*{name} is not finite"):
        checkpoint.encode(state)
