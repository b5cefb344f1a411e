"""The tables of others' scores, and when one of them may stand beside ours."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import gymnasium
import pytest

import evaluation.baselines
from envs.contract import GameProtocol
from evaluation.baselines import PublishedProtocol, baselines_for, comparable, differences, game_of, human_normalized

DATA = Path(evaluation.baselines.__file__).parent / "data"
V5 = GameProtocol(
    env="ALE/Bowling-v5",
    observation="pixels",
    size=(1, 84, 84),
    colour="grey",
    frame_skip=(4, 4),
    max_pool=True,
    sticky=0.25,
    action_set="minimal",
    noop_max=30,
    fire_reset=False,
    episode_end="game over",
    max_episode_frames=108_000,
    max_episode_steps=None,
    mode=None,
    difficulty=None,
    rom_md5=None,
    backend="none",
)
V0 = dataclasses.replace(
    V5, env="Bowling-v0", frame_skip=(2, 4), max_pool=False, noop_max=0, max_episode_frames=None, max_episode_steps=10_000
)
NO_FRAMESKIP_V4 = dataclasses.replace(V5, env="BowlingNoFrameskip-v4", sticky=0.0)
SAME = PublishedProtocol(observation="pixels", sticky=0.25, episode_end="game over", noop_max=30, max_episode_frames=108_000)


def rows(file: str) -> list[dict[str, str]]:
    with (DATA / file).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


REFERENCE, PUBLISHED = rows("atari_reference.csv"), rows("atari_published.csv")


# The data


def test_every_row_has_a_source_and_a_protocol():
    assert all(row["source"] and row["protocol"] for row in REFERENCE + PUBLISHED)
    assert all(row["world_record_source"] for row in REFERENCE if row["world_record"])


def test_no_row_is_given_twice():
    keys = [(row["game"], row["algorithm"], row["frames"]) for row in PUBLISHED]
    assert len(set(keys)) == len(keys)
    assert len({row["game"] for row in REFERENCE}) == len(REFERENCE)


def test_57_games_with_random_and_human():
    assert len(REFERENCE) == 57
    assert all(float(row["random"]) < float(row["human"]) for row in REFERENCE)
    assert {row["game"] for row in PUBLISHED} <= {row["game"] for row in REFERENCE}


def test_world_records_are_above_the_professional_tester():
    assert all(float(row["world_record"]) > float(row["human"]) for row in REFERENCE if row["world_record"])
    assert [row["game"] for row in REFERENCE if not row["world_record"]] == ["Surround"]


def test_games_are_spelled_as_registered():
    pytest.importorskip("ale_py")
    assert all(f"ALE/{row['game']}-v5" in gymnasium.registry for row in REFERENCE)


def test_cells_hold_what_the_columns_promise():
    allowed = {
        "observation": {"pixels", "ram", ""},
        "episode_end": {"game over", "life loss", ""},
        "action_set": {"minimal", "full", ""},
        "score_kind": {"training", "evaluation", "best evaluation", ""},
    }
    for row in PUBLISHED:
        assert row["sticky"] == "" or 0 <= float(row["sticky"]) <= 1
        assert all(row[column] in values for column, values in allowed.items()), row
        assert all(
            row[column] == "" or int(row[column]) >= 0 for column in ("frames", "seeds", "noop_max", "max_episode_frames")
        )
        assert row["std"] == "" or float(row["std"]) >= 0


def test_cells_agree_with_the_words_beside_them():
    for row in PUBLISHED:
        words = row["protocol"]
        assert ("sticky 0.25" not in words) or row["sticky"] == "0.25", row
        assert ("no sticky actions" not in words) or row["sticky"] == "0", row
        assert ("up to 30" not in words) or row["noop_max"] == "30", row
        assert ("30-minute cap" not in words and "108,000-frame cap" not in words) or row["max_episode_frames"] == "108000", row
        assert ("5-minute cap" not in words) or row["max_episode_frames"] == "18000", row
        assert ("training curve" not in words and "training returns" not in words) or row["score_kind"] == "training", row


def test_nothing_that_is_not_a_learned_raw_score():
    forbidden = re.compile(r"planning|approximate|read off|human-normali", re.IGNORECASE)
    assert not [row for row in PUBLISHED if forbidden.search(" ".join(row.values()))]


@pytest.mark.parametrize(
    ("game", "algorithm", "frames", "score"),
    [
        ("Bowling", "DQN (Nature)", "200000000", 42.4),
        ("Bowling", "PPO", "40000000", 40.1),
        ("Bowling", "DreamerV3", "200000000", 249.397),
        ("Bowling", "PPO (fixed hyper-parameters)", "200000000", 117.275),
        ("Bowling", "Agent57", "", 251.18),
        ("Bowling", "QR-DQN (Dopamine, JAX)", "199000000", 47.128),
        ("Bowling", "RUDDER (on PPO)", "", 179),
        ("Berzerk", "Rainbow", "200000000", 2545.6),
        ("Berzerk", "CleanRL PPO (synchronous)", "200000000", 1200.45),
        ("Berzerk", "MuZero", "20000000000", 85932.6),
        ("Berzerk", "Dueling DQN", "200000000", 1472.6),
        ("Breakout", "PPO", "40000000", 274.8),
    ],
)
def test_known_published_scores(game, algorithm, frames, score):
    found = [row["score"] for row in PUBLISHED if (row["game"], row["algorithm"], row["frames"]) == (game, algorithm, frames)]
    assert [float(value) for value in found] == [score]


def test_both_games_have_the_algorithms_that_everyone_knows():
    wanted = {
        "DQN (Dopamine)",
        "C51",
        "Rainbow",
        "IQN",
        "QR-DQN",
        "R2D2",
        "Agent57",
        "MuZero",
        "Ape-X DQN",
        "IMPALA (deep)",
        "ACKTR",
    }
    for game in ("Berzerk", "Bowling"):
        assert wanted <= {row["algorithm"] for row in PUBLISHED if row["game"] == game}


def test_the_counts_in_the_readme_are_the_counts_of_the_table():
    counts = {game: sum(row["game"] == game for row in PUBLISHED) for game in ("Berzerk", "Bowling")}
    line = f"{len(PUBLISHED)}: Berzerk {counts['Berzerk']}, Bowling {counts['Bowling']}"
    assert line in (DATA / "README.md").read_text(encoding="utf-8")


# Names of games


@pytest.mark.parametrize(
    ("env_id", "game"),
    [
        ("Berzerk-v0", "Berzerk"),
        ("Bowling-ram-v0", "Bowling"),
        ("ALE/Bowling-v5", "Bowling"),
        ("ALE/SpaceInvaders-ram-v5", "SpaceInvaders"),
        ("SpaceInvaders-ram-v0", "SpaceInvaders"),
        ("BowlingNoFrameskip-v4", "Bowling"),
        ("Bowling-ramNoFrameskip-v4", "Bowling"),
        ("CartPole-v1", None),
        ("MiniWorld-Hallway-v0", None),
        ("VizdoomBasic-v1", None),
        ("package.module:Bowling-v0", None),
        ("Bowling-v0-wrapped", None),
        ("dmlab/Bowling", None),
        ("Bowling", None),
        ("", None),
    ],
)
def test_game_of(env_id, game):
    assert game_of(env_id) == game


# Human-normalised scores


def test_human_normalized():
    assert human_normalized("Bowling", 23.1) == 0.0
    assert human_normalized("Bowling", 160.7) == 1.0
    assert human_normalized("Berzerk", 123.7) == 0.0
    assert human_normalized("Berzerk", 2630.4) == 1.0
    assert human_normalized("Berzerk", 123.7 + 2 * (2630.4 - 123.7)) == pytest.approx(2.0)
    assert human_normalized("Bowling", 0.0) == pytest.approx(-23.1 / 137.6)
    assert human_normalized("Adventure", 100.0) is None


# What is comparable


def test_comparable_when_the_five_rules_agree():
    assert comparable(V5, SAME)
    assert differences(V5, SAME) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observation": "ram"}, "observation ram, ours pixels"),
        ({"sticky": 0.0}, "sticky 0.0, ours 0.25"),
        ({"episode_end": "life loss"}, "episode end life loss, ours game over"),
        ({"noop_max": 0}, "no-ops 0, ours 30"),
        ({"max_episode_frames": 18_000}, "cap 18,000, ours 108,000"),
    ],
)
def test_not_comparable_when_one_rule_differs_or_is_unknown(change, words):
    assert differences(V5, dataclasses.replace(SAME, **change)) == [words]
    assert not comparable(V5, dataclasses.replace(SAME, **change))
    assert not comparable(V5, dataclasses.replace(SAME, **dict.fromkeys(change)))


def test_an_unknown_rule_does_not_match_a_rule_that_we_do_not_have():
    endless = dataclasses.replace(V5, max_episode_frames=None)
    assert differences(endless, dataclasses.replace(SAME, max_episode_frames=None)) == ["cap not stated, ours none"]


def test_skip_action_set_and_pooling_are_no_reason_against():
    ours = dataclasses.replace(V5, frame_skip=(1, 1), action_set="full", max_pool=False, size=(3, 210, 160), colour="rgb")
    assert comparable(ours, SAME)


def test_a_cap_in_agent_steps_is_never_comparable():
    capped = dataclasses.replace(V5, max_episode_steps=10_000)
    assert differences(capped, SAME) == ["cap 108,000, ours 10,000 agent steps"]


@pytest.mark.parametrize("game", ["Berzerk", "Bowling"])
def test_nothing_published_is_comparable_to_the_first_registered_id(game):
    assert not any(baseline.comparable for baseline in baselines_for(V0, game))


def test_nothing_published_is_comparable_to_ram():
    assert not any(baseline.comparable for baseline in baselines_for(dataclasses.replace(V5, observation="ram"), "Bowling"))


def test_what_is_comparable_to_which_id():
    def names(protocol):
        return {baseline.name for baseline in baselines_for(protocol, "Bowling") if baseline.comparable}

    assert names(V5) == set()  # sticky actions AND 30 no-ops: no source states both with a cap
    assert "Rainbow (Dopamine)" in names(dataclasses.replace(V5, noop_max=0))
    assert names(dataclasses.replace(V5, noop_max=1)) == {"Cleanba PPO", "Cleanba IMPALA", "CleanRL PPO (synchronous)"}
    assert {"random", "human", "Agent57", "MuZero", "R2D2"} <= names(NO_FRAMESKIP_V4)
    assert not {"Rainbow", "DQN (Nature)", "human world record", "DreamerV3"} & names(NO_FRAMESKIP_V4)


# The list


def test_random_human_and_record_come_first_and_then_the_highest():
    found = baselines_for(V5, "Bowling")
    assert [(b.name, b.score) for b in found[:3]] == [("random", 23.1), ("human", 160.7), ("human world record", 300.0)]
    assert all(b.source and b.protocol for b in found)
    scores = [b.score for b in found[3:]]
    assert found[3].name == "MuZero"
    assert scores == sorted(scores, reverse=True)
    assert len(found) == 3 + sum(row["game"] == "Bowling" for row in PUBLISHED)
    assert [(b.name, b.score) for b in baselines_for(V5, "Berzerk")[:2]] == [("random", 123.7), ("human", 2630.4)]


def test_a_baseline_carries_its_row():
    dreamer = next(b for b in baselines_for(V5, "Bowling") if b.name == "DreamerV3" and b.frames == 200_000_000)
    assert (dreamer.std, dreamer.seeds, dreamer.action_set, dreamer.score_kind) == (2.815, 6, "full", "training")
    assert dreamer.differences == ("no-ops not stated, ours 30",)
    assert "danijar/dreamerv3@e3f0224" in dreamer.source
    rudder = next(b for b in baselines_for(V5, "Bowling") if b.name == "RUDDER (on PPO)")
    assert (rudder.std, rudder.frames, rudder.seeds, rudder.action_set, rudder.score_kind) == (None,) * 5


def test_a_missing_record_is_no_baseline():
    assert "human world record" not in [b.name for b in baselines_for(V5, "Surround")]


def test_an_unknown_game_has_no_baselines():
    assert baselines_for(V5, "Adventure") == []


def test_baselines_are_json():
    written = json.loads(json.dumps([dataclasses.asdict(b) for b in baselines_for(V5, "Berzerk")]))
    assert {"name", "score", "protocol", "source", "comparable"} <= set(written[0])
