"""Agents on a CUDA device: the same as on the CPU, up to rounding."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from agents import cuda_graphs
from agents.networks import ActorCritic, Inputs, lowered
from agents.registry import ALGORITHMS
from tests.agents.driving import GAMES, assert_holds_what_one_here_does, decide, draw_tape, inputs_of, learn, play_tape, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


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
    decision = decide(player, draw_tape(1, 4, shape=game.observation_shape, dtype="uint8", extra=6, tokens=4).at(0))
    assert decision.probabilities.sum(1) == pytest.approx(np.ones(4), abs=1e-5)


@pytest.mark.parametrize(("game", "memory"), [("pixels", "none"), ("ram", "none"), ("vector", "lstm")])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("algorithm", "lag"), [("a2c", 0), ("dqn", 0), ("ppo", 0), ("ppo", 1)])
def test_graphs_do_what_they_were_recorded_from(algorithm, lag, precision, game, memory, monkeypatch):
    """Nine rollouts, of which the first three are never a graph's: the same actions, rows and weights, bit for bit."""
    torch.use_deterministic_algorithms(True)
    try:
        graphed = learn(algorithm, GAMES[game], "cuda", precision, memory, rollouts=9, lag=lag)
        monkeypatch.setattr(cuda_graphs, "WARM_UP", 10**9)
        plain = learn(algorithm, GAMES[game], "cuda", precision, memory, rollouts=9, lag=lag)
    finally:
        torch.use_deterministic_algorithms(False)
    assert graphed[0]._graphed_step._graphs
    assert graphed[0]._choose._graphs
    assert not plain[0]._graphed_step._graphs
    assert np.array_equal(graphed[1], plain[1])
    assert graphed[2] == plain[2]
    assert same(graphed[0].state_dict(), plain[0].state_dict())


def test_a_graph_takes_arguments_and_keeps_no_result():
    graphed = cuda_graphs.Graphed(lambda x, y: {"sum": x + y, "product": x * y}, torch.device("cuda"))
    results = []
    for number in range(6):
        x, y = torch.full((2, 3), number, device="cuda").T, torch.full((3, 2), 2, device="cuda")
        results.append(graphed(x, y))
    assert graphed._graphs
    assert [result["sum"][0, 0].item() for result in results] == [2, 3, 4, 5, 6, 7]
    assert [result["product"][2, 1].item() for result in results] == [0, 2, 4, 6, 8, 10]
    assert graphed(*torch.ones((2, 5), device="cuda"))["sum"].tolist() == [2] * 5  # other shapes, called as it is


def test_replay_holds_pictures_on_the_device():
    agent, _, _ = learn("dqn", GAMES["pixels"], "cuda")
    assert agent.replay.frames.device.type == "cuda"
    assert_holds_what_one_here_does(agent.replay, GAMES["pixels"])


@pytest.mark.parametrize("game", ["pixels", "ram"])
def test_a_replay_that_does_not_fit_on_the_device_is_learned_from_alike(game, monkeypatch):
    there, actions, rows = learn("dqn", GAMES[game], "cuda", rollouts=3)
    monkeypatch.setattr("agents.replay.fits_on", lambda *_: False)
    here, its_actions, its_rows = learn("dqn", GAMES[game], "cuda", rollouts=3)
    assert (there.replay.device.type, here.replay.device.type) == ("cuda", "cpu")
    assert here._graphed_step._graphs
    assert np.array_equal(actions, its_actions)
    for row, its_row in zip(rows, its_rows, strict=True):
        assert its_row == pytest.approx(row, rel=1e-4, abs=1e-5)


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
    network = lowered(ActorCritic(GAMES["vector"], 1, "auto", memory).cuda(), torch.bfloat16)
    inputs, _ = inputs_of(torch.randn(4, 1, 5))
    state = torch.randn(4, network.state_size, device="cuda")
    _, _, after = network(Inputs(*(part.cuda() for part in inputs)), state)
    assert after.dtype == torch.float32
    assert not torch.equal(after, after.bfloat16().float())
