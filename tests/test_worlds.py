"""One id of each family of 3D worlds, through both doors: trained, measured, recorded and reported."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

import evaluate
import train
from envs import registry
from envs.contract import InputError

SMALL = ["--total-frames", "1k", "--num-envs", "2", "--rollout-steps", "32", "--frame-stack", "1", "--minibatches", "2"]
STAND_INS = Path(__file__).parent / "envs" / "stand_ins"


@pytest.mark.parametrize(
    ("env", "flags", "rate", "size"),
    [
        ("VizdoomBasic-v1", ["--image-size", "36x64", "--game-variables"], 35, (160, 120)),
        ("MiniWorld-OneRoomS6Fast-v0", [], 30, (800, 600)),
        ("dmlab/lt_chasm", ["--image-size", "36x48"], 60, (48, 36)),
        (
            "dmlab30/language_select_described_object",
            ["--image-size", "36x48", "--memory", "gru"],
            60,
            (48, 36),
        ),
    ],
)
def test_train_evaluate_record_report(env, flags, rate, size, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("PLAYFIELD_CACHE", str(tmp_path / "cache"))
    if env.startswith("dmlab"):
        monkeypatch.syspath_prepend(str(STAND_INS))  # the stand-in plays the engine
    try:
        registry.family_of(env)
    except InputError as error:
        pytest.skip(str(error))
    run_dir, out = tmp_path / "world", tmp_path / "out"
    assert train.main(["ppo", "--env", env, *SMALL, *flags, "--run-dir", str(run_dir)]) == 0
    evaluated = [str(run_dir), f"random:{env}", "--episodes", "2", "--blind-games", "0", "--out", str(out)]
    assert evaluate.main(evaluated) == 0
    agent, random = json.loads((out / "scores.json").read_text())
    assert (agent["env"], random["env"], agent["frames"] >= 1000) == (env, env, True)
    assert agent["protocol"] == random["protocol"] | {"size": agent["protocol"]["size"], "extra": agent["protocol"]["extra"]}
    with av.open(str(out / "world-game0.mp4")) as video:
        (stream,) = video.streams.video
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert stream.average_rate == rate
    held = json.loads((out / "world-game0.json").read_text())["held"]
    assert len(pictures) == pytest.approx(agent["episodes"][0]["frames"] + held, abs=5)
    height, width = pictures[0].shape[:2]
    assert width > size[0] and height >= size[1] and np.std(pictures[-1]) > 1
    page = (out / "report.html").read_text()
    assert env in page and page.count("<video") == 2
    assert "world" in capsys.readouterr().out
