"""DeepMind Lab through the adapter: against a strict stand-in of the engine's module, and against the engine if installed."""

import dataclasses
import importlib
import sys
import tempfile
import threading
import zlib
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest

from envs import lab, lab_tasks, registry
from envs.contract import VOCABULARY, GameLost, InputError, Outcome, ProtocolOptions
from envs.lab import LabGame, LevelCache
from envs.worker_handle import WorkerError
from envs.workers import WorkerEnvs
from tests.envs.conftest import STAND_INS

CHASM = "dmlab/lt_chasm"
LANGUAGE = "dmlab30/language_execute_random_task"
NO_FLAGS = ProtocolOptions()


class Play:
    """One game stepped without a vector."""

    def __init__(self, env_id: str, options: ProtocolOptions = NO_FLAGS, *, record: bool = False) -> None:
        self.game = LabGame(env_id, options)
        if record:
            self.game.record()
        description = self.game.description
        self.observation = np.zeros(description.observation_shape, np.uint8)
        self.extra = np.full(description.extra_size, -1, np.float32)

    def reset(self, seed: int | None = 1) -> np.ndarray:
        self.game.reset(seed, self.observation, self.extra)
        return self.observation.copy()

    def step(self, action: int = 0) -> tuple[np.ndarray, Outcome]:
        outcome = self.game.step(action, self.observation, self.extra)
        return self.observation.copy(), outcome

    def to_the_end(self, seed: int | None = 1) -> list[tuple[np.ndarray, Outcome]]:
        """Every step of a game under a fixed plan of actions."""
        self.reset(seed)
        steps = [self.step(0)]
        while not (steps[-1][1].terminated or steps[-1][1].truncated):
            steps.append(self.step(len(steps) % self.game.description.num_actions))
        return steps


def assert_same(one: list[tuple[np.ndarray, Outcome]], other: list[tuple[np.ndarray, Outcome]]) -> None:
    assert [outcome for _, outcome in one] == [outcome for _, outcome in other]
    for (picture, _), (another, _) in zip(one, other, strict=True):
        np.testing.assert_array_equal(picture, another)


@pytest.fixture
def built(monkeypatch):
    """Arguments of every engine that is built."""
    module = importlib.import_module("deepmind_lab")
    calls = []

    real = module.Lab  # no class can be derived from it

    def spied(level, observations, **arguments):
        calls.append((level, observations, arguments))
        return real(level, observations, **arguments)

    monkeypatch.setattr(module, "Lab", spied)
    return calls


# ------------------------------------------------------------------------------------------------------------- the tasks


def test_the_thirty_tasks():
    assert len(lab_tasks.TASKS) == len(lab_tasks.BY_ID) == 30
    two = [task.name for task in lab_tasks.TASKS if task.train_level != task.test_level]
    assert two == ["rooms_collect_good_objects", "rooms_exploit_deferred_effects"]
    first = lab_tasks.TASKS[0]
    assert first[1:3] == tuple(f"contributed/dmlab30/rooms_collect_good_objects_{version}" for version in ("train", "test"))
    assert sum(task.has_instructions for task in lab_tasks.TASKS) == 4
    assert all(task.random < task.human for task in lab_tasks.TASKS)
    watermaze = lab_tasks.BY_ID["dmlab30/rooms_watermaze"]
    assert (watermaze.random, watermaze.human, watermaze.test_level) == (4.065, 54, "contributed/dmlab30/rooms_watermaze")


def test_human_normalized_mean_is_capped_by_task():
    random = {env: task.random for env, task in lab_tasks.BY_ID.items()}
    human = {env: task.human for env, task in lab_tasks.BY_ID.items()}
    assert lab_tasks.human_normalized_capped(random) == 0
    assert lab_tasks.human_normalized_capped(human) == pytest.approx(100)
    # One task far above human does not make up for 29 at random: 100 / 30.
    assert lab_tasks.human_normalized_capped(random | {"dmlab30/rooms_watermaze": 1e6}) == pytest.approx(100 / 30)
    # 0.1 + 99.9 / 2 is half-way; and below random counts negative: (-99.8 - 0.1) / 99.9 = -1.
    name = "dmlab30/skymaze_irreversible_path_hard"
    assert lab_tasks.human_normalized_capped(human | {name: 50.05}) == pytest.approx(100 * 29.5 / 30)
    assert lab_tasks.human_normalized_capped(random | {name: -99.8}) == pytest.approx(-100 / 30)


