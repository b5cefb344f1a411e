"""Doom against ViZDoom's own wrapper, step by step, and what is its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import gymnasium
import numpy as np
import pytest

from envs import registry
from envs.contract import GameLost, InputError, ProtocolOptions, game_seeds
from envs.doom import DoomGame, config_file, ids
from envs.workers import WorkerEnvs
from tests.envs.test_processes import TRAINER, children, soon

vizdoom = pytest.importorskip("vizdoom", reason="ViZDoom is not installed: pip install vizdoom")

BASIC, HEALTH, HOME, DEFEND, DEATHMATCH = (
    f"Vizdoom{name}-v1" for name in ("Basic", "HealthGathering", "MyWayHome", "DefendCenter", "Deathmatch")
)


def room_for(game: DoomGame) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(game.description.observation_shape, np.uint8), np.zeros(game.description.extra_size, np.float32)


def picture_of(screen: np.ndarray, size: tuple[int, int], how: int = cv2.INTER_LINEAR) -> np.ndarray:
    return np.moveaxis(cv2.resize(screen, size[::-1], interpolation=how), -1, 0)


def reference(env_id: str, **settings: object) -> gymnasium.Env:
    resolution = vizdoom.ScreenResolution.RES_160X120
    return gymnasium.make(env_id, frame_skip=4, max_buttons_pressed=1, screen_resolution=resolution, **settings)


def test_no_sound_server_is_looked_for(monkeypatch):
    """JACK's library would leave a folder in shared memory."""
    left = Path(f"/dev/shm/jack_db-{os.getuid()}")
    if left.exists():
        pytest.skip(f"{left} is there already")
    monkeypatch.delenv("ALSOFT_DRIVERS", raising=False)
    with WorkerEnvs(BASIC, 1) as envs:
        envs.reset([[0]])
        envs.recv(0)
    assert not left.exists()


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("env_id", [BASIC, HEALTH, HOME, DEFEND])
def test_equals_the_wrapper(env_id, recording, tmp_path, monkeypatch):
    """1,000 steps with seeded and unseeded games, the ends and what is seen at them; a recorded game is the same game.

    Recorded from the second game on, which goes on with the generator of the first.
    """
    monkeypatch.chdir(tmp_path)  # where the wrapper's engine leaves its settings
    variables = env_id != HOME
    game, other = DoomGame(env_id, ProtocolOptions(game_variables=variables)), reference(env_id)
    observation, extra = room_for(game)
    same_screens = recorded_steps = clock = short = 0
    records = False
    actions = np.random.default_rng(4).integers(game.description.num_actions, size=1000)
    assert other.action_space.n == game.description.num_actions
    over, seeds, ends = True, iter([7, None, *game_seeds(1, 0, range(1))]), {"terminated": 0, "truncated": 0}
    for t, action in enumerate(actions):
        if over:
            if recording and t and not records:
                game.record()
                records = True
            seed = next(seeds, None)
            game.reset(seed, observation, extra)
            value, _ = other.reset(seed=seed)
            over, length, clock = False, 0, other.unwrapped.game.get_episode_time()
            assert not game.last_frames()
        else:
            outcome = game.step(int(action), observation, extra)
            after, reward, over, cut, _ = other.step(action)
            value = value if over else after  # the last real screen
            assert outcome[:4] == (reward, over and not cut, cut, False), f"step {t}"
            before, clock = clock, other.unwrapped.game.get_episode_time()
            assert outcome.frames == (clock - before if clock > before else 4), f"step {t}"
            short += outcome.frames < 4
            length += outcome.frames
            assert len(game.last_frames()) == (outcome.frames if records else 0)
            recorded_steps += records and not over
            ends["terminated"] += outcome.terminated
            ends["truncated"] += outcome.truncated
        np.testing.assert_array_equal(observation, picture_of(value["screen"], (72, 128)), f"step {t}")
        assert observation.max() > 0
        if variables:
            np.testing.assert_array_equal(extra, value["gamevariables"])
        if over and cut:
            assert length == game.description.protocol.max_episode_frames
        if game.last_frames() and not over:
            same_screens += np.array_equal(game.last_frames()[-1], value["screen"])
    assert (
        not recording or same_screens > 0.9 * recorded_steps > 0
    )  # a fired weapon can look otherwise where every tic is drawn
    assert ends["terminated" if env_id in (HEALTH, DEFEND) else "truncated"]
    assert short or env_id != DEFEND  # a monster's blow falls at any tic
    game.close()
    other.close()


