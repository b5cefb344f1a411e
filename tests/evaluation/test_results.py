"""The README's table: what stands beside an agent is its own."""

import json
from pathlib import Path
from typing import Any

from evaluation.results import results

PROTOCOL = {"observation": "pixels", "frame_skip": [4, 4], "sticky": 0.0, "noop_max": 0, "episode_end": "environment"}
CAPS = {"max_episode_frames": None, "max_episode_steps": 99}


def score(run: str, kind: str, mean: float, env: str = "Game-v0") -> dict[str, Any]:
    protocol = PROTOCOL | CAPS
    common = {"env": env, "protocol": protocol, "ci95": None, "episodes": [{}] * 3, "frames": 2_000_000, "commit": "abc"}
    return {"run": run, "kind": kind, "mean": mean, **common}


def test_each_agent_has_its_own_blind_replay_and_all_scripts(tmp_path: Path) -> None:
    entries = {
        "one": [score("one", "agent", 20), score("blind-one", "blind replay", 3.14159), score("random", "random", 1)],
        "two": [score("two", "agent", 30.26), score("blind-two", "blind replay", 9), score("script-A", "script", 5)],
        "far": [score("far", "agent", 1234, env="Other-v0")],
    }
    for name, scores in entries.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
    rows = {
        line.split("`")[1]: [cell.strip() for cell in line.split("|")]
        for line in results(tmp_path).splitlines()
        if "| `" in line
    }
    assert rows["one"][2:7] == ["20.0", "none", "3", "5.00 (script)", "1.00"]
    assert rows["two"][2:7] == ["30.3", "none", "3", "9.00 (blind replay)", "1.00"]
    assert rows["far"][2:8] == ["1,234.0", "none", "3", "-", "-", "2M frames"]
    assert results(tmp_path).count("- `Game-v0`: plays from pixels") == 1