def test_human_normalized_mean_needs_every_task_and_no_other():
    everything = dict.fromkeys(lab_tasks.BY_ID, 0.0)
    assert lab_tasks.human_normalized_capped(everything) is not None
    for scores in ({}, {"dmlab30/rooms_watermaze": 1.0}, everything | {"pong": 1.0}):
        assert lab_tasks.human_normalized_capped(scores) is None


# ------------------------------------------------------------------------------------------------------------------- ids


def test_ids_belong_to_the_family():
    for env_id in (*lab.ids(), "dmlab/any/level/at_all"):
        assert registry.family_of(env_id) == "lab"
    for env_id in ("dmlab/", "dmlab30/", "dmlab", "dmlab30/lt_chasm", "dmlab30/rooms_watermaze/x"):
        with pytest.raises(InputError, match="unknown environment"):
            registry.family_of(env_id)


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("dmlab30/rooms_watermase", "nearest: dmlab30/rooms_watermaze"),
        ("dmlab/lt_chasn", r"dmlab/lt_chasn: DeepMind Lab cannot play this level \(.*\); nearest: dmlab/lt_chasm"),
        ("dmlab/rooms_watermaze", r"; nearest: dmlab30/rooms_watermaze"),
        ("dmlab/%", "no level known here comes near it"),
    ],
)
def test_unknown_levels_name_the_nearest(env_id, said):
    with pytest.raises(InputError, match=said) as caught:
        registry.make_game(env_id, NO_FLAGS)
    assert "\n" not in str(caught.value)


def test_slots_of_all_take_the_tasks_by_turns():
    tasks = registry.tasks_of("dmlab30/all")
    assert tasks == tuple(f"dmlab30/{task.name}" for task in lab_tasks.TASKS)
    with WorkerEnvs("dmlab30/all", 8, num_workers=2) as envs:
        envs.reset([[slot] for slot in range(8)])
        step = envs.recv(0)
        assert envs.tasks == tasks[:8] and envs.description.protocol.env == "dmlab30/all"
        assert step.extra.shape == (8, 16)
        np.testing.assert_array_equal(step.extra.any(axis=1), ["language" in task for task in envs.tasks])


def test_a_missing_module_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepmind_lab", None)
    with pytest.raises(
        InputError, match=r"dmlab/lt_chasm: the module deepmind_lab is not installed; .*Bazel.*dmlab-gym build"
    ) as caught:
        LabGame(CHASM, NO_FLAGS)
    assert "\n" not in str(caught.value)
    assert registry.make_game("CartPole-v1", NO_FLAGS).description.num_actions == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ProtocolOptions(image_size=(70, 96)), "--image-size 70x96: height and width have to be multiples of 4"),
        (ProtocolOptions(frame_skip=(2, 4)), "--frame-skip 2-4: DeepMind Lab takes one number"),
        (
            ProtocolOptions(sticky=0.25),
            "--sticky cannot change it; flags that can: --image-size and --frame-skip and --lab-actions",
        ),
    ],
)
def test_flags_that_do_not_fit(options, said):
    with pytest.raises(InputError, match=said):
        LabGame(CHASM, options)


def test_flags_and_their_defaults():
    assert LabGame.options_of(CHASM) == ProtocolOptions(image_size=(72, 96), frame_skip=(4, 4), lab_actions=9)
    for options in (NO_FLAGS, LabGame.options_of(CHASM)):
        game = LabGame(CHASM, options).description
        assert (game.observation_shape, game.protocol.frame_skip, game.num_actions) == ((3, 72, 96), (4, 4), 9)
        assert (game.screen_shape, game.frames_per_second, game.protocol.level) == ((72, 96, 3), 60, None)
    game = Play(CHASM, ProtocolOptions(image_size=(16, 24), frame_skip=(2, 2), lab_actions=15))
    assert game.reset().shape == (3, 16, 24) and game.step()[1].frames == 2
    assert len(set(game.game.description.action_names)) == 15


# ---------------------------------------------------------------------------------------------------------------- a game


