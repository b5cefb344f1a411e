import dataclasses
import json
from typing import Any, get_args, get_type_hints

import pytest
import tyro

from agents import registry
from envs.atari import protocol_of
from envs.contract import InputError, ProtocolOptions
from training import presets
from training.command_line import flag, parse
from training.config import (
    _RANGES,
    Plan,
    RunConfig,
    check_game,
    default_run_dir,
    load_config,
    make_plan,
    parse_count,
    parse_skip,
    save_config,
)
from training.start import open_envs, plan_of

PLAN = Plan(device="cpu", precision="fp32", workers=2, groups=2, learn_threads=2)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10M", 10_000_000),
        ("200k", 200_000),
        ("120K", 120_000),
        ("1e6", 1_000_000),
        ("1_000_000", 1_000_000),
        ("2.5M", 2_500_000),
        ("1B", 10**9),
        ("7", 7),
    ],
)
def test_numbers_may_be_written_as_people_write_them(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "ten", "", "M", "nan", "inf", "1e400", "10m"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole number above zero"):
        parse_count(text)


def test_a_frame_skip_is_one_number_or_a_range() -> None:
    assert parse_skip("4") == (4, 4)
    assert parse_skip("2-4") == (2, 4)
    for text in ("0", "4-2", "a", "2-", "-", "17", "2-4-6"):
        with pytest.raises(ValueError, match="no frame skip"):
            parse_skip(text)


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_a_config_is_the_same_after_writing_and_reading(algorithm: str, tmp_path) -> None:
    agent = presets.preset(algorithm, "Bowling-ram-v0")
    config = RunConfig(
        env="Bowling-ram-v0", agent=agent, run_dir=tmp_path, frame_skip=(2, 4), sticky=0.5, max_episode_frames=500
    )
    save_config(tmp_path / "config.json", algorithm, config, PLAN, {"commit": "abc"})
    assert load_config(tmp_path / "config.json") == (algorithm, config, PLAN)


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"algorithm": "ppo"}', '{"algorithm": "sarsa", "agent": {}, "run": {}, "plan": {}}']
)
def test_a_damaged_config_is_refused_in_one_line(damage: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(InputError, match=r"config\.json") as refusal:
        load_config(tmp_path / "config.json")
    assert "\n" not in str(refusal.value)
    assert "sarsa" not in damage or "known algorithms are a2c, dqn, ppo, and not 'sarsa'" in str(refusal.value)


def test_a_setting_that_this_version_does_not_know_is_refused(tmp_path) -> None:
    config = RunConfig(env="CartPole-v1", agent=presets.preset("ppo", "CartPole-v1"), run_dir=tmp_path)
    save_config(tmp_path / "config.json", "ppo", config, PLAN, {})
    content = json.loads((tmp_path / "config.json").read_text())
    content["agent"]["surprise"] = 1
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="surprise"):
        load_config(tmp_path / "config.json")


def test_the_plan_is_a_fixed_function() -> None:
    ram = Plan(device="cpu", precision="bf16", workers=2, groups=2, learn_threads=2)
    assert make_plan(8, 2, "cpu", "bf16", images=False) == ram
    assert make_plan(8, 2, "cpu", "bf16", images=True) == dataclasses.replace(
        ram, workers=1
    )  # the other core looks at the pictures
    gpu = Plan(device="cuda", precision="bf16", workers=4, groups=1, learn_threads=1)
    assert make_plan(7, 4, "cuda", "bf16", images=True) == gpu
    assert [make_plan(1, cores, "cpu", "fp32", images=True).workers for cores in (1, 2, 16)] == [1, 1, 1]
    assert make_plan(8, 2, "cpu", "bf16", images=True, slow=True).workers == 2
    assert make_plan(128, 16, "cuda", "bf16", images=True) == dataclasses.replace(gpu, workers=16, groups=4)
    assert [make_plan(n, 16, "cuda", "bf16", images=True).groups for n in (4, 124, 128, 130, 131)] == [2, 2, 4, 2, 1]
    assert make_plan(128, 16, "cuda", "bf16", images=False).groups == make_plan(128, 16, "cpu", "bf16", images=True).groups == 2


