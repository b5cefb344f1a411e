"""`evaluate.py` as its users meet it."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import evaluate
import train
from tests.training.test_lock import hold
from training import export

ROOT = Path(evaluate.__file__).parent
RUN = [
    "ppo",
    "--env",
    "Bowling-ram-v0",
    "--total-frames",
    "2k",
    "--num-envs",
    "4",
    "--rollout-steps",
    "32",
    "--max-episode-frames",
    "600",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "bowler"
    assert train.main([*RUN, "--run-dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bowler"
    assert evaluate.main([str(trained), "--episodes", "3", "--blind-games", "2", "--out", str(out)]) == 0
    return out


def test_scores_json_has_what_the_contract_names(evaluated: Path, trained: Path) -> None:
    agent, *blind = json.loads((evaluated / "scores.json").read_text())
    names = "run algorithm env protocol policy frames checkpoint commit episodes distinct_games mean median std iqm ci95"
    assert set(names.split()) | {"human_normalized", "baselines"} <= set(agent)
    assert (agent["run"], agent["algorithm"], agent["env"], agent["policy"]) == ("bowler", "ppo", "Bowling-ram-v0", "sample")
    assert agent["frames"] == int(agent["checkpoint"]) >= 2_000
    assert agent["protocol"]["max_episode_frames"] == 600
    assert len(agent["episodes"]) == 3
    assert agent["mean"] == pytest.approx(np.mean([episode["return"] for episode in agent["episodes"]]))
    assert agent["human_normalized"] == pytest.approx((agent["mean"] - 23.1) / (160.7 - 23.1))
    assert {"name", "score", "protocol", "source", "comparable"} <= set(agent["baselines"][0])
    assert [score["kind"] for score in (agent, *blind)] == ["agent", "blind replay", "script", "script"]
    assert [score["run"] for score in blind] == ["blind-bowler", "script-A-Bowling-ram-v0", "script-B-Bowling-ram-v0"]
    seeds = {episode["seed"] for episode in agent["episodes"]}
    for score in blind:
        assert len(score["episodes"]) == 2
        assert score["protocol"] == agent["protocol"]
        assert not seeds & {episode["seed"] for episode in score["episodes"]}


def test_the_video_shows_the_game_whose_score_is_written(evaluated: Path) -> None:
    episode = json.loads((evaluated / "scores.json").read_text())[0]["episodes"][0]
    card = json.loads((evaluated / "bowler-game0.json").read_text())
    assert (card["score"], card["seed"], card["game_frames"]) == (episode["return"], episode["seed"], episode["frames"])
    with av.open(str(evaluated / "bowler-game0.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == episode["frames"] + card["held"]
        assert video.streams.video[0].average_rate == 60


def test_the_report_stands_beside_the_scores(evaluated: Path) -> None:
    page = (evaluated / "report.html").read_text()
    assert "bowler" in page
    assert "--episodes 3" in page
    assert sorted(path.name for path in evaluated.iterdir()) == [
        "bowler-game0.json",
        "bowler-game0.mp4",
        "report.html",
        "scores.json",
    ]


def test_the_same_command_gives_the_same_scores(
    evaluated: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("evaluation.progress.SECONDS_BETWEEN_LINES", 0)
    assert evaluate.main([str(trained), "--episodes", "3", "--blind-games", "2", "--videos", "0", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "scores.json").read_text() == (evaluated / "scores.json").read_text()
    said = capsys.readouterr().out
    assert "bowler: 1 of 3 games, mean" in said
    assert "blind-bowler: 1 of 2 games, mean" in said


def test_a_checkpoint_and_a_zoo_entry_play_like_their_run(evaluated: Path, trained: Path, tmp_path: Path) -> None:
    saved = sorted((trained / "checkpoints").iterdir())[-1]
    assert export.main([str(saved), str(tmp_path / "entry")]) == 0
    whole = json.loads((evaluated / "scores.json").read_text())[0]
    for subject, name in ((saved, f"bowler@{int(saved.name)}"), (tmp_path / "entry", "entry")):
        out = tmp_path / f"out-{name}"
        assert evaluate.main([str(subject), "--episodes", "3", "--videos", "0", "--blind-games", "0", "--out", str(out)]) == 0
        score = json.loads((out / "scores.json").read_text())[0]
        assert score["run"] == name
        for field in ("episodes", "mean", "commit", "frames", "checkpoint", "protocol"):
            assert score[field] == whole[field], field


def test_a_run_is_exported_from_its_newest_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = sorted((trained / "checkpoints").iterdir())[-1]
    monkeypatch.chdir(saved.parent)
    assert export.main([saved.name, str(tmp_path / "of-a-checkpoint")]) == 0
    assert export.main([str(trained), str(tmp_path / "of-a-run")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{tmp_path / 'of-a-run'} has the agent of {saved}"
    for name in ("weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / "of-a-run" / name).read_bytes() == (tmp_path / "of-a-checkpoint" / name).read_bytes()
    for path, why in ((trained, "exists already"), (tmp_path, "is neither a run with a checkpoint nor a checkpoint")):
        target = tmp_path / ("of-a-run" if path == trained else "other")
        assert export.main([str(path), str(target)]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert export.main([str(trained), "no-utf-8-\udcff"]) == 2


@pytest.mark.parametrize("harm", ["no metrics", "a pipe for metrics", "no config", "a config in pieces"])
def test_an_export_that_fails_leaves_nothing(
    harm: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    if harm == "a config in pieces":
        (run / "config.json").write_text("{}")
    else:
        path = run / ("config.json" if "config" in harm else "metrics.jsonl")
        path.unlink()
        if "pipe" in harm:
            os.mkfifo(path)
    assert export.main([str(run), str(tmp_path / "zoo" / "mine")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("export: ") and said.count("\n") == 1
    assert not (tmp_path / "zoo").exists() or list((tmp_path / "zoo").iterdir()) == []


def test_random_play_is_measured_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["random:CartPole-v1", "--episodes", "20", "--videos", "1", "--out", str(tmp_path)]
    assert evaluate.main(args) == 0
    score = json.loads((tmp_path / "scores.json").read_text())[0]
    assert 15 < score["mean"] < 30  # a random player balances the pole for 22 steps on average
    assert (score["algorithm"], score["frames"], score["policy"], score["human_normalized"]) == ("random", 0, "uniform", None)
    assert score["baselines"] == []
    assert "random-CartPole-v1" in capsys.readouterr().out


BAD = {
    "nothing": ([], "expected a run"),
    "a path that is not there": (["runs/nothing"], "no run"),
    "a foreign directory": (["."], "no run"),
    "a player without a game": (["random"], "'random' names no game; write random:Bowling-ram-v0"),
    "a script without a game": (["script:"], "write script:Bowling-ram-v0"),
    "no games": (["random:CartPole-v1", "--episodes", "0"], "--episodes"),
    "an unknown id": (["random:Bowlin-v0"], "Bowling-v0"),
    "a game without scripts": (["script:CartPole-v1"], "no script"),
    "a misspelt flag": (["random:CartPole-v1", "--episode", "3"], "--episodes"),
    "a device that is not there": (["random:CartPole-v1", "--device", "cuda"], "--device cpu"),
    "a module that is not there": (["random:no.such.module:Id-v0"], "no.such"),
    "a place that cannot be": (["random:CartPole-v1", "--out", "/dev/null/x"], "cannot be made"),
    "a place where root may write and nothing can be": (["random:CartPole-v1", "--out", "/proc/nothing/x"], "cannot be made"),
    "a place that takes nothing": (["random:CartPole-v1", "--out", "/proc"], "cannot be made or written to"),
    "games of the blind baselines": (["random:CartPole-v1", "--episodes", "1000001"], "expected 1 to 1,000,000"),
    "a policy for what has none": (["random:CartPole-v1", "script:Bowling-v0", "--policy", "greedy"], "are no trained agents"),
    "a policy for random play": (["random:CartPole-v1", "--policy", "greedy"], "is no trained agent, and has no policy"),
    "a policy that is none": (["random:CartPole-v1", "--policy", "best"], "best"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_created(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args, said = BAD[case]
    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert evaluate.main(args) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_is_none_is_answered_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["random:CartPole-v1", "--policy", "best"]) == 2
    assert set(re.findall(r"'(\w+)'", capsys.readouterr().err)) == {"best", "sample", "greedy"}


def test_a_run_without_a_checkpoint_says_when_the_first_one_comes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To go on with it is advised only where nobody trains it."""
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    holder = hold(tmp_path)
    try:
        assert evaluate.main([str(tmp_path)]) == 2
        trainer = f"process {holder.pid} on {socket.gethostname()}"
        said = f"has no checkpoint yet; {trainer} trains it, and writes the first at 2,000 frames\n"
        assert said in capsys.readouterr().err
        assert str(holder.pid) in (tmp_path / "lock").read_text()
    finally:
        holder.kill()
        holder.communicate()
    assert evaluate.main([str(tmp_path)]) == 2
    assert f"train.py resume {tmp_path}` trains it\n" in capsys.readouterr().err


