"""One id of each family of 3D worlds, through both doors: trained, measured, recorded and reported."""

import hashlib
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

import evaluate
import train
from envs import registry
from envs.contract import InputError
from envs.doom import config_file
from training import checkpoint

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


def test_a_file_of_the_same_name_is_another_game(tmp_path, monkeypatch, capsys) -> None:
    """A scenario of one's own is looked for where one starts: neither door takes another one in its place."""
    pytest.importorskip("vizdoom")
    basic, run_dir, named = config_file("doom/basic.cfg"), tmp_path / "run", ["--env", "doom/mine.cfg"]
    for folder, wad in (("here", "basic.wad"), ("there", "rocket_basic.wad")):
        (tmp_path / folder).mkdir()
        shutil.copy(basic, tmp_path / folder / "mine.cfg")
        shutil.copy(basic.with_name(wad), tmp_path / folder / "basic.wad")
    monkeypatch.chdir(tmp_path / "here")
    rare = ["--image-size", "36x64", "--checkpoint-frames", "500", "--run-dir", str(run_dir)]
    assert train.main(["ppo", *named, *SMALL, *rare]) == 0
    sums = [f"{name} {hashlib.md5(Path(name).read_bytes()).hexdigest()}" for name in ("mine.cfg", "basic.wad")]
    assert json.loads((run_dir / "config.json").read_text())["protocol"]["files"] == sums
    shutil.rmtree(checkpoint.checkpoints(run_dir / "checkpoints")[-1])

    monkeypatch.chdir(tmp_path / "there")
    capsys.readouterr()
    for door, words in ((train, ["resume", str(run_dir)]), (evaluate, [str(run_dir), "--episodes", "1"])):
        assert door.main([*words, *named]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"another game than the one here: files {sums[1]}, here basic.wad " in err
    assert sorted(path.name for path in Path().iterdir()) == ["basic.wad", "mine.cfg"]
    monkeypatch.chdir(tmp_path / "here")
    assert train.main(["resume", str(run_dir), *named]) == 0
