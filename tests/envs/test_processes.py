"""Processes: what is left when the trainer or a worker is killed, and what a process that plays holds and imports."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from envs.contract import InputError
from envs.cores import usable_cores
from envs.worker_handle import WorkerError, WorkerLostError
from envs.workers import WorkerEnvs

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc"),
    pytest.mark.timeout(60),  # what goes wrong here waits for ever
]

ROOT = Path(__file__).parent.parent.parent
SQUARES = "tests.envs.own_games:Squares-v0"

TRAINER = """
import signal, sys, time
import numpy as np
from envs.workers import WorkerEnvs

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in its background
    with WorkerEnvs(sys.argv[1], 4, num_workers=2, num_groups=2) as envs:
        envs.reset([[seed] for seed in range(4)])
        steps = 0
        try:
            while True:
                for group in (0, 1):
                    envs.recv(group)
                    envs.send(np.zeros(2, int), group)
                steps += 1
                if steps == 3:
                    print("playing", flush=True)
                if steps > 3 and sys.argv[2] == "waiting":
                    time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.fixture
def trainer() -> Iterator[Callable[[str, str], subprocess.Popen[str]]]:
    """Starts a process that plays, in a process group of its own, and returns it when it does."""
    started: list[tuple[subprocess.Popen[str], list[int]]] = []

    def start(env_id: str, manner: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, env_id, manner],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout and process.stdout.readline() == "playing\n", process.communicate()
        started.append((process, children(process.pid)))
        return process

    yield start
    for process, workers in started:
        process.kill()
        for worker in filter(alive, workers):  # or the pipes that they hold would keep us waiting
            os.kill(worker, signal.SIGKILL)
        process.communicate()


def children(parent: int) -> list[int]:
    """Processes that a process has started and that are not over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent_id = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # ended while we looked
        if int(parent_id) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def names_in_memory() -> set[str]:
    """What shared memory holds under a name, but for what other tests play meanwhile."""
    return {path.name for path in Path("/dev/shm").glob("*") if not path.name.startswith("ViZDoom")}


@pytest.mark.parametrize(("env_id", "manner"), [("Bowling-v0", "playing"), (SQUARES, "waiting")])
def test_nothing_is_left_of_a_killed_trainer(trainer, env_id, manner, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = names_in_memory()
    process = trainer(env_id, manner)
    workers = children(process.pid)
    assert len(workers) == len(list(tmp_path.iterdir())) == 2
    maps = [Path(f"/proc/{one}/maps").read_text() for one in (process.pid, *workers)]
    assert all("memfd:playfield" in text and "/dev/shm/" not in text for text in maps)  # the memory has no name
    process.kill()
    process.wait()
    assert soon(lambda: not any(map(alive, workers)))
    assert soon(lambda: names_in_memory() <= before and not any(tmp_path.iterdir()))
    assert process.stderr and process.stderr.read() == ""


OPENING = """
import sys
from envs.workers import WorkerEnvs

if __name__ == "__main__":
    envs = WorkerEnvs(sys.argv[1], 100, num_workers=1)
    envs.reset([[slot] for slot in range(100)])
    envs.recv(0)
