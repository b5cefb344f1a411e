"""Agents on a CUDA device: the same as on the CPU, up to rounding."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from agents.agent import Setting
from agents.networks import ActorCritic, Inputs
from agents.registry import ALGORITHMS
from tests.agents.driving import configure, decide, describe, draw_tape, inputs_of, play_tape, split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
GAMES = {"pixels": describe((1, 40, 40), "uint8"), "ram": describe((16,), "uint8"), "vector": describe((5,))}
SETTINGS = {
    "num_envs": 4,
    "rollout_steps": 16,
    "frame_stack": 2,
    "learning_rate": 1e-3,
    "minibatches": 1,
    "epochs": 1,
    "batch_size": 16,
    "update_steps": 16,
}


def learn(algorithm, game, device, precision=torch.float32, memory="none"):
    """One rollout's worth of a run; returns the agent, its actions and the metrics."""
    setting = Setting(
        game=game,
        num_envs=4,
        groups=split(4, 2),
        total_frames=400,
        seed=1,
        device=torch.device(device),
        precision=precision,
        learn_threads=1,
    )
    agent = ALGORITHMS[algorithm].build(configure(algorithm, **SETTINGS, memory=memory), setting)
    kind = {"shape": game.observation_shape, "dtype": game.observation_dtype, "extra": game.extra_size}
    tape = draw_tape(17, 4, **kind).rewind(2)
    rows = play_tape(agent, tape)
    assert agent.updates > 0
    return agent, tape.actions[:16], rows


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_is_the_cpus(algorithm, game, monkeypatch):
    """Generators of two devices draw different numbers; the likeliest action is the same on both."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda waits, **_: waits.fill_(1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    (cpu, actions, rows), (gpu, gpu_actions, gpu_rows) = (learn(algorithm, GAMES[game], device) for device in ("cpu", "cuda"))
    assert np.array_equal(actions, gpu_actions)
    assert cpu.updates == gpu.updates
    for row, gpu_row in zip(rows, gpu_rows, strict=True):
        assert gpu_row == pytest.approx(row, rel=1e-2, abs=1e-3)
    weights, gpu_weights = (agent.state_dict()["weights"] for agent in (cpu, gpu))
    for name, weight in weights.items():
        assert gpu_weights[name].device.type == "cuda"
        assert gpu_weights[name].shape == weight.shape
        # Adam's and RMSprop's first steps are as long for small gradients, in which rounding shows, as for large ones.
        torch.testing.assert_close(gpu_weights[name].cpu(), weight, atol=2.5e-2, rtol=0)
        near = (gpu_weights[name].cpu() - weight).abs() < 1e-5
        assert near.float().mean() > 0.95, name


@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learns_and_plays(algorithm, precision, memory):
    game = dataclasses.replace(GAMES["pixels"], extra_size=6, num_tokens=4)
    agent, actions, rows = learn(algorithm, game, "cuda", precision, memory)
    assert actions.dtype == np.int64
    assert set(actions.flatten().tolist()) <= set(range(4))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    state = agent.state_dict()
    assert all(weight.isfinite().all() for weight in state["weights"].values())
    row = ALGORITHMS[algorithm]
    player = row.player(agent.config, game, state["weights"], torch.device("cuda"), 4, row.policies[0])
    decision = decide(player, draw_tape(1, 4, shape=game.observation_shape, dtype="uint8", extra=6).at(0))
    assert decision.probabilities.sum(1) == pytest.approx(np.ones(4), abs=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_state_goes_from_device_to_device(algorithm):
    gpu, _, _ = learn(algorithm, GAMES["vector"], "cuda")
    cpu, _, _ = learn(algorithm, GAMES["vector"], "cpu")
    with_generator = {"generator": cpu.state_dict()["generator"]}  # a generator's state is its own device's
    cpu.load_state_dict({**gpu.state_dict(), **with_generator})
    for name, weight in gpu.state_dict()["weights"].items():
        assert torch.equal(cpu.state_dict()["weights"][name], weight.cpu())
    play_tape(cpu, draw_tape(17, 4, shape=(5,)).rewind(2))


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_memory_is_not_rounded(memory):
    torch.manual_seed(0)
    network = ActorCritic(GAMES["vector"], 1, "auto", memory).cuda()
    inputs, _ = inputs_of(torch.randn(4, 1, 5))
    state = torch.randn(4, network.state_size, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        _, _, after = network(Inputs(*(part.cuda() for part in inputs)), state)
    assert after.dtype == torch.float32
    assert not torch.equal(after, after.bfloat16().float())
