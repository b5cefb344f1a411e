"""One agent on the thirty tasks of DMLab-30: each is measured for itself, and one figure sums them up."""

import json
from pathlib import Path

import pytest

import evaluate
import train
from envs.lab_tasks import BY_ID
from evaluation import session, subjects
from evaluation.scores import suite_scores
from training import metrics


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
    assert suite_scores([*scores, *others, alone]) == {"agent": pytest.approx(100), "random": 0}
    assert suite_scores(scores[1:]) == {}


@pytest.mark.slow
def test_one_agent_on_all_thirty(monkeypatch, tmp_path, capsys) -> None:
    """Trained with a memory, saved, measured task by task and summed up; the stand-in plays the engine."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "envs" / "stand_ins"))
    monkeypatch.setenv("PLAYFIELD_CACHE", str(tmp_path / "cache"))
    run_dir, out = tmp_path / "lab", tmp_path / "out"
    small = ["--rollout-steps", "32", "--memory", "gru", "--frame-stack", "1", "--total-frames", "40k"]
    assert train.main(["ppo", "--env", "dmlab30/all", "--num-envs", "30", *small, "--run-dir", str(run_dir)]) == 0
    last = metrics.read(run_dir / "metrics.jsonl")[-1]
    assert {f"score/mean_100/{env}" for env in BY_ID} | {"score/human_normalized_capped"} <= last.keys()
    assert evaluate.main([str(run_dir), "--episodes", "1", "--videos", "0", "--blind-games", "0", "--out", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert [score["env"] for score in scores] == list(BY_ID)
    assert all(score["human_normalized"] is not None for score in scores)
    printed = " ".join(capsys.readouterr().out.split())
    line = f"DMLab-30 lab: {suite_scores(scores)['lab']:.1f} % of human skill"
    assert line in printed
    assert line.removeprefix("DMLab-30 ") in (out / "report.html").read_text()