@pytest.mark.parametrize("lab_actions", [9, 15])
@pytest.mark.parametrize("env_id", [CHASM, "dmlab/tests/gadgets"])
def test_equal_to_the_bare_module(env_id, lab_actions):
    """Until the end, which is read off the module alone; and the last picture once more."""
    module = importlib.import_module("deepmind_lab")
    config = {"width": "96", "height": "72", "logLevel": "NEVER"}
    bare = module.Lab(env_id.removeprefix("dmlab/"), ["RGB_INTERLEAVED"], config=config)
    bare.reset(seed=5)
    play = Play(env_id, ProtocolOptions(lab_actions=lab_actions))
    seen = bare.observations()["RGB_INTERLEAVED"]
    np.testing.assert_array_equal(np.moveaxis(play.reset(5), 0, -1), seen)
    moves = list(lab.ACTIONS[lab_actions].values())
    assert len(moves) == lab_actions
    for at in range(1000):
        move = np.zeros(len(bare.action_spec()), np.intc)
        move[:7] = moves[at % lab_actions]
        reward = bare.step(move, num_steps=4)
        picture, outcome = play.step(at % lab_actions)
        assert outcome.reward == reward
        assert (outcome.terminated or outcome.truncated) != bare.is_running()
        if not bare.is_running():
            break
        seen = bare.observations()["RGB_INTERLEAVED"]
        np.testing.assert_array_equal(np.moveaxis(picture, 0, -1), seen)
    np.testing.assert_array_equal(np.moveaxis(picture, 0, -1), seen)


@pytest.mark.parametrize(
    ("level", "skip", "steps", "truncated", "last_frames"),
    [
        ("seekavoid_arena_01", 4, 30, True, 4),  # 120 frames
        ("seekavoid_arena_01", 7, 18, True, 1),  # 17 * 7 + 1
        ("stairway_to_melon", 4, 26, False, 4),  # the task ends with frame 101; how far into the step, nobody says
        ("stairway_to_melon", 1, 101, False, 1),
    ],
)
def test_time_outs_are_told_from_ends(level, skip, steps, truncated, last_frames):
    outcomes = [outcome for _, outcome in Play(f"dmlab/{level}", ProtocolOptions(frame_skip=(skip, skip))).to_the_end()]
    assert len(outcomes) == steps
    assert [outcome.frames for outcome in outcomes] == [skip] * (steps - 1) + [last_frames]
    assert (outcomes[-1].truncated, outcomes[-1].terminated) == (truncated, not truncated)


def test_a_level_without_a_limit_never_times_out():
    """Its clock says zero frames left, always."""
    play = Play("dmlab/tests/no_limit")
    assert all(play.to_the_end(seed)[-1][1].terminated for seed in range(10))


def test_both_kinds_of_end_within_one_level():
    play = Play(CHASM)
    ends = [(len(steps), steps[-1][1].truncated) for steps in map(play.to_the_end, range(20))]
    assert {truncated for _, truncated in ends} == {True, False}
    assert all(truncated == (length == 30) for length, truncated in ends)


def test_a_seed_decides_everything():
    play = Play(CHASM)
    first = play.to_the_end(3)
    follower = [play.to_the_end(None) for _ in range(3)]
    again = Play(CHASM)
    again.to_the_end(9)
    again.to_the_end(None)
    assert_same(first, again.to_the_end(3))
    for steps in follower:
        assert_same(steps, again.to_the_end(None))
    assert len({steps[0][0].tobytes() for steps in (first, *follower)}) == 4


def test_numpy_seeds_are_taken():
    assert_same(Play(CHASM).to_the_end(np.int64(3)), Play(CHASM).to_the_end(3))


def test_only_seeds_build_an_engine(built):
    play = Play(CHASM)
    for seed in (None, None, 4, 4, None):
        play.reset(seed)
    assert len(built) == 1 + 3  # to look at the level, for the first game, and one a seed


@pytest.mark.parametrize("env_id", [CHASM, "dmlab/seekavoid_arena_01"])
def test_recording_changes_nothing_but_the_last_count(env_id):
    for seed in range(4):
        plain, recorded = Play(env_id).to_the_end(seed), Play(env_id, record=True)
        filmed = recorded.to_the_end(seed)
        assert len(recorded.game.last_frames()) == filmed[-1][1].frames  # exact: it steps frame by frame
        last = filmed[-1]
        if last[1].terminated:
            assert last[1].frames <= 4
            filmed[-1] = (last[0], last[1]._replace(frames=4))
        assert_same(plain[:-1], filmed[:-1])
        assert plain[-1][1] == filmed[-1][1]


