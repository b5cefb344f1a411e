"""How the golden runs were made: `python tests/golden/make.py NAME` with the version whose format it is to keep.

tests/golden/NAME/config.json, metrics.jsonl, checkpoints/...        a run that was stopped half-way
tests/golden/NAME/expected.safetensors                               observations, and what its agent thinks of them
"""

import contextlib
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from agents.ppo import PPOConfig
from evaluation import subjects
from training import checkpoint, start
from training.config import RunConfig
from training.loop import Stopped

TOTAL = 1_000


def main(run_dir: Path) -> None:
    """Train on CartPole until half-way, and write down what the agent thinks of 64 observations."""
    from tests.agents.driving import decide, look

    agent = PPOConfig(num_envs=2, rollout_steps=25, minibatches=2)
    run = start.new_run("ppo", RunConfig("CartPole-v1", agent, total_frames=TOTAL, checkpoint_frames=250, run_dir=run_dir))
    watch = run.scores.watch

    def stop_half_way(*args: Any) -> None:
        watch(*args)
        if run.agent.frames >= TOTAL // 2:
            run._on_signal(signal.SIGTERM, None)

    with run, patch.object(run.scores, "watch", stop_half_way), contextlib.suppress(Stopped):  # called once a turn
        run.train(lambda row: None)
    seen = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    (subject,) = subjects.find(str(run_dir), policy="greedy", device="cpu")
    with start.old_run(run_dir) as again:
        player = subject.make_player(again.envs.description, len(seen))
    thoughts = decide(player, look(seen))
    tables = {"seen": seen, "probabilities": thoughts.probabilities, "values": thoughts.values}
    save_file({name: torch.tensor(table) for name, table in tables.items()}, run_dir / "expected.safetensors")
    for path in (run_dir / "tensorboard", *checkpoint.checkpoints(run_dir / "checkpoints")[:-1]):
        shutil.rmtree(path)
    (run_dir / "lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path("tests/golden") / sys.argv[1])