def test_every_registered_scenario_and_a_deathmatch():
    assert len(ids()) >= 700 and BASIC in ids()
    assert all(registry.family_of(env_id) == "doom" for env_id in ids())
    game = DoomGame(DEATHMATCH, ProtocolOptions(game_variables=True))
    names = game.description.action_names
    assert len(names) == 18 and names[:3] == ("NOOP", "SELECT_PREV_WEAPON", "SELECT_NEXT_WEAPON") and names[-1] == "ATTACK"
    assert game.description.protocol.extra == ("KILLCOUNT", "HEALTH", "ARMOR", "SELECTED_WEAPON", "SELECTED_WEAPON_AMMO")
    observation, extra = room_for(game)
    game.reset(1, observation, extra)
    assert extra[1] == 100
    first = observation.copy()
    for _ in range(10):
        assert game.step(names.index("TURN_LEFT"), observation, extra).frames == 4
    assert (observation != first).any()
    game.close()


def test_buttons_pressed_together_become_one_at_a_time():
    game = DoomGame("VizdoomBasic-MultiBinary-v1", ProtocolOptions())
    assert game.description.action_names == ("NOOP", "ATTACK", "MOVE_RIGHT", "MOVE_LEFT")
    assert game.description.frames_per_second == 35
    game.close()


@pytest.mark.parametrize(
    ("size", "screen"), [((120, 160), (120, 160, 3)), ((72, 200), (240, 320, 3)), ((500, 500), (480, 640, 3))]
)
def test_the_engine_draws_what_the_picture_needs(size, screen):
    game = DoomGame(BASIC, ProtocolOptions(image_size=size))
    assert game.description.observation_shape == (3, *size) and game.description.screen_shape == screen
    observation, extra = room_for(game)
    game.reset(1, observation, extra)
    assert observation.std() > 5
    game.close()


