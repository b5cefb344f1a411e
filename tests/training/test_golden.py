"""A checkpoint of every format that was ever written is read for ever: it acts as it did, and its run goes on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from evaluation import subjects
from tests.agents.driving import decide, look
from training import checkpoint, start
from training.loop import Run

GOLDEN = Path(__file__).parent.parent / "golden"
FORMATS = sorted(path.name for path in GOLDEN.iterdir() if path.name.isdecimal())


def test_there_is_one_of_every_format() -> None:
    assert [str(number) for number in checkpoint.READABLE] == FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_it_acts_as_it_did_and_goes_on(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / "run")
    expected = load_file(tmp_path / "run" / "expected.safetensors")
    (subject,) = subjects.find(str(tmp_path / "run"), policy="greedy", device="cpu")
    with start.old_run(tmp_path / "run") as run:
        assert isinstance(run, Run)
        assert run.envs.strays == []
        player = subject.make_player(run.envs.description, len(expected["seen"]))
        before = run.agent.frames
        run.train(lambda row: None)
        assert run.agent.frames > before
    thoughts = decide(player, look(expected["seen"].numpy()))
    assert (thoughts.probabilities.argmax(-1) == expected["probabilities"].numpy().argmax(-1)).all()
    np.testing.assert_allclose(thoughts.probabilities, expected["probabilities"].numpy(), atol=1e-5)
    np.testing.assert_allclose(thoughts.values, expected["values"].numpy(), rtol=1e-4, atol=1e-5)