def test_every_frame_is_recorded():
    play = Play(CHASM, record=True)
    play.reset()
    assert play.game.last_frames() == []
    for step in range(1, 4):
        picture, _ = play.step()
        frames = play.game.last_frames()
        assert [int(frame[0, 0, 0]) for frame in frames] == [4 * step - 3, 4 * step - 2, 4 * step - 1, 4 * step]
        np.testing.assert_array_equal(np.moveaxis(picture, 0, -1), frames[-1])


def test_what_the_module_lacks_is_named(tmp_path, monkeypatch):
    (tmp_path / "deepmind_lab.py").write_text("import no_such_dm_env\n")
    monkeypatch.delitem(sys.modules, "deepmind_lab", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"is installed and does not start .No module named 'no_such_dm_env'"):
        LabGame(CHASM, NO_FLAGS)
    (tmp_path / "deepmind_lab.py").write_text("raise ImportError('libGL.so.1: no such file', name='deepmind_lab')\n")
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"is installed and does not start .libGL"):
        LabGame(CHASM, NO_FLAGS)


def test_a_level_without_clock_and_words():
    play = Play("dmlab/tests/plain")
    assert play.game.description.num_tokens == play.game.description.extra_size == 0
    assert all(play.to_the_end(seed)[-1][1].terminated for seed in range(10))


@pytest.mark.parametrize("level", ["tests/script_error"])
@pytest.mark.parametrize("record", [False, True])
def test_a_failing_engine_loses_the_game(level, record):
    play = Play(f"dmlab/{level}", record=record)
    play.reset()
    with pytest.raises(GameLost, match=rf"DeepMind Lab failed in {level}: .*nil value") as caught:
        for _ in range(3):
            play.step()
    assert "\n" not in str(caught.value)
    play.reset(1)  # and another can be opened


def test_nothing_is_printed(capfd):
    play = Play(LANGUAGE)
    play.to_the_end()
    play.game.close()
    play.game.close()
    assert capfd.readouterr() == ("", "")


def test_lost_games_reach_the_trainer():
    with WorkerEnvs("dmlab/tests/script_error", 1) as envs:
        envs.reset([[1]])
        with pytest.raises(WorkerError, match="DeepMind Lab failed in tests/script_error"):
            for _ in range(4):
                envs.recv(0)
                envs.send(np.zeros(1, int), 0)


def test_an_engine_that_aborts_is_started_anew_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TEST_TMPDIR", str(tmp_path))  # the engine looks here first
    monkeypatch.setattr(tempfile, "tempdir", None)
    with WorkerEnvs("dmlab/tests/engine_abort", 2, num_workers=1, restart=True) as envs:
        envs.reset([[1], [2]])
        for _ in range(8):  # of four frames; the tenth frame aborts
            envs.recv(0)
            envs.send(np.zeros(2, int), 0)
        envs.recv(0)
        assert envs.lost_games >= 4
        (folder,) = tmp_path.iterdir()  # the living worker's
        assert len(list(folder.glob("dmlab_temp_folder_*"))) == 2
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- instructions


def test_words():
    """Of lower-cased words; 0 is no word, and what does not fit is cut."""
    the, ball = (zlib.crc32(word) % 999 + 1 for word in (b"the", b"ball"))
    assert lab.word_ids("The BALL the") == [the, ball, the] + [0] * 13
    assert lab.word_ids("") == [0] * 16
    assert lab.word_ids("the " * 20) == [the] * 16
    numbers = lab.word_ids(" ".join(map(str, range(16))))
    assert min(numbers) >= 1 and max(numbers) < VOCABULARY


def test_instructions_are_seen():
    play = Play(LANGUAGE)
    game = play.game.description
    assert (game.extra_size, game.num_tokens, len(game.protocol.extra)) == (16, 16, 16)
    seen = set()
    for seed in range(8):
        play.reset(seed)
        seen.add(tuple(play.extra))
        assert (play.extra[:4] > 0).all() and not play.extra[4:].any()
        play.extra.fill(-1)
        play.step()
        assert tuple(play.extra) in seen
    assert len(seen) > 2


