import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.metrics import ROWS, Metrics, read


def test_a_row_holds_means_since_the_last_and_tensorboard_says_the_same(tmp_path: Path) -> None:
    with Metrics(tmp_path, total_frames=2_000) as metrics:
        metrics.add({"loss/policy": 1.0})
        assert not metrics.due(1)
        metrics.add({"loss/policy": 3.0})
        assert metrics.due(2)
        metrics.write(2, 1, {"score/best": 9.0})
        metrics.add({"loss/policy": 8.0})
        metrics.write(4, 2, {})
    rows = read(tmp_path / "metrics.jsonl")
    assert rows == [
        {"frames": 2, "steps": 1, "loss/policy": 2.0, "score/best": 9.0},
        {"frames": 4, "steps": 2, "loss/policy": 8.0},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/policy")] == [(2, 2.0), (4, 8.0)]
    assert set(events.Tags()["scalars"]) == {"frames", "steps", "loss/policy", "score/best"}


def test_a_run_writes_at_most_a_thousand_rows(tmp_path: Path) -> None:
    total = 10 * ROWS
    with Metrics(tmp_path, total) as metrics:
        for frames in range(3, total + 3, 3):
            metrics.add({"loss/policy": 0.0})
            if metrics.due(frames):
                metrics.write(frames, 0, {})
    assert 0.7 * ROWS < len(read(tmp_path / "metrics.jsonl")) <= ROWS


def test_rows_from_after_the_checkpoint_go_when_a_run_resumes(tmp_path: Path) -> None:
    for start, frames in ((0, (1, 2, 3)), (2, (3, 4))):
        with Metrics(tmp_path, 10, {"written": start, "seen": {}}) as metrics:
            for at in frames:
                metrics.add({"loss/policy": float(start)})
                metrics.write(at, at, {})
    expected = [(1, 0), (2, 0), (3, 2), (4, 2)]
    assert [(row["frames"], row["loss/policy"]) for row in read(tmp_path / "metrics.jsonl")] == expected
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/policy")] == expected


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"frames": 1}) + "\n" + '{"frames": 2, "lo')
    assert read(path) == [{"frames": 1}]


@pytest.mark.parametrize(
    "damaged", [b"", b"\xff\x00", b'{"frames": 2, "lo', b'{"frames": -2}', b'{"fr\x01mes": 2}', b"[" * 10**5, b"2"]
)
def test_a_damaged_line_is_left_out_alone(damaged: bytes, tmp_path: Path) -> None:
    """Those behind it stay in their order when a run goes on, here and for TensorBoard."""
    rows = [{"frames": frames, "loss/policy": float(frames)} for frames in (1, 2, 3, 4)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[1] = damaged
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    expected = [rows[0], *rows[2:]]
    assert read(tmp_path / "metrics.jsonl") == expected
    with Metrics(tmp_path, 10, {"written": 4, "seen": {}}) as metrics:
        metrics.add({"loss/policy": 5.0})
        metrics.write(5, 5, {})
    assert read(tmp_path / "metrics.jsonl") == [*expected, {"frames": 5, "steps": 5, "loss/policy": 5.0}]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/policy")] == [1, 3, 4, 5]
