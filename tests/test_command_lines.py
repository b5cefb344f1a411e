"""Three hundred command lines that nobody meant: each is one line of explanation, exit code 2, and nothing is made.

A line is one that could be, with a flag's value, name or place spoilt. What turns out to be right all the same is not run.
"""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train
from agents.registry import ALGORITHMS
from evaluation import session
from training import start
from training.config import RunConfig

ROOT = Path(__file__).parent.parent
ENVS = (
    "CartPole-v1",
    "Bowling-ram-v0",
    "Berzerk-v0",
    "ALE/Pong-v5",
    "VizdoomBasic-v1",
    "MiniWorld-Hallway-v0",
    "dmlab/lt_chasm",
)
JUNK = (
    *("", " ", "-", "--", "---", "nan", "inf", "-inf", "1e999", "-1", "0x10", "1_", "١٢", "½", "1;2", "NaN", "None", "null"),
    *("[]", "{}", "()", "*", "?", "\0", "\n", "\t", "\x1b[31m", "💥", "ü" * 200, "x" * 300, "../" * 60, "/dev/null", "~"),
    *("$(touch made)", "`touch made`", "%s%n", "True", "maybe", "1,2", "72x", "x72", "1-", "-5-5", "9" * 400, "1e308"),
    *("1e-400", "2-4-6", "a=b", "--env", "@made"),
)
IDS = (
    "Bowlin-v0",
    "bowling-v0",
    "Bowling-v9",
    "ALE/Bowling-v0",
    "CartPole",
    "no.module:Game-v0",
    ":",
    "a:b:c",
    "random:Bowling-v0",
    "dmlab/",
    "ALE/",
)


class AcceptedError(Exception):
    """The command line was right."""


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(*_: Any, **__: Any) -> None:
        raise AcceptedError

    monkeypatch.setattr(start, "open_envs", accept)
    monkeypatch.setattr(session, "run", accept)
    monkeypatch.chdir(tmp_path)


def flags_of(algorithm: str) -> list[str]:
    fields = [*dataclasses.fields(RunConfig), *dataclasses.fields(ALGORITHMS[algorithm].config)]
    return sorted({f"--{field.name.replace('_', '-')}" for field in fields} - {"--agent"})


def spoilt(draw: random.Random) -> tuple[str, list[str]]:
    """A program and a command line that is wrong, or most likely so."""
    if draw.random() < 0.25:
        right = [draw.choice(["random:CartPole-v1", "nothing", "random:Bowling-v0"])]
        flags = ["--episodes", "--seed", "--policy", "--videos", "--blind-games", "--device", "--out", "--episode", "--x"]
        return "evaluate.py", spoil(draw, right, flags)
    if draw.random() < 0.15:
        return "train.py", draw.choice(
            [
                ["resume"],
                ["resume", "a", "b"],
                ["resume", draw.choice(JUNK)],
                ["doctor", draw.choice(JUNK)],
                [draw.choice(JUNK)],
            ]
        )
    algorithm = draw.choice(list(ALGORITHMS))
    return "train.py", [algorithm, *spoil(draw, ["--env", draw.choice(ENVS)], flags_of(algorithm))]


def spoil(draw: random.Random, right: list[str], flags: list[str]) -> list[str]:
    flag = draw.choice(flags)
    match draw.randrange(7):
        case 0:
            return [*right, flag, draw.choice(JUNK)]
        case 1:
            return [*right, f"{flag}={draw.choice(JUNK)}"]
        case 2:
            return [*right, flag[:-1] + draw.choice("qxz"), "1"]
        case 3:
            return [*right, flag]
        case 4:
            return [*right, draw.choice(JUNK)]
        case 5:
            return [draw.choice(IDS) if word in ENVS else word for word in right] + [draw.choice(JUNK)]
        case _:
            return [*right, *(word for _ in range(3) for word in (draw.choice(flags), draw.choice(JUNK)))]


def check(code: int, err: str, args: list[str]) -> None:
    assert code == 2, (args, err)
    assert err.count("\n") == 1, (args, err)
    assert "Traceback" not in err
    assert len(err) < 1_000, args
    assert list(Path().iterdir()) == [], args


@pytest.mark.timeout(600)
def test_each_is_one_line_and_nothing_is_made(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    total, accepted = request.config.getoption("--command-lines"), 0
    for _ in range(total):
        program, args = spoilt(draw)
        try:
            code = (train if program == "train.py" else evaluate).main(args)
        except (AcceptedError, SystemExit):  # right, or a cry for help
            accepted += 1
            capsys.readouterr()
            continue
        check(code, capsys.readouterr().err, args)
    assert accepted < total / 4


@pytest.mark.timeout(300)
def test_a_dozen_of_them_as_their_user_meets_them() -> None:
    draw = random.Random(1)
    for _ in range(12):
        program, args = spoilt(draw)
        while "\0" in "".join(args) or args[-1:] == ["--help"]:  # which no command line can have
            program, args = spoilt(draw)
        done = subprocess.run(
            [sys.executable, str(ROOT / program), *args, "--no-such-flag"], capture_output=True, text=True, check=False
        )
        check(done.returncode, done.stderr, args)