def test_every_task_has_room_for_an_instruction():
    """So that one network plays all; other levels only where the engine has instructions for them."""
    play = Play("dmlab30/rooms_watermaze")
    play.reset()
    assert play.game.description.num_tokens == 16 and not play.extra.any()
    assert LabGame("dmlab/contributed/dmlab30/language_execute_random_task", NO_FLAGS).description.num_tokens == 16


# ---------------------------------------------------------------------------------------------------------- the settings


def test_held_out_levels(built):
    """Evaluation plays the test version where there is one, and other maps of the same level where there is none."""
    held_out = ProtocolOptions(held_out=True)
    for env_id in ("dmlab30/rooms_collect_good_objects", "dmlab30/rooms_watermaze"):
        pictures = [Play(env_id, options).reset(1).tobytes() for options in (NO_FLAGS, held_out)]
        assert pictures[0] != pictures[1]
    levels = [level.removeprefix("contributed/dmlab30/") for level, _, _ in built[::2]]
    configs = [arguments["config"] for _, _, arguments in built[::2]]
    rooms = "rooms_collect_good_objects"
    assert levels == [f"{rooms}_train", f"{rooms}_test", "rooms_watermaze", "rooms_watermaze"]
    assert [config["mixerSeed"] for config in configs] == ["0", "1611489005", "0", "1611489005"]
    assert ["allowHoldOutLevels" in config for config in configs] == [False, True, False, True]
    described = LabGame("dmlab30/rooms_collect_good_objects", held_out).description.protocol
    assert described.level == "contributed/dmlab30/rooms_collect_good_objects_test"


def test_a_test_level_can_be_named():
    Play("dmlab/contributed/dmlab30/rooms_collect_good_objects_test").reset()
    with_flag = dataclasses.replace(NO_FLAGS, held_out=True)
    np.testing.assert_array_equal(Play(CHASM, with_flag).reset(2), Play(CHASM).reset(2))  # has no other version


def test_pictures_of_psychlab(built, monkeypatch):
    env_id = "dmlab30/psychlab_sequential_comparison"
    assert LabGame(env_id, NO_FLAGS).description.protocol.backend == "deepmind_lab 1.0, pictures: dummy"
    monkeypatch.setenv("PLAYFIELD_LAB_DATASET", "/data/brady")
    assert LabGame(env_id, NO_FLAGS).description.protocol.backend == "deepmind_lab 1.0, pictures: brady"
    assert [arguments["config"]["datasetPath"] for _, _, arguments in built] == ["dummy", "/data/brady"]
    assert LabGame(CHASM, NO_FLAGS).description.protocol.backend == "deepmind_lab 1.0"


# ------------------------------------------------------------------------------------------------------------- the cache


def test_maps_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAYFIELD_CACHE", str(tmp_path))
    Play(LANGUAGE).reset(1)
    (kept,) = (tmp_path / "lab").iterdir()
    stamp = kept.stat().st_mtime_ns
    Play(LANGUAGE).reset(1)
    assert kept.stat().st_mtime_ns == stamp  # fetched, not written again
    Play(LANGUAGE).reset(2)
    assert len(list((tmp_path / "lab").iterdir())) == 2


def test_many_writers_of_one_map(tmp_path):
    """A reader sees nothing or a whole map, at any time."""
    sources = [tmp_path / f"source{number}" for number in range(4)]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number]) * 100_000)
    cache, stop, torn = LevelCache(tmp_path / "cache"), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if cache.fetch("a/b", str(tmp_path / "read")):
                content = (tmp_path / "read").read_bytes()
                torn.append(len(content) != 100_000 or len(set(content)) != 1)

    def write(source: Path) -> None:
        for _ in range(30):
            cache.write("a/b", str(source))

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(source,)) for source in sources]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    assert cache.fetch("a/b", str(tmp_path / "after"))
    stop.set()
    reader.join()
    assert not any(torn)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".pk3"]  # no part is left behind


def test_a_cache_that_cannot_be_used_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    cache = LevelCache(tmp_path / "file")  # no folder can be made here
    cache.write("key", str(tmp_path / "file"))
    assert not cache.fetch("key", str(tmp_path / "map")) and not (tmp_path / "map").exists()
    monkeypatch.setenv("PLAYFIELD_CACHE", str(tmp_path / "file"))
    Play(LANGUAGE).reset()


