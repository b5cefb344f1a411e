"""One agent on the thirty tasks of DMLab-30: each is measured for itself, and one figure sums them up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import evaluate
import train
from agents.registry import ALGORITHMS
from envs.contract import InputError
from envs.lab_tasks import BY_ID
from evaluation import session, subjects
from evaluation.rules import suites_in_words
from training import metrics
from training.config import RunConfig
from training.presets import preset


def test_an_id_of_many_tasks_is_measured_on_each() -> None:
    found = session.find_all(["random:dmlab30/all"], None, "cpu")
    assert [subject.env for subject in found] == list(BY_ID)
    assert len({subject.name for subject in found}) == 30
    assert found[3].name == "random-dmlab30-all-rooms_watermaze"
    assert {subject.suite for subject in found} == {"random-dmlab30-all"}
    assert session.default_out(found) == Path("videos/random-dmlab30-all")
    (alone,) = subjects.find("random:dmlab30/rooms_watermaze", policy=None, device="cpu")
    assert alone.suite is None


def test_only_all_thirty_have_a_capped_mean() -> None:
    scores = [{"suite": "agent", "env": env, "mean": 2 * task.human} for env, task in BY_ID.items()]
    others = [{"suite": "random", "env": env, "mean": task.random} for env, task in BY_ID.items()]
    alone = {"suite": None, "env": "dmlab30/rooms_watermaze", "mean": 1.0}
    of_agent, of_random = suites_in_words([*scores, *others, alone])
    assert of_agent.startswith("DMLab-30, agent: 100.0 % of human skill")
    assert of_random.startswith("DMLab-30, random: 0.0 % of human skill")
    assert suites_in_words(scores[1:]) == []


def test_agents_of_one_name_are_two_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subjects.find("random:dmlab30/rooms_watermaze", policy=None, device="cpu")[0]
    tasks = [replace(subject, env=env, name=f"lab-{task.name}", suite="lab") for env, task in BY_ID.items()]
    monkeypatch.setattr(subjects, "find", lambda *_, **__: tasks)
    found = session.find_all(["a/lab", "b/lab"], None, "cpu")
    assert [subject.suite for subject in found] == ["lab"] * 30 + ["lab-2"] * 30
    assert len({subject.name for subject in found}) == 60
    assert session.default_out(found) == Path("videos/lab+1")


def test_a_tasks_curve_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"frames": 1, "score/mean_100": 9.0},
        {"frames": 2, "score/mean_100": 9.0, "score/mean_100/dmlab30/rooms_watermaze": 4.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (alone,) = subjects.find("random:dmlab30/rooms_watermaze", policy=None, device="cpu")
    assert session._curve(alone, path) == rows
    (row,) = session._curve(replace(alone, suite="lab"), path)
    assert (row["frames"], row["score/mean_100"]) == (2, 4.0)


def test_training_plays_every_task_equally_often() -> None:
    assert [preset(algorithm, "dmlab30/all").num_envs for algorithm in ALGORITHMS] == [30] * len(ALGORITHMS)
    RunConfig(env="dmlab30/all", agent=preset("ppo", "dmlab30/all")).check()
    with pytest.raises(InputError, match="--num-envs 16: dmlab30/all is 30 tasks that take turns; take a multiple of 30"):
        RunConfig(env="dmlab30/all", agent=replace(preset("ppo", "dmlab30/all"), num_envs=16)).check()


@pytest.mark.slow
def test_one_agent_on_all_thirty(monkeypatch, tmp_path, capsys) -> None:
    """Trained with a memory, saved, measured task by task and summed up; the stand-in plays the engine."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "envs" / "stand_ins"))
    monkeypatch.setenv("PLAYFIELD_CACHE", str(tmp_path / "cache"))
    run_dir, out = tmp_path / "lab", tmp_path / "out"
    small = ["--rollout-steps", "32", "--memory", "gru", "--frame-stack", "1", "--total-frames", "40k"]
    assert train.main(["ppo", "--env", "dmlab30/all", *small, "--run-dir", str(run_dir)]) == 0
    last = metrics.read(run_dir / "metrics.jsonl")[-1]
    assert {f"score/mean_100/{env}" for env in BY_ID} | {"score/human_normalized_capped"} <= last.keys()
    assert evaluate.main([str(run_dir), "--episodes", "1", "--videos", "0", "--blind-games", "0", "--out", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert [score["env"] for score in scores] == list(BY_ID)
    assert all(score["human_normalized"] is not None for score in scores)
    printed = " ".join(capsys.readouterr().out.split())
    (line,) = suites_in_words(scores)
    assert line in printed
    assert line in (out / "report.html").read_text()
