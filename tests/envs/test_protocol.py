"""What an environment id stands for."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py import roms

from envs import atari, registry
from envs.atari import AtariGame, protocol_of, rom_of
from envs.contract import GameProtocol, InputError, ProtocolOptions
from envs.workers import WorkerEnvs

NONE = ProtocolOptions()
GAMES = sorted(spec.name for spec in gymnasium.registry.values() if spec.namespace == "ALE" and spec.version == 5)

# sticky, frame skip, no-ops, frames and agent steps after which a game is cut off, max-pool (of pixels)
FIXED = ((4, 4), 30, 108_000, None, True)
DRAWN = ((2, 4), 0)
TABLE = {
    "ALE/{}-v5": (0.25, *FIXED),
    "{}-v0": (0.25, *DRAWN, None, 10_000, False),
    "{}-v4": (0.0, *DRAWN, 108_000, None, False),
    "{}NoFrameskip-v0": (0.25, *FIXED),
    "{}NoFrameskip-v4": (0.0, *FIXED),
}
ODD_NAMES = {
    "MsPacman": "ms_pacman",
    "UpNDown": "up_n_down",
    "Qbert": "qbert",
    "Et": "et",
    "Pitfall2": "pitfall2",
    "TicTacToe3D": "tic_tac_toe_3d",
    "Jamesbond": "jamesbond",
    "MrDo": "mr_do",
    "StarGunner": "star_gunner",
}


@pytest.mark.parametrize("ram", ["", "-ram"])
@pytest.mark.parametrize("form", TABLE)
def test_every_id_of_every_game(form, ram):
    assert len(GAMES) == 104
    for game in GAMES:
        env_id = form.format(game + ram)
        found = protocol_of(env_id, NONE)
        rules = (found.sticky, found.frame_skip, found.noop_max, found.max_episode_frames, found.max_episode_steps)
        assert (*rules, found.max_pool) == (*TABLE[form][:-1], TABLE[form][-1] and not ram), env_id
        assert (found.env, found.action_set, found.fire_reset, found.episode_end) == (env_id, "minimal", False, "game over")
        looks = ("ram", (128,), None) if ram else ("pixels", (1, 84, 84), "grey")
        assert (found.observation, found.size, found.colour) == looks
        assert (found.mode, found.difficulty, found.backend) == (None, None, f"ale-py {ale_py.__version__}")
        assert registry.family_of(env_id) == "atari"


def test_roms_are_those_of_the_registration():
    for game in GAMES:
        rom = gymnasium.spec(f"ALE/{game}-v5").kwargs["game"]
        assert {rom_of(form.format(game + ram)) for form in TABLE for ram in ("", "-ram")} == {rom}
        md5 = hashlib.md5(Path(roms.get_rom_path(rom)).read_bytes(), usedforsecurity=False).hexdigest()
        assert protocol_of(f"{game}-v0", NONE).rom_md5 == md5
    assert {game: rom_of(f"{game}-v0") for game in ODD_NAMES} == ODD_NAMES


def test_list_of_ids():
    ids = atari.ids()
    assert len(ids) == len(set(ids)) == 104 * 5 * 2
    assert all(rom_of(env_id) for env_id in ids)
    assert {"Bowling-ram-v0", "ALE/Bowling-ram-v5", "Bowling-ramNoFrameskip-v4", "Berzerk-v0"} <= set(ids)


@pytest.mark.parametrize(
    "env_id",
    [
        "Bowling-v5",
        "Bowling-ram-v5",
        "ALE/Bowling-v0",
        "ALE/Bowling-v4",
        "ALE/BowlingNoFrameskip-v5",
        "BowlingNoFrameskip-v5",
        "BowlingDeterministic-v4",
        "Bowling-v1",
        "Bowling",
        "Bowling-v0 ",
        "bowling-v0",
        "ms_pacman-v0",
        "MsPacMan-v0",
        "Combat-v0",
        "Warlords-v0",
    ],
)
def test_refused(env_id):
    assert rom_of(env_id) is None
    with pytest.raises(InputError, match="nearest: "):
        registry.family_of(env_id)


@pytest.mark.parametrize(
    ("env_id", "options", "changed"),
    [
        ("Bowling-v0", {"sticky": 0.5}, {}),
        ("Bowling-v0", {"sticky": 0.0}, {}),
        ("Bowling-v0", {"frame_skip": (4, 4)}, {}),
        ("ALE/Bowling-v5", {"frame_skip": (2, 5)}, {}),
        ("ALE/Bowling-v5", {"noop_max": 0}, {}),
        ("Bowling-ram-v0", {"noop_max": 30}, {}),
        ("Bowling-v4", {"max_episode_frames": 500}, {}),
        ("Bowling-v0", {"max_episode_frames": 500}, {"max_episode_frames": 500, "max_episode_steps": None}),
        ("Bowling-v4", {"full_action_space": True}, {"action_set": "full"}),
    ],
)
def test_every_flag_changes_its_rule_alone(env_id, options, changed):
    found = protocol_of(env_id, ProtocolOptions(**options))
    assert found == dataclasses.replace(protocol_of(env_id, NONE), **(changed or options))
    assert found != protocol_of(env_id, NONE)


def frames_of(env_id: str, options: ProtocolOptions, steps: int = 60) -> list[int]:
    game = AtariGame(env_id, options)
    observation = np.zeros(game.description.observation_shape, np.uint8)
    extra = np.zeros(0, np.float32)
    game.reset(1, observation, extra)
    return [game.step(0, observation, extra).frames for _ in range(steps)]


def test_frame_skip_is_played():
    assert set(frames_of("Bowling-ram-v0", NONE)) == {2, 3, 4}
    assert set(frames_of("Bowling-ram-v0", ProtocolOptions(frame_skip=(4, 4)))) == {4}
    assert set(frames_of("ALE/Bowling-ram-v5", ProtocolOptions(frame_skip=(1, 2)))) == {1, 2}


def test_action_sets():
    assert AtariGame("Bowling-ram-v0", NONE).description.action_names == ("NOOP", "FIRE", "UP", "DOWN", "UPFIRE", "DOWNFIRE")
    every = AtariGame("Bowling-ram-v0", ProtocolOptions(full_action_space=True)).description
    assert every.num_actions == 18 and every.action_names[-1] == "DOWNLEFTFIRE"


def survives(protocol: GameProtocol) -> GameProtocol:
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(protocol)))
    return GameProtocol(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def test_protocol_survives_json():
    """In this process, and on the way from a worker with every option set."""
    options = ProtocolOptions(sticky=0.1, frame_skip=(3, 5), full_action_space=True, noop_max=7, max_episode_frames=900)
    for protocol in (protocol_of("Bowling-v0", NONE), protocol_of("ALE/MsPacman-ram-v5", options)):
        assert survives(protocol) == protocol
        assert hash(survives(protocol)) == hash(protocol)
    with WorkerEnvs("ALE/MsPacman-ram-v5", 1, options=options) as envs:
        assert envs.description == AtariGame("ALE/MsPacman-ram-v5", options).description


def test_registered_games_say_how_they_end():
    with WorkerEnvs("CartPole-v1", 1) as envs:
        protocol = envs.description.protocol
    assert (protocol.observation, protocol.size, protocol.colour, protocol.max_episode_steps) == ("vector", (4,), None, 500)
    assert protocol.backend == f"gymnasium {gymnasium.__version__}"
