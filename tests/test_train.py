"""`train.py` as its users meet it."""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from envs.contract import InputError
from envs.worker_handle import WorkerError
from tests.envs.test_processes import children
from training import checkpoint, metrics, start
from training.command_line import next_command
from training.export import export
from training.loop import Run

ROOT = Path(__file__).parent.parent
SMALL = ["--total-frames", "600", "--num-envs", "4", "--checkpoint-frames", "250"]
STEPS = {"ppo": ["--rollout-steps", "25"], "a2c": [], "dqn": ["--update-steps", "4"]}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows_of(run_dir: str) -> list[dict[str, float]]:
    return metrics.read(Path(run_dir) / "metrics.jsonl")


@pytest.mark.parametrize("algorithm", STEPS)
def test_a_run_leaves_what_the_contract_names(algorithm: str) -> None:
    assert train.main([algorithm, "--env", "CartPole-v1", *SMALL, *STEPS[algorithm]]) == 0
    run_dir = Path(f"runs/CartPole-v1-{algorithm}-s1")
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["algorithm"], config["run"]["env"], config["protocol"]["observation"]) == (
        algorithm,
        "CartPole-v1",
        "vector",
    )
    saved = checkpoint.checkpoints(run_dir / "checkpoints")
    assert 600 <= int(saved[-1].name) < 800
    assert 2 <= len(saved) <= 4
    loss = "loss/td" if algorithm == "dqn" else "loss/policy"
    losses = [row[loss] for row in rows_of(str(run_dir)) if loss in row]  # while replay fills, there is none
    assert losses
    assert all(abs(loss) < 1e6 for loss in losses)
    assert rows_of(str(run_dir))[-1]["frames"] == int(saved[-1].name)
    assert list((run_dir / "tensorboard").iterdir())


def test_a_name_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "[bold]x[/y]"]) == 0
    assert "[bold]x[/y]: 0 of 600 frames" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    names = {"a": "1", "b": "1", "c": "2"}
    for name, seed in names.items():
        assert train.main(["ppo", "--env", "CartPole-v1", *SMALL, *STEPS["ppo"], "--seed", seed, "--run-dir", name]) == 0
    weights = [(checkpoint.checkpoints(Path(name) / "checkpoints")[-1] / "weights.safetensors").read_bytes() for name in names]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_resume_goes_on_with_counters_scores_and_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["ppo", "--env", "CartPole-v1", *SMALL, *STEPS["ppo"], "--run-dir", "run"]) == 0
    last = checkpoint.checkpoints(Path("run/checkpoints"))[-1]
    frames = int(last.name)
    before = rows_of("run")
    for file in last.iterdir():
        file.unlink()
    last.rmdir()  # as if it had been killed before the end
    assert train.main(["resume", "run"]) == 0
    after = rows_of("run")
    saved = int(checkpoint.checkpoints(Path("run/checkpoints"))[-1].name)
    assert saved >= 600
    assert [row["frames"] for row in after] == sorted({row["frames"] for row in after})
    assert before[0] == after[0]
    assert after[-1]["learning_rate"] == pytest.approx(2.5e-4 * (1 - after[-2]["frames"] / 600))  # by where its rollout began
    assert frames >= 600
    assert train.main(["resume", "run"]) == 0
    assert "is finished" in capsys.readouterr().err


def test_resume_takes_the_newest_whole_checkpoint_and_ends_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"]) == 0
    saved = checkpoint.checkpoints(Path("run/checkpoints"))
    whole = {file.name: file.read_bytes() for file in saved[-1].iterdir()}
    (saved[-1] / "optimizer.safetensors").write_bytes(whole["optimizer.safetensors"][:-1])
    assert train.main(["resume", "run"]) == 0
    assert f"{saved[-1].name}/optimizer.safetensors is damaged" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in saved[-1].iterdir()} == whole
    for path in checkpoint.checkpoints(Path("run/checkpoints")):
        (path / "state.json").write_bytes(b"{}")
    assert train.main(["resume", "run"]) == 3
    assert "none of the 3 checkpoints in run/checkpoints is whole" in capsys.readouterr().err


