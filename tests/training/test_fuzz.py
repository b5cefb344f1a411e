"""The readers of checkpoints and of replay's pieces, with files that are broken anywhere: one kind of refusal, or the truth.

`python -m pytest tests/training/test_fuzz.py --inputs 125000` breaks a million.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.replay import Replay
from envs.contract import InputError
from tests.training.test_checkpoint import save, state_of
from tests.training.test_replay_files import GAME, filled
from training import checkpoint, metrics
from training.config import load_config
from training.disk import Disk
from training.replay_files import ReplayFiles

WORDS = (
    b"0",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"[" * 50,
    b"9" * 40,
    b"\x00",
    b"\xff\xfe",
    b"tensor:",
    b"true",
    b",",
    b":",
)


def broken(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes taken out, put in, repeated, or other words in their place."""
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 1, 2, 8, 64, 1024)))
        match draw.randrange(6):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:at] + draw.randbytes(end - at) + data[at:]
            case 3:
                data = data[:at] + data[at:end] + data[at:]
            case 4:
                data = data[:at]
            case _:
                data = data[:at] + draw.choice(WORDS) + data[end:]
    return data


def fuzz(path: Path, read: Callable[[], object], inputs: int, seal: Callable[[], object] = lambda: None) -> None:
    """Whatever stands in a file, reading it ends, and either succeeds or refuses."""
    whole, draw, refused = path.read_bytes(), random.Random(path.name), 0
    for _ in range(inputs):
        path.write_bytes(broken(whole, draw))
        seal()
        try:
            read()
        except InputError as refusal:
            assert "\n" not in str(refusal)[:80]
            refused += 1
    path.write_bytes(whole)
    assert refused > inputs / 10


@pytest.fixture(autouse=True)
def memory_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the system takes a third of the time of reading a small checkpoint."""
    monkeypatch.setattr(checkpoint, "free_memory", lambda: 2**30)


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--inputs"))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.safetensors", "tensors.safetensors"])
def test_checkpoints(name: str, tmp_path: Path, inputs: int) -> None:
    """The manifest is made to fit, since a sum that does not is all that would be tested."""
    path = save(tmp_path, 5, state_of(1.0))

    def seal() -> None:
        sums = {file.name: checkpoint.sha256(file) for file in path.iterdir() if file.name != "manifest.json"}
        (path / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT, "sha256": sums}))

    fuzz(path / name, lambda: checkpoint.load(path), inputs, seal if name != "manifest.json" else lambda: None)


@pytest.mark.timeout(0)
def test_weights(tmp_path: Path, inputs: int) -> None:
    path = save(tmp_path, 5, state_of(1.0))
    fuzz(path / "weights.safetensors", lambda: checkpoint.load_weights(path), inputs)


@pytest.mark.timeout(0)
def test_pieces_of_replay(tmp_path: Path, inputs: int) -> None:
    files = ReplayFiles(tmp_path, Disk())
    state = files.save(filled(30), keep=True)
    first = min(tmp_path.iterdir())
    torch.set_num_threads(1)
    fuzz(first, lambda: files.load(Replay(80, 2, 4, GAME), state), inputs)


@pytest.mark.timeout(0)
def test_configs(tmp_path: Path, inputs: int) -> None:
    path = tmp_path / "config.json"
    path.write_bytes((Path(__file__).parent.parent.parent / "zoo" / "Bowling-ram-v0-ppo" / "config.json").read_bytes())
    fuzz(path, lambda: load_config(path), inputs)


@pytest.mark.timeout(0)
def test_metrics(tmp_path: Path, inputs: int) -> None:
    """What cannot be read ends them, and nothing is refused."""
    path, draw = tmp_path / "metrics.jsonl", random.Random(0)
    whole = "".join(json.dumps({"frames": at, "steps": at, "loss/policy": 0.5}) + "\n" for at in range(20)).encode()
    for _ in range(inputs):
        path.write_bytes(broken(whole, draw))
        assert all(isinstance(value, int | float) for row in metrics.read(path) for value in row.values())