def test_a_directory_of_runs_names_some(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = [tmp_path / name for name in "abcdef"]
    for run_dir in held:
        run_dir.mkdir()
        (run_dir / "config.json").write_text((trained / "config.json").read_text())
    assert evaluate.main([str(tmp_path)]) == 2
    others = ", ".join(map(str, held[1:4]))
    said = f"evaluate.py {held[0]}` measures one of those in it; others: {others} and 2 more\n"
    assert capsys.readouterr().err.endswith(said)


def test_help_speaks_of_what_is_to_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    said = capsys.readouterr().out
    assert "RUN [RUN ...]" in said and "--out DIR" in said and "None" not in said


@pytest.mark.parametrize("agent_first", [True, False])
def test_what_was_asked_for_is_not_replaced_by_what_comes_with_it(agent_first: bool, trained: Path, tmp_path: Path) -> None:
    asked = [str(trained), "script:Bowling-ram-v0"] if agent_first else ["script:Bowling-ram-v0", str(trained)]
    args = [*asked, "--episodes", "1", "--videos", "0", "--blind-games", "2"]
    assert evaluate.main([*args, "--out", str(tmp_path)]) == 0
    scores = {score["run"]: score for score in json.loads((tmp_path / "scores.json").read_text())}
    games = {"bowler": 1, "script-A-Bowling-ram-v0": 1, "script-B-Bowling-ram-v0": 1, "blind-bowler": 2}
    assert {name: len(score["episodes"]) for name, score in scores.items()} == games
    assert all(score["protocol"] == scores["bowler"]["protocol"] for score in scores.values())  # scripts follow the run's rules


def test_an_evaluation_replaces_its_own_earlier_videos_and_no_others(trained: Path, tmp_path: Path) -> None:
    """And only when it has new ones: a refused evaluation costs nothing."""
    names = ["bowler-game0.mp4", "bowler-game0.json", "bowler-game1.mp4", "bowler-game7.partial.mp4"]
    other = "another-game0.mp4"
    for name in [*names, other]:
        (tmp_path / name).touch()
    args = [str(trained), "--episodes", "1", "--blind-games", "0", "--out", str(tmp_path)]
    if not torch.cuda.is_available():
        assert evaluate.main([*args, "--device", "cuda"]) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, other])
    assert evaluate.main(args) == 0
    left = {path.name for path in tmp_path.iterdir()} - {"scores.json", "report.html"}
    assert left == {*names[:2], other} and (tmp_path / names[0]).stat().st_size > 1000
    assert evaluate.main([*args, "--videos", "0"]) == 0
    assert {path.name for path in tmp_path.iterdir()} - {"scores.json", "report.html"} == {other}