def test_resume_of_a_run_without_a_checkpoint_starts_it() -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"]) == 0
    for path in sorted(Path("run/checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert train.main(["resume", "run"]) == 0
    assert checkpoint.checkpoints(Path("run/checkpoints"))


def test_what_was_exported_is_no_run_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"]) == 0
    export(checkpoint.checkpoints(Path("run/checkpoints"))[-1], Path("agent"))
    before = {path: path.read_bytes() for path in Path("agent").iterdir()}
    capsys.readouterr()
    assert train.main(["resume", "agent"]) == 2
    assert capsys.readouterr().err.startswith("train.py: agent is a trained agent without the run that made it")
    assert {path: path.read_bytes() for path in Path("agent").iterdir()} == before


def test_a_resumed_agent_is_the_saved_one() -> None:
    assert train.main(["dqn", "--env", "CartPole-v1", *SMALL, *STEPS["dqn"], "--run-dir", "run"]) == 0
    saved = checkpoint.checkpoints(Path("run/checkpoints"))[-1]
    with start.old_run(Path("run")) as run:
        run.run_dir = Path("again")
        path = run.save(clone=True)
    for file in saved.iterdir():
        assert file.read_bytes() == (path / file.name).read_bytes(), file.name


def wait_for(condition: Any, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


LONG = [sys.executable, str(ROOT / "train.py"), "ppo", "--env", "CartPole-v1", "--run-dir", "run", "--rollout-steps", "25"]
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(number: int, code: int) -> None:
    process = subprocess.Popen([*LONG, "--total-frames", "300k"], stderr=subprocess.PIPE, text=True, env=HERE)
    wait_for(lambda: rows_of("run"))
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
    assert checkpoint.checkpoints(Path("run/checkpoints"))


def test_a_terminal_that_closes_leaves_a_checkpoint() -> None:
    keyboard, screen = os.openpty()

    def own_the_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.close(os.open(os.ttyname(2), os.O_RDWR))  # whoever leads a session and opens one has it

    with subprocess.Popen(
        [*LONG, "--total-frames", "300k"],
        stdin=screen,
        stdout=screen,
        stderr=screen,
        env=HERE,
        start_new_session=True,
        preexec_fn=own_the_terminal,
    ) as process:
        os.close(screen)
        while not Path("run/metrics.jsonl").exists() or not rows_of("run"):
            assert os.read(keyboard, 1_000)  # the bar goes on as long as somebody looks
        os.close(keyboard)
        assert process.wait(timeout=30) == 128 + signal.SIGHUP
    with start.old_run(Path("run")) as run:
        assert 0 < run.agent.frames < 300_000


def test_a_run_that_was_started_with_nohup_outlives_its_terminal() -> None:
    process = subprocess.Popen(["nohup", *LONG, "--total-frames", "300k"], stderr=subprocess.DEVNULL, env=HERE)
    wait_for(lambda: rows_of("run"))
    process.send_signal(signal.SIGHUP)
    frames = rows_of("run")[-1]["frames"]
    wait_for(lambda: rows_of("run")[-1]["frames"] > frames + 1_000)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


@pytest.mark.parametrize(
    ("number", "code", "env"),
    [(None, 0, "CartPole-v1"), (signal.SIGINT, 130, "CartPole-v1"), (None, 0, "tests.envs.own_games:Talking-v0")],
)
def test_a_run_whose_reader_leaves_goes_on(number: int | None, code: int, env: str) -> None:
    """As with `2>&1 | head -1`, and with `2>&1 | tee log`, where Ctrl-C ends tee first. Games may print, too."""
    command = [*LONG, "--total-frames", "300k" if number else "600"]
    if env != "CartPole-v1":
        command[command.index("CartPole-v1")] = env
        command += ["--torso", "impala"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=HERE)
    assert process.stdout is not None and process.stdout.readline() == b"run: opening 8 games\n"
    process.stdout.close()
    if number:
        wait_for(lambda: rows_of("run"))
        process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert checkpoint.checkpoints(Path("run/checkpoints"))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_said_is_said_at_once(unbuffered: str) -> None:
    code = "import sys; from envs.outputs import outlive_readers; outlive_readers(); print(1, file=sys.stderr); input()"
    env = {**HERE, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stderr is not None
    assert process.stderr.readline() == b"1\n"
    process.communicate(timeout=30)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_slow_reader_has_no_room_for_is_lost(unbuffered: str) -> None:
    """Where the other side has said that writing must not wait, as programs do that share a terminal."""
    _, end = os.pipe()
    os.set_blocking(end, False)
    code = "import sys; from envs.outputs import outlive_readers; outlive_readers(); print('x' * 2**20, file=sys.stderr)"
    env = {**HERE, "PYTHONUNBUFFERED": unbuffered}
    assert subprocess.run([sys.executable, "-c", code], stderr=end, env=env, check=False).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at descriptors through /proc")
@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_standard_streams_that_are_closed_stay_nobodys(program: str) -> None:
    """Not the trainer's memory, which they would be next, and a game's warnings would be written into it."""
    command = [sys.executable, str(ROOT / "evaluate.py"), "random:CartPole-v1", "--episodes", "2000"]
    command = LONG if program == "train.py" else command
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env=HERE)
    try:
        wait_for(lambda: any(b"envs.worker_process" in command_of(child) for child in children(process.pid)))
        wait_for(lambda: program == "evaluate.py" or rows_of("run"))
        for pid in (process.pid, *children(process.pid)):
            assert {os.readlink(f"/proc/{pid}/fd/{stream}") for stream in range(3)} == {os.devnull}
    finally:
        process.kill()
        process.wait()


BAD = {
    "an unknown id": (["ppo", "--env", "Bowlin-v0"], "Bowling-v0"),
    "an id of a family's table that does not exist": (["ppo", "--env", "ALE/Bowling-v0"], "ALE/Bowling-v5"),
    "no id": (["ppo"], "train.py: --env is missing. What to play: Berzerk-v0, "),
    "a misspelt flag": (["ppo", "--env", "CartPole-v1", "--totl-frames", "1k"], "--total-frames"),
    "a zero budget": (["ppo", "--env", "CartPole-v1", "--total-frames", "0"], "above zero"),
    "a negative budget": (["ppo", "--env", "CartPole-v1", "--total-frames", "-5"], "--total-frames"),
    "a verb that is none": (["pppo", "--env", "CartPole-v1"], "nearest: ppo"),
    "a verb in capitals": (["DQN", "--env", "CartPole-v1"], "nearest: dqn"),
    "no verb": (["--env", "CartPole-v1"], "as in train.py ppo --env"),
    "a directory that is no run": (["resume", "nothing"], "nothing is not a run: it does not exist"),
    "continuous actions": (["ppo", "--env", "Pendulum-v1"], "Discrete"),
    "a module that is not there": (["ppo", "--env", "no.such.module:Game-v0"], "no.such"),
    "an optional number that is none": (["ppo", "--env", "CartPole-v1", "--max-episode-frames", "0"], "frames: '0' is not"),
    "a known game by its module": (["ppo", "--env", "ale_py:ALE/Bowling-v5"], "write ALE/Bowling-v5"),
    "no CUDA device": (["ppo", "--env", "CartPole-v1", "--device", "cuda"], "--device cpu"),
    "games that do not divide": (["ppo", "--env", "CartPole-v1", "--num-envs", "0"], "--num-envs"),
    "an id given twice": (["ppo", "--env", "CartPole-v1", "--env=Bowling-v0"], "--env is given 2 times"),
    "a player for evaluation": (["ppo", "--env", "random:Berzerk-v0"], "write Berzerk-v0"),
    "a seed beyond what fits": (["ppo", "--env", "CartPole-v1", "--seed", "18446744073709551616"], "--seed"),
    "a replay for none": (["ppo", "--env", "CartPole-v1", "--no-save-replay"], "only dqn has a replay"),
    "a directory that cannot be": (["ppo", "--env", "CartPole-v1", "--run-dir", "/dev/null/x"], "cannot be made"),
    "an image size that is none": (["ppo", "--env", "CartPole-v1", "--image-size", "72"], "as in 72x128"),
    "a window longer than the run": (["dqn", "--env", "CartPole-v1", "--total-frames", "6k", "--n-step", "1k"], "--n-step"),
    "another algorithm's setting": (["a2c", "--env", "CartPole-v1", "--epochs", "3"], "--epochs, 3; --help lists"),
    "an Atari flag elsewhere": (["ppo", "--env", "CartPole-v1", "--sticky", "0.5"], "--sticky"),
}


@pytest.mark.parametrize("boxes", ["utf-8", "ascii"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_code_2_and_nothing_created(
    case: str, boxes: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args, said = BAD[case]
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", boxes == "utf-8")  # else by the spelling of stdout's encoding
    if case == "no CUDA device" and __import__("torch").cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert train.main(args) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert len(err) < 400 and not re.search(r"--- |──|<function", err)
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("flags", [["--capacity", "1", "--n-step", "3"], ["--capacity", "8", "--frame-stack", "3"]])
def test_dqn_learns_whatever_the_capacity(flags: list[str]) -> None:
    assert train.main(["dqn", "--env", "CartPole-v1", *SMALL, *flags, "--run-dir", "run"]) == 0
    assert any("loss/td" in row for row in rows_of("run"))


def test_a_dqn_run_saves_while_replay_fills() -> None:
    args = ["dqn", "--env", "CartPole-v1", "--total-frames", "6000", "--num-envs", "4", "--checkpoint-frames", "100"]
    saved: list[int] = []
    save = Run._begin_saving

    def note(run: Run, *, clone: bool) -> None:
        saved.append(run.agent.frames)
        save(run, clone=clone)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_begin_saving", note)
        assert train.main([*args, "--update-steps", "500", "--run-dir", "run"]) == 0
    assert [frames // 100 for frames in saved[:2]] == [1, 2]  # learning starts at 300


def test_checkpoints_come_at_multiples_of_their_period(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"]) == 0
    names = [int(path.name) for path in checkpoint.checkpoints(Path("run/checkpoints"))]
    assert len(names) == 3
    assert all(low <= name < low + 25 for name, low in zip(names, (250, 500, 600), strict=True))


def test_a_dqn_run_ends_even_if_no_update_was_due() -> None:
    args = ["dqn", "--env", "CartPole-v1", "--total-frames", "300", "--num-envs", "4", "--update-steps", "1M"]
    assert train.main([*args, "--run-dir", "run"]) == 0
    assert 300 <= rows_of("run")[-1]["frames"] <= 304
    assert all(list(row)[:3] == ["frames", "steps", "policy/epsilon"] for row in rows_of("run"))


def test_lost_games_are_counted() -> None:
    """Its worker dies in every second step, both games with it."""
    run = ["--total-frames", "12", "--num-envs", "2", "--rollout-steps", "4", "--torso", "impala", "--run-dir", "run"]
    assert train.main(["ppo", "--env", "tests.envs.own_games:Doomed-v0", *run]) == 0
    assert rows_of("run")[-1]["score/games_lost"] > 2


def command_of(pid: int) -> bytes:
    """Of a process; nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers through /proc")
def test_a_hundred_kills_cost_a_run_the_killed_workers_games_alone() -> None:
    """Four games in each of two workers; which one dies, and when, is drawn."""
    game = ["--env", "Bowling-ram-v0", "--num-envs", "8", "--rollout-steps", "32"]
    command = [sys.executable, str(ROOT / "train.py"), "ppo", *game, "--total-frames", "2M", "--run-dir", "run"]
    rng = np.random.default_rng(5)
    trainer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def workers() -> list[int]:
        assert trainer.poll() is None, trainer.communicate()
        return [pid for pid in children(trainer.pid) if b"envs.worker_process" in command_of(pid)]

    def wait_for_row(lost: int) -> None:
        while not Path("run/metrics.jsonl").exists() or not rows_of("run") or rows_of("run")[-1]["score/games_lost"] != lost:
            assert trainer.poll() is None, trainer.communicate()
            time.sleep(0.05)

    try:
        for kill in range(100):
            wait_for_row(lost=4 * kill)  # the one that came in place of the last plays
            time.sleep(float(rng.uniform(0, 0.5)))
            os.kill(int(rng.choice(workers())), signal.SIGKILL)
        wait_for_row(lost=400)
        trainer.send_signal(signal.SIGINT)
        assert trainer.wait(timeout=60) == 130
    finally:
        trainer.kill()
    rows = rows_of("run")
    assert [row["frames"] for row in rows] == sorted({row["frames"] for row in rows})
    assert all(math.isfinite(row["loss/total"]) for row in rows)


def test_what_to_type_next_can_be_typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A place with a space, an id with code of its own, from outside the project and from inside, with its own Python."""
    env = "tests.envs.own_games:Brief-v0"
    few = ["--total-frames", "40", "--num-envs", "2"]
    assert train.main(["a2c", "--env", env, *few, "--run-dir", "own run"]) == 0
    assert f"{ROOT}/evaluate.py 'own run' --env {env}` measures it" in capsys.readouterr().err
    assert train.main(["resume", "own run", "--env", env]) == 0
    assert f"{ROOT}/evaluate.py 'own run' --env {env}` measures it" in capsys.readouterr().err
    typed = next_command("train.py resume", Path("own run"), env)
    assert subprocess.run(typed.strip("`"), shell=True, env=HERE, check=False).returncode == 0
    assert train.main(["resume", "own run", "--env", "CartPole-v1"]) == 2
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert next_command("train.py resume", Path("x"), "CartPole-v1") == f"`python {ROOT}/train.py resume x`"
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv/bin/python"))
    monkeypatch.chdir(ROOT)
    assert next_command("train.py resume", Path("runs/x"), "CartPole-v1") == "`.venv/bin/python train.py resume runs/x`"


def test_a_mistake_in_ones_own_module_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mistaken.py").write_text("x = (")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert train.main(["ppo", "--env", "mistaken:Game-v0", "--run-dir", "run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "mistaken.py, line 1" in err
    assert not Path("run").exists()


def test_resume_refuses_an_id_that_the_run_does_not_play(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"]) == 0
    assert train.main(["resume", "run", "--env", "Bowling-v0"]) == 2
    assert "run plays CartPole-v1" in capsys.readouterr().err


def test_resume_names_what_is_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--run-dir", "run"]) == 0
    saved = checkpoint.checkpoints(Path("run/checkpoints"))
    assert train.main(["resume", str(saved[0])]) == 2
    assert f"{saved[0]} is not a run: it has no config.json; nearest: run\n" in capsys.readouterr().err
    for path in saved:
        (path / "weights.safetensors").write_bytes(b"")
    assert train.main(["resume", "run"]) == 3
    said = capsys.readouterr().err
    assert all(f"{path / 'weights.safetensors'} is damaged" in said for path in saved)


def test_an_existing_run_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    assert train.main(["ppo", "--env", "CartPole-v1", "--run-dir", "run"]) == 2
    assert "run exists already and is not a run" in capsys.readouterr().err
    assert list(Path("run").iterdir()) == []
    Path("run/config.json").touch()
    assert train.main(["ppo", "--env", "CartPole-v1", "--run-dir", "run"]) == 2
    assert "/train.py resume run` goes on" in capsys.readouterr().err
    assert train.main(["ppo", "--env", "tests.envs.own_games:Squares-v0", "--run-dir", "run"]) == 2
    assert "/train.py resume run --env tests.envs.own_games:Squares-v0` goes on" in capsys.readouterr().err
    assert Path("run/config.json").read_text() == ""


@pytest.mark.parametrize(
    ("what", "step", "fault"),
    [
        (start, "save_config", OSError(errno.ENOSPC, "No space left on device")),
        (start, "save_config", KeyboardInterrupt()),
        (start.WorkerEnvs, "wait", KeyboardInterrupt()),
    ],
    ids=["full", "Ctrl-C", "Ctrl-C while games open"],
)
def test_a_run_that_could_not_be_begun_leaves_nothing(
    what: object, step: str, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, there = break_off(what, step, fault, monkeypatch), []
    release = start.Lock.release
    monkeypatch.setattr(start.Lock, "release", lambda lock: (there.append(Path("run").exists()), release(lock)))
    assert train.main(["ppo", "--env", "CartPole-v1", "--run-dir", "run"]) == (2 if isinstance(fault, OSError) else 130)
    assert not Path("run").exists()
    assert let_go == ["Lock", "WorkerEnvs"] and there == [False]  # another process could have taken it


def test_a_run_that_cannot_be_locked_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> None:
        raise InputError("run/lock cannot be written: No space left on device")

    monkeypatch.setattr(start, "Lock", fail)
    assert train.main(["ppo", "--env", "CartPole-v1", "--run-dir", "run"]) == 2
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("OldReset", r"returned no \(observation, info\) from reset"), ("Unopened", "there is no first square")]
)
def test_a_game_that_cannot_be_opened_leaves_nothing(name: str, said: str) -> None:
    with pytest.raises(WorkerError, match=said):
        train.main(["ppo", "--env", f"tests.envs.own_games:{name}-v0", "--torso", "impala", "--run-dir", "run"])
    assert not Path("run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_while_its_games_open_leaves_nothing(number: int) -> None:
    """A hangup comes from the terminal, from its shell, and from whatever else has a hand in it."""
    env = "tests.envs.own_games:LongToOpen-v0"
    command = [sys.executable, str(ROOT / "train.py"), "ppo", "--env", env, "--torso", "impala", "--run-dir", "run"]

    def heed() -> None:
        signal.signal(number, signal.SIG_DFL)  # under nohup the tests hear of no hangup, nor does what they start

    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=HERE, preexec_fn=heed)
    assert process.stderr is not None and process.stderr.readline() == "run: opening 8 games\n"
    assert Path("run/config.json").exists()
    for _ in range(100 if number == signal.SIGHUP else 1):
        process.send_signal(number)
        time.sleep(0.001)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (128 + number, "")
    assert not Path("run").exists()


def test_a_run_that_could_not_be_resumed_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train.main(["a2c", "--env", "CartPole-v1", *SMALL, "--total-frames", "600", "--run-dir", "run"]) == 0
    shutil.rmtree("run/checkpoints")
    let_go = break_off(start.WorkerEnvs, "reset", KeyboardInterrupt(), monkeypatch)
    assert train.main(["resume", "run"]) == 130
    assert Path("run/config.json").exists()
    assert let_go == ["WorkerEnvs", "Lock"]


def break_off(what: object, step: str, fault: BaseException, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a step of opening a run fail; what is let go of then, in that order."""
    let_go: list[str] = []

    def fail(*_: object, **__: object) -> None:
        raise fault

    def note(kind: type, name: str) -> None:
        own = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda given: (let_go.append(kind.__name__), own(given)))

    monkeypatch.setattr(what, step, fail)
    note(start.Lock, "release")
    note(start.WorkerEnvs, "close")
    return let_go


@pytest.mark.parametrize("algorithm", STEPS)
def test_no_run_waits_for_torchs_compiler(algorithm: str) -> None:
    """It takes a second of the start and 70 MB, and nothing here is compiled."""
    arguments = [algorithm, "--env", "CartPole-v1", *SMALL, *STEPS[algorithm]]
    code = f"import sys, train\nassert train.main({arguments}) == 0\nassert 'torch' in sys.modules\n"
    code += "sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


@pytest.mark.parametrize("words", ["train.py ppo --env Bowling-ram-v0 --help", "train.py --help", "evaluate.py --help"])
def test_who_reads_the_first_lines_of_help_alone_gets_no_traceback(words: str) -> None:
    process = subprocess.Popen([sys.executable, *words.split()], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None and process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_a_python_without_the_packages_is_told_where_they_are(program: str) -> None:
    command = [sys.executable, "-S", str(ROOT / program), "random:CartPole-v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.match(rf"{program}: No module named '\w+'; `make setup` ", done.stderr)


def test_help_without_an_id_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for env, said in ((["--env", "Bowling-ram-v0"], False), ([], True)):
        with pytest.raises(SystemExit):
            train.main(["ppo", *env, "--help"])
        assert ("of no game in particular" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ("CartPole-v1", "none"),
        ("Berzerk-v0", "--sticky and --frame-skip and --full-action-space and --noop-max and --max-episode-frames"),
    ],
)
def test_help_says_which_flags_change_the_rules(env: str, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["ppo", "--env", env, "--help"])
    assert f"Flags that can change the rules of {env}: {flags}." in " ".join(capsys.readouterr().out.split())


def test_help_shows_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["ppo", "--env", "Bowling-ram-v0", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag, value in {"discount": "0.999", "sticky": "0.25", "frame-skip": "2-4", "noop-max": "0"}.items():
        assert re.search(rf"--{flag} [^(]*\(default: {value}\)", text.replace("│ ", "")), flag
    for words in (["--help"], ["resume", "--help"], ["doctor", "--help"]):
        assert train.main(words) == 0
        assert "resume" in capsys.readouterr().out