"""


@pytest.mark.parametrize("game", ["LongToMake", "LongToSeed"])
def test_a_worker_makes_and_opens_no_game_more_without_its_trainer(game):
    """All of them would take fifty seconds."""
    command = [sys.executable, "-c", OPENING, f"tests.envs.own_games:{game}-v0"]
    trainer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    workers: list[int] = []
    try:
        assert trainer.stdout is not None
        assert [trainer.stdout.readline() for _ in range(2)] == ["another\n"] * 2  # the worker says so, of each
        workers = children(trainer.pid)
        assert len(workers) == 1
        trainer.kill()
        trainer.wait()
        assert soon(lambda: not alive(workers[0]))
    finally:
        trainer.kill()
        for worker in filter(alive, workers):
            os.kill(worker, signal.SIGKILL)


def test_control_c_reaches_the_trainer_alone(trainer):
    process = trainer("Bowling-v0", "playing")
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
    assert not any(map(alive, workers))


def the_worker() -> int:
    (worker,) = children(os.getpid())
    return worker


def test_a_killed_worker_is_an_error_at_the_next_step():
    with WorkerEnvs(SQUARES, 2, num_workers=1) as envs:
        envs.reset([[1], [2]])
        envs.recv(0)
        worker = the_worker()
        os.kill(worker, signal.SIGKILL)
        assert soon(lambda: not alive(worker))
        envs.send(np.zeros(2, int), 0)
        with pytest.raises(WorkerError, match="a worker process ended on its own with exit status -9"):
            envs.recv(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_worker_plays_on_where_a_whole_job_is_signalled(number):
    """The trainer gets the signal too, and takes down where its games stand."""
    with WorkerEnvs(SQUARES, 2, num_workers=1, restart=True) as envs:
        envs.reset([[1], [2]])
        for steps in range(4):
            assert envs.recv(0).observation[1, 1, 0, 1] == steps
            os.kill(the_worker(), number)
            time.sleep(0.1)
            envs.send(np.zeros(2, int), 0)
        envs.recv(0)
        assert envs.lost_games == 0


def test_a_worker_killed_within_a_step_is_an_error():
    with WorkerEnvs("tests.envs.own_games:Stuck-v0", 1) as envs:
        envs.reset([[1]])
        envs.recv(0)
        envs.send(np.zeros(1, int), 0)
        envs.recv(0)
        envs.send(np.zeros(1, int), 0)  # the second step takes a minute
        started = time.monotonic()
        threading.Timer(0.3, os.kill, (the_worker(), signal.SIGKILL)).start()
        with pytest.raises(WorkerError, match="exit status -9"):
            envs.recv(0)
        assert time.monotonic() - started < 5


def test_a_worker_that_does_not_end_is_ended():
    with WorkerEnvs("tests.envs.own_games:Stuck-v0", 1) as envs:
        envs.reset([[1]])
        envs.recv(0)
        for _ in range(2):
            envs.send(np.zeros(1, int), 0)
            time.sleep(0.05)
        worker = the_worker()
    assert not alive(worker)


def test_a_killed_worker_is_started_anew_and_loses_its_games_alone():
    """Two groups, two workers: slots 0 and 2 are the first one's. The second one's games go on as if nothing had happened."""
    nothing = np.zeros(2, int)
    with WorkerEnvs(SQUARES, 4, num_workers=2, num_groups=2, restart=True) as envs:
        envs.reset([[11], [12], [13], [14]])
        for group in (0, 1):
            envs.recv(group)
            envs.send(nothing, group)
        first, second = children(os.getpid())
        envs.recv(0)  # group 0 has been received; group 1 is on its way, or done and not received
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: not alive(first))
        opened = {0: 0, 1: 0}  # games opened after the kill, in the killed worker's slot of each group
        for steps in (2, 3):
            envs.send(nothing, 0)
            for group in (1, 0):
                step = envs.recv(group)
                opened[group] += step.is_first[0]
                assert not step.is_first[1] and step.observation[1, 1, 0, 1] == (steps if group == 0 else steps - 1)
                if step.is_first[0]:
                    assert step.reward[0] == step.frames[0] == step.observation[0, 1, 0, 1] == 0
            envs.send(nothing, 1)
        assert opened == {0: 1, 1: 1} and envs.lost_games == 2
        assert envs.seeds[[1, 3]].tolist() == [12, 14] and not {11, 13, -1} & set(envs.seeds.tolist())
        assert alive(second) and second in children(os.getpid())


def test_a_worker_is_started_anew_after_its_games_were_copied():
    nothing = np.zeros(2, int)
    with WorkerEnvs("Bowling-ram-v0", 2, num_workers=2, restart=True) as envs:
        envs.reset([[11], [12]])
        envs.recv(0)
        assert all(game["clone"] for game in envs.state_dict(clone=True)["games"])
        first, _ = children(os.getpid())
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: not alive(first))
        for opens in (True, False):
            envs.send(nothing, 0)
            assert envs.recv(0).is_first.tolist() == [opens, False]


@pytest.mark.parametrize("manner", ["hangs", "loses its game's engine"])
def test_a_worker_is_started_anew_when_it(manner):
    env_id = "tests.envs.own_games:Stuck-v0" if manner == "hangs" else "tests.envs.own_games:Lost-v0"
    with WorkerEnvs(env_id, 3, num_workers=1, restart=True, hang_seconds=1.5) as envs:
        envs.reset([[1], [2], [3]])
        lost = [envs.lost_games for _ in range(4) if envs.recv(0) and not envs.send(np.zeros(3, int), 0)]
        assert lost[:2] == [0, 0] and envs.recv(0) and envs.lost_games >= 3


def test_without_leave_to_start_anew_a_hanging_worker_is_an_error():
    with WorkerEnvs("tests.envs.own_games:Stuck-v0", 1, hang_seconds=0.5) as envs:
        envs.reset([[1]])
        for _ in range(2):
            envs.recv(0)
            envs.send(np.zeros(1, int), 0)
        with pytest.raises(WorkerError, match=r"has not answered for 0\.5 seconds"):
            envs.recv(0)


def test_a_container_has_as_many_cores_as_its_share_of_their_time(tmp_path):
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == cores
    (tmp_path / "cpu").mkdir()  # control groups of version 1
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    for quota, share in ((-1, cores), (100_000 * cores + 50_000, cores), (50_000, 1), (150_000, min(2, cores))):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert usable_cores(tmp_path) == share
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    for quota, share in (("max", cores), ("80000", 1), ("6400000000", cores)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert usable_cores(tmp_path) == share


FROZEN = """
import sys
import numpy as np
from envs.workers import WorkerEnvs