def recording(out: Path, *before: str, **options: Any) -> "subprocess.Popen[str]":
    """An evaluation that has begun to record its first game; it heeds signals that a shell's background job would not."""

    def heed() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    command = [*before, sys.executable, "evaluate.py", "random:Bowling-ram-v0", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heed, **options}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    while not list(out.glob("*.partial.mp4")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_says_that_nothing_was_scored(number: int, tmp_path: Path) -> None:
    """While games are played: one line, and no scores. Hangups come in numbers, and `timeout` sends SIGTERM twice."""
    with recording(tmp_path / "out") as process:
        for _ in range(1 if number == signal.SIGINT else 200):
            process.send_signal(number)
            time.sleep(0.001)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "evaluate.py: stopped; no scores were written\n")
    assert out == "random-Bowling-ram-v0: 30 games\n"
    assert not (tmp_path / "out" / "scores.json").exists()


def test_a_terminal_that_closes_stops_it(tmp_path: Path) -> None:
    """The bar that is taken away then has nowhere to be taken from."""
    keyboard, screen = os.openpty()

    def own_the_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.close(os.open(os.ttyname(1), os.O_RDWR))  # whoever leads a session and opens one has it

    streams = {"stdin": screen, "stdout": screen, "preexec_fn": own_the_terminal, "start_new_session": True}
    with recording(tmp_path / "out", **streams) as process:
        os.close(screen)
        os.close(keyboard)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (129, "evaluate.py: stopped; no scores were written\n")


