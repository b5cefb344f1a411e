"""What is said of players that never look."""

from dataclasses import replace

import pytest

from evaluation import scores
from evaluation.play import Episode
from evaluation.scores import blind_note, blind_players
from evaluation.subjects import find
from tests.agents.driving import describe


def score(name, mean):
    return {"run": name, "mean": mean, "episodes": [{}] * 20}


@pytest.mark.parametrize(
    ("agent", "blind", "said"),
    [
        (100.0, (89.9, 20.0), None),
        (100.0, (20.0, 90.1), "second reaches 90.1 in 20 games without ever looking, and the agent 100.0"),
        (100.0, (150.0, 20.0), "first reaches 150.0"),
        (-100.0, (-111.0, -120.0), None),
        (-100.0, (-109.0, -120.0), "first reaches -109.0"),
    ],
)
def test_the_best_blind_player_is_named_where_it_comes_within_a_tenth(agent, blind, said):
    note = blind_note(score("agent", agent), [score("first", blind[0]), score("second", blind[1])])
    assert note is None if said is None else note.startswith(said)


def test_the_agents_best_game_is_the_one_that_is_repeated(monkeypatch):
    replayed = []

    def note(subject, actions):
        replayed.append(actions)
        return subject

    monkeypatch.setattr(scores.subjects, "blind_replay", note)
    agent = replace(find("random:CartPole-v1", policy=None, device="cpu")[0], algorithm="ppo")
    games = [Episode(index, index, points, 10, True, [index]) for index, points in enumerate((3.0, 9.0, 4.0))]
    blind_players(agent, games)
    assert replayed == [[1]]


@pytest.mark.parametrize(("env", "smooth"), [("Bowling-v0", False), ("VizdoomBasic-v1", True), ("dmlab/lt_chasm", True)])
def test_only_3d_worlds_are_filmed_as_photographs(env, smooth, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(scores, "VideoWriter", lambda *_, **options: opened.append(options))
    subject = replace(find("random:Bowling-v0", policy=None, device="cpu")[0], env=env)
    game = replace(describe((3, 60, 80), "uint8"), screen_shape=(60, 80, 3))
    scores.Recorder(tmp_path / "game.mp4", subject, lambda: game)._open(game)
    assert opened == [{"smooth": smooth}]