if __name__ == "__main__":
    with WorkerEnvs(sys.argv[1], 1, hang_seconds=3) as envs:
        envs.reset([[1]])
        envs.recv(0)
        print("played", flush=True)
        sys.stdin.readline()
        envs.send(np.zeros(1, int), 0)
        envs.recv(0)
"""


def test_a_freeze_of_all_processes_is_no_hanging_worker():
    """Of a container, say, and for longer than a worker may take. Here the trainer is the first to go on."""
    command = [sys.executable, "-c", FROZEN, SQUARES]
    trainer = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdin and trainer.stdout and trainer.stdout.readline() == "played\n"
        (worker,) = children(trainer.pid)
        os.kill(worker, signal.SIGSTOP)
        print(file=trainer.stdin, flush=True)
        time.sleep(1.5)  # the trainer waits by now
        trainer.send_signal(signal.SIGSTOP)
        time.sleep(3)
        trainer.send_signal(signal.SIGCONT)
        time.sleep(0.3)
        os.kill(worker, signal.SIGCONT)
        assert trainer.wait(timeout=20) == 0
    finally:
        trainer.kill()
        trainer.communicate()


def test_a_worker_that_takes_no_message_is_lost(monkeypatch):
    with WorkerEnvs(SQUARES, 1) as envs:
        os.kill(the_worker(), signal.SIGSTOP)
        monkeypatch.setattr("envs.worker_handle.HANG_SECONDS", 1.0)
        with pytest.raises(WorkerLostError, match="has not answered for 1 seconds"):
            envs._workers[0].write_message({"longer than a pipe": "x" * 2**20})


def test_opening_a_game_may_take_longer_than_any_step():
    """Two of a worker take more than two of its steps may, at first and when both of them are over."""
    with WorkerEnvs("tests.envs.own_games:LongToOpen-v0", 2, num_workers=1, hang_seconds=1) as envs:
        envs.reset([[slot] for slot in range(2)])
        for opens in (True, False, True):
            assert (envs.recv(0).is_first == opens).all()
            envs.send(np.zeros(2, int), 0)


def test_so_may_bringing_a_game_to_where_it_stood(monkeypatch):
    seeds = [[1], [2]]
    with WorkerEnvs("tests.envs.own_games:LongToOpen-v0", 2, num_workers=1) as envs:
        envs.reset(seeds)
        state = envs.state_dict(clone=False)
    with WorkerEnvs("tests.envs.own_games:LongToOpen-v0", 2, num_workers=1) as envs:
        monkeypatch.setattr("envs.worker_handle.HANG_SECONDS", 1.0)
        envs.load_state_dict(state, seeds)
        assert envs.recv(0).is_first.all()


def test_a_step_may_take_longer_than_the_system_can_wait_in_one_go():
    with WorkerEnvs(SQUARES, 1, hang_seconds=1e7) as envs:
        envs.reset([[1]])
        assert envs.recv(0).is_first.all()


@pytest.mark.parametrize("action", [1, 2])
def test_games_are_closed(action, tmp_path, monkeypatch):
    """At the end, and where one of them fails."""
    monkeypatch.setenv("KEPT", str(tmp_path))
    with WorkerEnvs("tests.envs.own_games:Kept-v0", 3, num_workers=1) as envs:
        envs.reset([[1], [2], [3]])
        envs.recv(0)
        envs.send(np.array([0, action, 1]), 0)
        with pytest.raises(WorkerError, match="seven") if action == 2 else contextlib.nullcontext():
            envs.recv(0)
        assert action == 2 or len(list(tmp_path.iterdir())) == 3
    assert not list(tmp_path.iterdir())


def test_games_are_closed_where_another_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT", str(tmp_path))
    monkeypatch.setenv("MOST_KEPT", "2")
    with pytest.raises(WorkerError, match="too many are kept"):
        WorkerEnvs("tests.envs.own_games:Kept-v0", 3, num_workers=1)
    assert not list(tmp_path.iterdir())


def test_making_games_has_time_for_each_of_them(monkeypatch):
    monkeypatch.setattr("envs.worker_handle.HANG_SECONDS", 2.0)
    with WorkerEnvs("tests.envs.own_games:LongToMake-v0", 6, num_workers=1) as envs:
        assert len(envs.tasks) == 6


def test_a_worker_that_dies_now_and_then_is_started_anew_each_time():
    with WorkerEnvs("tests.envs.own_games:Doomed-v0", 2, num_workers=1, restart=True) as envs:
        envs.reset([[1], [2]])
        for lost in (0, 0, 2, 2, 4, 4, 6, 6, 8, 8):
            envs.recv(0)
            assert envs.lost_games == lost
            envs.send(np.zeros(2, int), 0)


def test_a_worker_that_dies_again_and_again_is_an_error():
    with WorkerEnvs("tests.envs.own_games:Unborn-v0", 2, num_workers=1, restart=True) as envs:
        envs.reset([[1], [2]])
        with pytest.raises(WorkerError, match="exit status 7; so it did 3 times in a row"):
            envs.recv(0)


def files_held() -> int:
    gc.collect()  # those of earlier tests' objects go
    return len(os.listdir("/proc/self/fd"))


def kills(count: int) -> None:
    """Kill workers at random while they play; everything has to stay as it is."""
    rng = np.random.default_rng(3)
    with WorkerEnvs(SQUARES, 4, num_workers=2, num_groups=2, restart=True) as envs:
        envs.reset([[1], [2], [3], [4]])
        held = None
        for kill in range(count):
            for group in (0, 1) * int(rng.integers(1, 4)):
                step = envs.recv(group)
                assert not (step.is_first & (step.terminated | step.truncated | (step.reward != 0))).any()
                envs.send(np.zeros(2, int), group)
            killed = int(rng.choice(children(os.getpid())))
            os.kill(killed, signal.SIGKILL)
            assert soon(lambda pid=killed: not alive(pid))  # one that is still dying would be killed twice
            if kill == 2:
                held = files_held()
        assert held is not None and files_held() <= held
        for group in (0, 1, 0, 1):  # a step that was done before the kill still counts
            envs.recv(group)
            envs.send(np.zeros(2, int), group)
        assert envs.lost_games == 2 * count
        assert len(children(os.getpid())) == 2


def test_workers_killed_at_random_leave_nothing_behind():
    kills(8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_kills_leave_nothing_behind():
    kills(1000)


def test_no_file_descriptors_leak():
    """Over ten vectors that play and ten that are refused."""

    def play(env_id: str) -> None:
        with WorkerEnvs(env_id, 1) as envs:
            envs.reset([[1]])
            envs.recv(0)

    def refuse() -> None:
        with pytest.raises(InputError):
            play("Bowlin-v0")

    play(SQUARES)
    refuse()  # looks for near ids in every family, whose libraries keep some files open
    before = files_held()
    for _ in range(10):
        play(SQUARES)
        refuse()
    assert files_held() <= before
    assert not children(os.getpid())


@pytest.fixture
def two_cores() -> Iterator[list[int]]:
    """As many as the machine is taken to have."""
    usable = os.sched_getaffinity(0)
    if len(usable) < 2:
        pytest.skip("no choice of cores")
    os.sched_setaffinity(0, sorted(usable)[:2])
    yield sorted(usable)[:2]
    os.sched_setaffinity(0, usable)


SHARING = {"num_envs": 16, "num_groups": 2, "num_workers": 2, "share_cores": True}


def test_a_trainer_that_shares_the_workers_cores_waits_on_that_of_one_that_is_done(two_cores, monkeypatch):
    monkeypatch.setattr("envs.workers._LONG_TURN", 30)
    with WorkerEnvs(SQUARES, **SHARING) as envs:
        envs.reset([[seed] for seed in range(16)])
        kept = [os.sched_getaffinity(worker._process.pid) for worker in envs._workers]
        assert kept in ([{two_cores[0]}, {two_cores[1]}], [{two_cores[1]}, {two_cores[0]}])
        envs.recv(0)
        envs.recv(1)
        for late, core in zip(envs._workers, reversed(kept), strict=True):
            os.kill(late._process.pid, signal.SIGSTOP)
            envs.send(np.zeros(8, int), 0)
            trainer = threading.Thread(target=envs.recv, args=(0,), daemon=True)
            trainer.start()
            assert soon(lambda thread=trainer.native_id, core=core: os.sched_getaffinity(thread) == core)
            os.kill(late._process.pid, signal.SIGCONT)
            trainer.join()
        os.kill(late._process.pid, signal.SIGSTOP)
        envs.send(np.zeros(8, int), 0)
        threading.Timer(0.2, os.kill, (late._process.pid, signal.SIGCONT)).start()
        envs.recv(0)
        assert os.sched_getaffinity(0) == {*two_cores}, "what is started from here on would be bound too"


@pytest.mark.parametrize(
    "change", [{"share_cores": False}, {"num_workers": 1}, {"num_workers": 4}, {"num_groups": 1}, {"num_envs": 12}]
)
def test_other_workers_play_where_the_system_likes(change, two_cores):
    with WorkerEnvs(SQUARES, **{**SHARING, "num_envs": 32, **change}) as envs:
        for worker in envs._workers:
            assert os.sched_getaffinity(worker._process.pid) == {*two_cores}


def test_environments_do_not_import_torch():
    """Nor anything above them; checked where a worker's work is done."""
    code = f"""
import sys
from envs import atari, contract, registered, registry, workers
for env_id in ("Bowling-v0", "CartPole-v1", {SQUARES!r}):
    registry.make_game(env_id, contract.ProtocolOptions())
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "agents", "training", "evaluation"}}))
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == "[]\n", found.stderr