def test_a_hangup_is_none_under_nohup(tmp_path: Path) -> None:
    with recording(tmp_path / "out", "nohup") as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_directory_that_is_being_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Until the other one has ended, however it ends. What was made for nothing goes again."""
    out = tmp_path / "new" / "out"
    args = ["random:CartPole-v1", "--episodes", "1", "--videos", "0", "--out", str(out)]
    with recording(out) as process:
        assert evaluate.main(args) == 2
        said = f"evaluate.py: {out} is being written by another evaluate.py; --out names another\n"
        assert capsys.readouterr() == ("", said)
        assert [path.name for path in out.iterdir()] == ["random-Bowling-ram-v0-game0.partial.mp4"]
        process.kill()
        process.communicate()
    assert evaluate.main(args) == 0
    assert (out / "scores.json").exists()


def test_an_evaluation_that_fails_leaves_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = []

    def play(*_: object) -> None:
        made.append(Path("new/out").is_dir())
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.session.evaluate", play)
    assert evaluate.main(["random:CartPole-v1", "--out", "new/out"]) == 130
    assert made == [True]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fault", "code"), [(errno.ENOLCK, 0), (errno.EWOULDBLOCK, 2)])
def test_where_there_are_no_locks_it_goes_on(fault: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("evaluation.session.fcntl.flock", refuse)
    args = ["random:CartPole-v1", "--episodes", "1", "--videos", "0", "--out", str(tmp_path / "out")]
    assert evaluate.main(args) == code


def test_a_foreign_directory_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = sorted((trained / "checkpoints").iterdir())[-1]
    (tmp_path / "weights.safetensors").write_bytes((saved / "weights.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"architectures": ["Something"]}')
    assert evaluate.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "config.json" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["weights.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(
    damage: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "run" / "checkpoints" / "000000000001"
    saved.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text((trained / "config.json").read_text())
    for file in sorted((trained / "checkpoints").iterdir())[-1].iterdir():
        (saved / file.name).write_bytes(file.read_bytes())
    (saved / damage).write_bytes(b"not what it was")
    assert evaluate.main([str(saved), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "is damaged: it is not what was written" in err
    assert not (tmp_path / "out").exists()