def test_home_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("PLAYFIELD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "map").write_bytes(b"map")
    LevelCache().write("key", str(tmp_path / "map"))
    assert len(list((tmp_path / ".cache/playfield/lab").iterdir())) == 1


# ----------------------------------------------------------------------------------------------------------- the stand-in


def test_the_stand_in_is_strict():
    """What the real module refuses; each of these would otherwise pass in an adapter unseen."""
    module = importlib.import_module("deepmind_lab")
    assert module.__file__.startswith(STAND_INS)
    still = np.zeros(7, np.intc)
    for error, arguments, config in (
        (TypeError, ("lt_chasm", ("RGB",)), {}),
        (TypeError, ("lt_chasm", ["RGB"]), {"width": 96}),
        (ValueError, ("tests/plain", ["INSTR"]), {}),
        (RuntimeError, ("lt_chasm", ["RGB"]), {"no_such_setting": "1"}),
        (RuntimeError, ("lt_chasm.lua", ["RGB"]), {}),
        (RuntimeError, ("lt_chasm", ["RGB"]), {"height": "70"}),
        (RuntimeError, ("contributed/dmlab30/rooms_collect_good_objects_test", ["RGB"]), {}),
    ):
        with pytest.raises(error):
            module.Lab(*arguments, config={"logLevel": "NEVER", **config})
    engine = module.Lab("seekavoid_arena_01", ["RGB"], config={"logLevel": "NEVER"})
    for call in (engine.observations, lambda: engine.step(still)):
        with pytest.raises(RuntimeError, match="wrong status"):
            call()
    with pytest.raises(ValueError, match="'seed' must be int"):
        engine.reset(seed=np.int64(1))
    with pytest.raises(OverflowError):
        engine.reset(seed=2**70)
    for arguments in ({"config": None}, {"temp_folder": None}):
        with pytest.raises(TypeError):
            module.Lab("lt_chasm", ["RGB"], **arguments)
    assert engine.reset(seed=1) and engine.is_running()
    assert engine.observations()["RGB"] is not engine.observations()["RGB"]
    for error, action in (
        (TypeError, [0] * 7),
        (ValueError, still.astype(np.int64)),
        (ValueError, still[:6]),
        (AssertionError, np.zeros(14, np.intc)[::2]),
    ):
        with pytest.raises(error):
            engine.step(action)
    engine.step(still, num_steps=1000)
    assert not engine.is_running() and engine.num_steps() == 1000
    for call in (engine.observations, lambda: engine.step(still)):
        with pytest.raises(RuntimeError, match="wrong status"):
            call()


def test_the_stand_in_talks_unless_told_not_to(capsys):
    importlib.import_module("deepmind_lab").Lab("lt_chasm", ["RGB"]).reset()
    assert "lt_chasm" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ the engine

ELSEWHERE = [path for path in sys.path if path != STAND_INS]
ENGINE = PathFinder.find_spec("deepmind_lab", ELSEWHERE) is not None


@pytest.mark.skipif(not ENGINE, reason="deepmind_lab, the engine's own module, is not installed")
@pytest.mark.parametrize("env_id", ["dmlab/seekavoid_arena_01", "dmlab30/rooms_watermaze", LANGUAGE])
def test_the_engine_itself(env_id, monkeypatch, capfd):
    """Two games a slot, twice: the same data, in workers alone, where the engine is found in place of the stand-in."""
    monkeypatch.setattr(sys, "path", list(ELSEWHERE))
    runs = []
    for num_workers in (1, 2):
        with WorkerEnvs(env_id, 2, num_workers=num_workers, record=[0]) as envs:
            envs.reset([[1], [1]])
            seen = []
            for at in range(40):
                step = envs.recv(0)
                seen.append([np.copy(field) for field in step])
                assert len(envs.last_frames(0)) == step.frames[0]
                envs.send(np.full(2, at % 9), 0)
        runs.append(seen)
    for one, other in zip(*runs, strict=True):
        for field, another in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, another)
            np.testing.assert_array_equal(field[0], field[1])  # recorded and not
    assert runs[0][1][0].any()
    assert capfd.readouterr() == ("", "")
