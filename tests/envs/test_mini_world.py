"""MiniWorld against Gymnasium's own environment, step by step, and what is refused."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from envs import mini_world, registry
from envs.contract import InputError, ProtocolOptions
from envs.workers import WorkerEnvs


def why_not() -> str:
    try:
        mini_world.ids()
    except InputError as error:
        return str(error)
    return ""


needs_miniworld = pytest.mark.skipif(bool(why_not()), reason=why_not())
HALLWAY, SIGN = "MiniWorld-Hallway-v0", "MiniWorld-Sign-v0"


@needs_miniworld
@pytest.mark.parametrize("env_id", [HALLWAY, SIGN])
def test_equals_gymnasium(env_id):
    """With ends and cuts, in the order of a worker's calls."""
    with WorkerEnvs(env_id, 1) as envs:
        envs.reset([[5, 6]])
        other = gymnasium.make(env_id)
        over, seeds, ends, last = True, iter((5, 6)), set(), 0
        actions = np.random.default_rng(0).integers(envs.description.num_actions, size=400)
        assert other.action_space.n == envs.description.num_actions
        for action in actions:
            step = envs.recv(0)
            if over:
                value, _ = other.reset(seed=next(seeds, None))
                reward, over, end, cut = 0, False, False, False
            else:
                value, reward, end, cut, _ = other.step(last)
                over = end or cut
            picture = value["obs"] if env_id == SIGN else value
            np.testing.assert_array_equal(step.observation[0], np.moveaxis(picture, -1, 0))
            assert (step.reward[0], step.terminated[0], step.truncated[0]) == (np.float32(reward), end, cut and not end)
            ends.add((bool(end), bool(cut)))
            last = action
            envs.send(np.array([action]), 0)
        envs.recv(0)
        other.close()
    assert ends >= ({(True, False)} if env_id == SIGN else {(False, True)})


@needs_miniworld
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed elsewhere")
def test_a_worker_draws_in_the_thread_that_plays(monkeypatch):
    """Mesa's threads would want the cores of the other workers; the environment of whoever starts a training has no say."""
    monkeypatch.setenv("LP_NUM_THREADS", "2")
    with WorkerEnvs(HALLWAY, 1) as envs:
        envs.reset([[1]])
        envs.recv(0)
        (worker,) = envs._workers
        threads = Path(f"/proc/{worker._process.pid}/task").glob("*/comm")
        assert not [each for each in threads if each.read_text().startswith("llvmpipe")]


@needs_miniworld
def test_what_it_says_of_itself():
    with WorkerEnvs(HALLWAY, 2, num_workers=1, record=[1]) as envs:
        game = envs.description
        assert game.action_names == ("turn_left", "turn_right", "move_forward")
        assert (game.frames_per_second, game.screen_shape) == (30, (600, 800, 3))
        assert game.protocol.max_episode_steps == 250 and game.protocol.backend.startswith("miniworld 2")
        envs.reset([[1], [1]])
        np.testing.assert_array_equal(*envs.recv(0).observation)
        envs.send(np.array([1, 1]), 0)
        np.testing.assert_array_equal(*envs.recv(0).observation)
        assert envs.last_frames(1).shape == (1, 600, 800, 3) and envs.last_frames(1).std() > 1


@needs_miniworld
def test_worlds_that_share_a_process_look_as_they_do_alone():
    """Rooms, mazes and things of other forms, which open new games at other times."""
    ids = (HALLWAY, "MiniWorld-FourRooms-v0", "MiniWorld-PickupObjects-v0", "MiniWorld-Sidewalk-v0")
    code = """
import hashlib, sys
import numpy as np
from envs import mini_world
from envs.contract import ProtocolOptions
games = [mini_world.MiniWorldGame(env_id, ProtocolOptions()) for env_id in sys.argv[1:]]
extra, seen, pictures = np.zeros(0, np.float32), [hashlib.sha256() for _ in games], np.zeros((len(games), 3, 60, 80), np.uint8)
for game, picture in zip(games, pictures):
    game.reset(len(game.description.protocol.env), picture, extra)
for action in np.random.default_rng(0).integers(3, size=160):
    for game, picture, digest in zip(games, pictures, seen):
        outcome = game.step(int(action), picture, extra)
        digest.update(picture)
        if outcome.terminated or outcome.truncated:
            game.reset(None, picture, extra)
print(*(digest.hexdigest() for digest in seen))
"""

    def play(*ids):
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", code, *ids], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.split()

    alone = [play(env_id)[0] for env_id in ids]
    assert len(set(alone)) == len(ids) and play(*ids) == alone


@pytest.mark.slow
@needs_miniworld
def test_every_registered_world_can_be_played():
    code = """
from envs import mini_world
from envs.contract import ProtocolOptions
import numpy as np
for env_id in mini_world.ids():
    game = mini_world.MiniWorldGame(env_id, ProtocolOptions(image_size=(48, 64)))
    assert game.description.observation_shape == (3, 48, 64), env_id
    assert len(set(game.description.action_names)) == game.description.num_actions >= 3
    observation, extra = np.zeros((3, 48, 64), np.uint8), np.zeros(0, np.float32)
    game.reset(1, observation, extra)
    game.step(0, observation, extra)
    assert observation.std() > 1, env_id
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def failing_import(folder: Path, name: str, line: str) -> None:
    """Let the next import of a package do this instead."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(line + "\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise ImportError('Library \"GLU\" not found.')", r'cannot draw \(Library "GLU" not found.\).*libegl1 libglu1-mesa'),
        ("class X(Exception): pass\nraise X()", r"cannot draw \(X\).*libegl1 libglu1-mesa"),
        ("import no_such_pyglet", rf"{sys.executable} -m pip install miniworld"),
    ],
)
def test_what_is_missing_is_named_in_one_line(tmp_path, monkeypatch, line, said):
    failing_import(tmp_path, "miniworld", line)
    for name in [name for name in sys.modules if name.partition(".")[0] == "miniworld"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        registry.family_of(HALLWAY)
    assert "\n" not in str(caught.value)


@needs_miniworld
@pytest.mark.parametrize(
    ("env_id", "options", "said"),
    [
        ("MiniWorld-Hallwy-v0", ProtocolOptions(), "unknown environment.*nearest: MiniWorld-Hallway-v0"),
        ("miniworld:MiniWorld-Hallway-v0", ProtocolOptions(), "known without its module; write MiniWorld-Hallway-v0"),
        (HALLWAY, ProtocolOptions(sticky=0.25), "--sticky cannot change it; flags that can: --image-size"),
    ],
)
def test_refused_with_one_line(env_id, options, said):
    with pytest.raises(InputError, match=said):
        registry.make_game(env_id, options)
