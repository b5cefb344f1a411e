"""Every algorithm on the games that the project is asked for by name: train 40,000 frames, evaluate, record."""

import json
import math
from pathlib import Path

import pytest

import evaluate
import train
from agents.registry import ALGORITHMS
from training import metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("env", ["Berzerk-v0", "Bowling-v0", "Bowling-ram-v0"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_train_and_evaluate(algorithm: str, env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([algorithm, "--env", env, "--total-frames", "40k"]) == 0
    name = f"{env}-{algorithm}-s1"
    losses = [
        value for row in metrics.read(Path("runs") / name / "metrics.jsonl") for key, value in row.items() if "loss/" in key
    ]
    assert losses and all(map(math.isfinite, losses))
    assert evaluate.main([f"runs/{name}", "--episodes", "2", "--blind-games", "1"]) == 0
    out = Path("videos") / name
    scores = json.loads((out / "scores.json").read_text())
    assert len(scores[0]["episodes"]) == 2 and scores[0]["frames"] >= 40_000
    assert json.loads((out / f"{name}-game0.json").read_text())["score"] == scores[0]["episodes"][0]["return"]
    assert (out / f"{name}-game0.mp4").stat().st_size > 10_000 and (out / "report.html").exists()