@pytest.mark.parametrize(
    ("env", "workers"),
    [("dmlab/lt_chasm", 4), ("MiniWorld-Hallway-v0", 4), ("VizdoomBasic-v1", 3), ("Berzerk-v0", 3), ("Bowling-ram-v0", 4)],
)
def test_a_core_is_left_to_the_policy_where_acting_takes_as_long_as_playing(env, workers, monkeypatch) -> None:
    monkeypatch.setattr("training.start.usable_cores", lambda: 4)
    assert plan_of(RunConfig(env=env, agent=presets.preset("ppo", env), device="cpu")).workers == workers


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_workers_share_their_cores_with_a_trainer_on_the_cpu(device, monkeypatch) -> None:
    seen = {}
    monkeypatch.setattr("training.start.WorkerEnvs", lambda *args, **settings: seen.update(settings))
    config = RunConfig(env="CartPole-v1", agent=presets.preset("ppo", "CartPole-v1"))
    open_envs(config, dataclasses.replace(PLAN, device=device))
    assert seen["share_cores"] == (device == "cpu")


def test_every_preset_is_a_valid_config() -> None:
    for algorithm in registry.ALGORITHMS:
        for env in ("Berzerk-v0", "Bowling-v0", "Bowling-ram-v0", "Berzerk-ram-v0", "ALE/Bowling-v5", "CartPole-v1", "x:Y-v0"):
            config = RunConfig(env=env, agent=presets.preset(algorithm, env))
            config.check()
            assert config.agent.frame_stack == (4 if env in ("Berzerk-v0", "Bowling-v0", "ALE/Bowling-v5") else 1)


@pytest.mark.parametrize("env", ["Berzerk-v0", "Bowling-ram-v0", "VizdoomBasic-v1", "CartPole-v1"])
def test_an_algorithm_of_ones_own_needs_no_preset_and_no_ranges(env: str, monkeypatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings:
        num_envs: int = 3
        surprise: float = 1e99

    monkeypatch.setitem(registry.ALGORITHMS, "mine", registry.ALGORITHMS["a2c"]._replace(config=Settings))
    agent = presets.preset("mine", env)
    RunConfig(env=env, agent=agent).check()
    assert agent == Settings()


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_every_number_of_ours_has_a_range(algorithm: str) -> None:
    kinds = get_type_hints(registry.ALGORITHMS[algorithm].config)
    numbers = {name for name, kind in kinds.items() if {int, float} & {kind, *get_args(kind)}}
    assert "num_envs" in numbers and numbers <= set(_RANGES)


@pytest.mark.parametrize(
    "changes",
    [
        {"discount": 1.5},
        {"num_envs": 0},
        {"learning_rate": -1.0},
        {"clip": 0.0},
        {"minibatches": 0},
        {"gae_lambda": float("nan")},
    ],
)
def test_a_value_out_of_its_range_is_refused(changes: dict[str, float]) -> None:
    agent = dataclasses.replace(presets.preset("ppo", "CartPole-v1"), **changes)
    with pytest.raises(InputError, match=f"--{next(iter(changes)).replace('_', '-')}"):
        RunConfig(env="CartPole-v1", agent=agent).check()


@pytest.mark.parametrize(
    "changes",
    [
        {"sticky": 1.5},
        {"noop_max": -1},
        {"seed": -1},
        *({"frame_skip": skip} for skip in ((0, 0), (4, 2), (1, 17), (-1, 4))),
        *({"image_size": size} for size in ((9_000, 9_000), (72, 8), (-72, 128))),
    ],
)
def test_a_rule_out_of_its_range_is_refused(changes: dict[str, Any], tmp_path) -> None:
    """Also where a file says it, whose values no command line has parsed."""
    config = RunConfig(env="CartPole-v1", agent=presets.preset("ppo", "CartPole-v1"), run_dir=tmp_path, **changes)
    save_config(tmp_path / "config.json", "ppo", config, PLAN, {})
    with pytest.raises(InputError, match=f"--{next(iter(changes)).replace('_', '-')}"):
        load_config(tmp_path / "config.json")


def test_a_flag_changes_a_preset_and_the_preset_the_default() -> None:
    kind = RunConfig[registry.ALGORITHMS["ppo"].config]
    default = RunConfig(env="Bowling-ram-v0", agent=presets.preset("ppo", "Bowling-ram-v0"))
    config = parse(kind, ["--total-frames", "5k", "--clip", "0.3"], prog="train.py ppo", default=default)
    assert (config.total_frames, config.agent.clip, config.agent.discount) == (5_000, 0.3, 0.999)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--totl-frames", "3"], "--total-frames"),
        (["--total-frames", "0"], "whole number above zero"),
        (["--precision", "fp8"], "fp8"),
        (["--clip"], "--clip"),
        (["stray"], "stray"),
        (["--frame-skip", "x"], "no frame skip"),
    ],
)
def test_a_wrong_command_line_gives_one_line_that_names_it(args: list[str], said: str) -> None:
    kind = RunConfig[registry.ALGORITHMS["ppo"].config]
    default = RunConfig(env="CartPole-v1", agent=presets.preset("ppo", "CartPole-v1"))
    with pytest.raises(InputError) as refusal:
        parse(kind, args, prog="train.py ppo", default=default)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not set("│╭╮╰╯─") & set(str(refusal.value))