@pytest.mark.parametrize(
    ("size", "how"),
    [((61, 81), cv2.INTER_LINEAR), ((72, 64), cv2.INTER_AREA), ((36, 64), cv2.INTER_AREA)],
)
def test_a_picture_that_shrinks_by_two_or_more_is_a_mean_over_areas(size, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    game, other = DoomGame(BASIC, ProtocolOptions(image_size=size)), reference(BASIC)
    observation, extra = room_for(game)
    game.reset(5, observation, extra)
    value, _ = other.reset(seed=5)
    np.testing.assert_array_equal(observation, picture_of(value["screen"], size, how))
    wrong = cv2.INTER_LINEAR if how == cv2.INTER_AREA else cv2.INTER_AREA
    assert (observation != picture_of(value["screen"], size, wrong)).any()
    game.close()
    other.close()


def test_a_users_own_scenario(tmp_path, monkeypatch):
    """A file beside the user, whose map lies beside the file; nothing is left in the folder."""
    own = config_file("doom/basic.cfg")
    (tmp_path / "basic.wad").write_bytes((own.parent / "basic.wad").read_bytes())
    (tmp_path / "mine.cfg").write_text(own.read_text() + "\nepisode_timeout = 30\nmode = SPECTATOR\n")
    monkeypatch.chdir(tmp_path)
    assert registry.family_of("doom/mine.cfg") == "doom"
    with WorkerEnvs("doom/mine.cfg", 1, options=ProtocolOptions(frame_skip=(8, 8))) as envs:
        assert envs.description.protocol.max_episode_frames == 30
        envs.reset([[1]])
        frames = []
        for _ in range(5):
            step = envs.recv(0)
            frames.append((int(step.frames[0]), bool(step.truncated[0])))
            envs.send(np.zeros(1, int), 0)
        envs.recv(0)
    assert frames == [(0, False), (8, False), (8, False), (8, False), (6, True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["basic.wad", "mine.cfg"]


@pytest.mark.parametrize(
    ("env_id", "options", "said"),
    [
        (BASIC, ProtocolOptions(frame_skip=(2, 4)), "--frame-skip 2-4 is drawn at each step; Doom takes one number"),
        (BASIC, ProtocolOptions(sticky=0.25), "--sticky cannot change it; flags that can: --frame-skip and --image-size"),
        (HOME, ProtocolOptions(game_variables=True), "--game-variables, but this scenario shows none"),
        ("VizdoomBasic-v7", ProtocolOptions(), "nearest: .*VizdoomBasic-v1"),
        ("vizdoom-basic-v1", ProtocolOptions(), "nearest: VizdoomBasic-v1"),
        ("vizdoom:VizdoomBasic-v1", ProtocolOptions(), "known without its module; write VizdoomBasic-v1"),
        ("doom/basics.cfg", ProtocolOptions(), "no file basics.cfg; ViZDoom's own near it: basic.cfg"),
        ("VizdoomDoomE1M1-S1-v0", ProtocolOptions(), "doom.wad"),
    ],
)
def test_refused_with_one_line(env_id, options, said):
    with pytest.raises(InputError, match=said) as caught:
        registry.make_game(env_id, options)
    assert "\n" not in str(caught.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom.gymnasium_wrapper", None)
    with pytest.raises(InputError, match=f"{sys.executable} -m pip install vizdoom"):
        registry.make_game(BASIC, ProtocolOptions())
    with pytest.raises(InputError, match="nearest: Bowling-v0"):
        registry.make_game("Bowlin-v0", ProtocolOptions())


def engines_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for file in children for child in file.read_text().split()]
    return [child for child in pids if "vizdoom" in Path(f"/proc/{child}/comm").read_text()]


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


def memory_of(pids: list[int]) -> set[str]:
    """The files of shared memory that they map; one that has lost its name says so."""
    maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in pids]
    return {line[line.index("/dev/shm") :] for lines in maps for line in lines if "/dev/shm" in line}


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks for processes under /proc")


@linux
def test_an_engine_that_dies_is_a_lost_game():
    before = set(engines_of(os.getpid()))
    game = DoomGame(BASIC, ProtocolOptions())
    observation, extra = room_for(game)
    game.reset(1, observation, extra)
    (engine,) = set(engines_of(os.getpid())) - before
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(GameLost, match="VizdoomBasic-v1: Doom's engine died"):
        for _ in range(5):
            game.step(0, observation, extra)
    game.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a system that binds no process to cores")
def test_a_game_and_its_engine_stay_on_one_core():
    with WorkerEnvs(BASIC, 2, num_workers=2) as envs:
        usable = os.sched_getaffinity(0)
        cores = [os.sched_getaffinity(worker._process.pid) for worker in envs._workers]
        assert all(len(core) == 1 and core <= usable for core in cores)
        assert len(set.union(*cores)) == min(2, len(usable))
        for worker, core in zip(envs._workers, cores, strict=True):
            assert [os.sched_getaffinity(engine) for engine in engines_of(worker._process.pid)] == [core]
    with WorkerEnvs("CartPole-v1", 2) as envs:
        assert [os.sched_getaffinity(worker._process.pid) for worker in envs._workers] == [usable] * len(envs._workers)


@linux
@pytest.mark.parametrize("victim", ["engine", "worker"])
def test_killed_processes_are_replaced_and_leave_nothing(victim):
    """The engine of a killed worker would live on, and with it the pipe that says that the worker is gone."""
    with WorkerEnvs(BASIC, 2, num_workers=1, restart=True, hang_seconds=30) as envs:
        envs.reset([[1], [2]])
        envs.recv(0)
        worker = envs._workers[0]._process.pid
        engines = engines_of(worker)
        assert len(engines) == 2
        memory = memory_of([worker, *engines])
        assert len(memory) >= 2 and all(name.endswith(" (deleted)") for name in memory)
        os.kill(engines[0] if victim == "engine" else worker, signal.SIGKILL)
        for _ in range(4):
            envs.send(np.zeros(2, int), 0)
            step = envs.recv(0)
            if step.is_first.all():
                break
        assert step.is_first.all() and envs.lost_games == 2
        assert not any(map(is_alive, engines))
        engines = engines_of(envs._workers[0]._process.pid)
        assert all(name.endswith(" (deleted)") for name in memory_of(engines))
    assert not any(map(is_alive, engines))


@linux
def test_engines_do_not_outlive_a_trainer_and_workers_that_are_killed_together():
    command = [sys.executable, "-c", TRAINER, BASIC, "waiting"]
    trainer = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    killed, engines = [trainer.pid], []
    try:
        assert trainer.stdout and trainer.stdout.readline() == "playing\n"
        killed += children(trainer.pid)
        engines = [engine for pid in killed for engine in engines_of(pid)]
        assert len(engines) == 4
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees another's end
            for pid in killed:
                os.kill(pid, number)
        assert soon(lambda: not any(map(is_alive, engines)))
    finally:
        for pid in filter(is_alive, [*killed, *engines]):
            os.kill(pid, signal.SIGKILL)
        trainer.communicate()


def test_nothing_is_printed_or_written(tmp_path):
    """Not by the wrapper, not by the engine at its end; and an Atari id imports nothing of Doom."""
    code = f"""
import sys
from envs import registry
from envs.contract import ProtocolOptions
registry.family_of("Bowling-v0")
assert not [name for name in sys.modules if name.partition(".")[0] in ("vizdoom", "miniworld", "pyglet", "pygame")]
game = registry.make_game({BASIC!r}, ProtocolOptions())
game.record()
game.close()
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())