def test_a_missing_flag_is_named() -> None:
    kind = RunConfig[registry.ALGORITHMS["ppo"].config]
    default = RunConfig(env=tyro.MISSING, agent=presets.preset("ppo", ""))
    with pytest.raises(InputError, match="--env"):
        parse(kind, [], prog="train.py ppo", default=default)


def test_a_flag_is_found_before_parsing() -> None:
    assert flag(["--seed", "2", "--env", "A-v0"], "--env") == "A-v0"
    assert flag(["--env=A-v0"], "--env") == "A-v0"
    assert flag(["--environment", "A-v0", "--env"], "--env") is None


def test_a_run_directory_has_no_separators_of_the_id() -> None:
    assert default_run_dir("ALE/Pong-v5", "ppo", 3).as_posix() == "runs/ALE-Pong-v5-ppo-s3"
    assert default_run_dir("my.games:Pong-v5", "dqn", 1).as_posix() == "runs/my.games-Pong-v5-dqn-s1"


ROM = "rom_md5"
BACKEND = protocol_of("Bowling-v0", ProtocolOptions()).backend


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({ROM: "0123"}, f"{ROM} 0123, here "),
        ({ROM: None}, f"{ROM} None, here "),
        ({"noop_max": 7, ROM: "0123"}, f"noop_max 7, here 0; {ROM} 0123, here"),
        ({"files": ["mine.wad 4567"]}, "files mine.wad 4567, here none"),
        ({"noop_max": "\x1b[31m\n"}, r"noop_max \x1b[31m\n, here 0"),
    ],
)
def test_another_game_is_refused(changes: dict[str, Any], said: str, tmp_path) -> None:
    game = protocol_of("Bowling-v0", ProtocolOptions())
    (tmp_path / "config.json").write_text(json.dumps({"protocol": dataclasses.asdict(game) | changes}))
    with pytest.raises(InputError) as refusal:
        check_game(tmp_path / "config.json", game, {})
    assert f"{tmp_path} was trained on another game than the one here: {said}" in str(refusal.value)


@pytest.mark.parametrize(
    ("rules", "versions", "said"),
    [
        ({"backend": "ale-py 0.1"}, {"torch": "2.0"}, f"trained with ale-py 0.1, here {BACKEND}; numbers may"),
        (
            {"backend": "ale-py 0.1"},
            {"torch": "1.0"},
            f"trained with ale-py 0.1, torch 1.0, here {BACKEND}, torch 2.0; numbers",
        ),
        ({}, {"torch": "\n1.0"}, r"trained with torch \n1.0, here torch 2.0; numbers"),
        ({}, {"torch": "2.0", "other": "9"}, None),
        ({"env": "ALE/Bowling-v5", "level": "another"}, {}, None),
    ],
)
def test_another_version_is_said(rules: dict[str, str], versions: dict[str, str], said: str | None, tmp_path, capsys) -> None:
    game = protocol_of("Bowling-v0", ProtocolOptions())
    content = {"protocol": dataclasses.asdict(game) | rules, "versions": versions}
    (tmp_path / "config.json").write_text(json.dumps(content))
    check_game(tmp_path / "config.json", game, {"torch": "2.0"})
    err = capsys.readouterr().err
    assert err.count("\n") == (said is not None) and (said or "") in err


@pytest.mark.parametrize("content", [{}, {"protocol": [], "versions": 3}, {"protocol": {}, "versions": {}}])
def test_a_config_that_says_nothing_of_its_game_is_taken(content: dict[str, Any], tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    check_game(tmp_path / "config.json", protocol_of("Bowling-v0", ProtocolOptions()), {"torch": "2.0"})
    assert capsys.readouterr().err == ""
