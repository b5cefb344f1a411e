"""Agents on a device that only says that it is one: much of what would fail on a GPU fails here, on any machine."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from agents.cuda_graphs import Graphed
from agents.registry import ALGORITHMS
from tests.agents.driving import GAMES, assert_holds_what_one_here_does, decide, draw_tape, learn, play_tape
from tests.agents.elsewhere import THERE, Elsewhere, device_elsewhere

KINDS = [
    ("pixels", "none", torch.float32),
    ("pixels", "none", torch.bfloat16),
    ("pixels", "lstm", torch.bfloat16),
    ("ram", "none", torch.bfloat16),
    ("vector", "gru", torch.float32),
]
BESIDE = {"extra_size": 6, "num_tokens": 4}


def assert_near(there, here, precision=torch.float32):
    """Weights of two devices; a first step is as long for a small gradient, in which rounding shows, as for a large one."""
    rounding = 1e-4 if precision == torch.float32 else 2e-3
    for name, weight in here.items():
        assert isinstance(there[name], Elsewhere)
        apart = (there[name].cpu() - weight.cpu()).abs()
        assert apart.max() < 2.5e-2, name
        assert (apart < rounding).float().mean() > 0.95, name


@pytest.mark.parametrize(("game", "memory", "precision"), KINDS)
@pytest.mark.parametrize(("algorithm", "lag"), [*((algorithm, 0) for algorithm in ALGORITHMS), ("ppo", 1)])
def test_what_is_learned_is_the_cpus(algorithm, lag, game, memory, precision):
    game = dataclasses.replace(GAMES[game], **(BESIDE if memory == "lstm" else {}))
    here, actions, rows = learn(algorithm, game, "cpu", precision, memory, rollouts=2, lag=lag)
    with device_elsewhere():
        there, its_actions, its_rows = learn(algorithm, game, THERE, precision, memory, rollouts=2, lag=lag)
        assert_near(there.state_dict()["weights"], here.state_dict()["weights"], precision)
    assert np.array_equal(actions, its_actions)
    for row, its_row in zip(rows, its_rows, strict=True):
        assert its_row == pytest.approx(row, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_goes_on_there_and_back_here(algorithm):
    here, _, _ = learn(algorithm, GAMES["vector"], "cpu")
    state = copy.deepcopy(here.state_dict())
    further = draw_tape(129, 4, shape=(5,), seed=1).rewind(2)  # DQN says what it lost once the run is over
    rows = play_tape(here, further)
    with device_elsewhere():
        there, _, _ = learn(algorithm, GAMES["vector"], THERE)
        own = {"generator": there.state_dict()["generator"]}  # of its own device; as many numbers were drawn
        there.load_state_dict({**state, **own})
        assert play_tape(there, further) == [pytest.approx(row, rel=1e-2, abs=1e-3) for row in rows]
        assert_near(there.state_dict()["weights"], here.state_dict()["weights"])
        here.load_state_dict({**there.state_dict(), "generator": here.state_dict()["generator"]})
    updates = here.updates
    play_tape(here, further)
    assert here.updates > updates


def test_a_replay_there_holds_what_one_here_does():
    with device_elsewhere():
        assert_holds_what_one_here_does(learn("dqn", GAMES["pixels"], THERE)[0].replay, GAMES["pixels"])


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_player_thinks_there_what_it_thinks_here(algorithm, game):
    agent, _, _ = learn(algorithm, GAMES[game], "cpu")
    row = ALGORITHMS[algorithm]
    step = draw_tape(1, 4, shape=GAMES[game].observation_shape, dtype=GAMES[game].observation_dtype).at(0)

    def decision(device):
        weights = {name: weight.clone() for name, weight in agent.state_dict()["weights"].items()}
        return decide(row.player(agent.config, GAMES[game], weights, torch.device(device), 4, row.policies[0]), step)

    here = decision("cpu")
    with device_elsewhere():
        there = decision(THERE)
    for left, right in zip(here, there, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("game", ["pixels", "ram"])
def test_a_replay_that_does_not_fit_there_is_learned_from_alike(game, monkeypatch):
    with device_elsewhere():
        there, actions, _ = learn("dqn", GAMES[game], THERE, rollouts=3)
        monkeypatch.setattr("agents.replay.fits_on", lambda *_: False)
        here, its_actions, _ = learn("dqn", GAMES[game], THERE, rollouts=3)
        assert_near(here.state_dict()["weights"], there.state_dict()["weights"])
    assert (there.replay.device.type, here.replay.device.type) == ("cuda", "cpu")
    assert np.array_equal(actions, its_actions)
    assert here.updates == there.updates > 1


@pytest.mark.parametrize("lag", [0, 1])
def test_ppo_does_not_wait_between_gradient_steps(lag):
    waited = []
    for settings in ({"epochs": 1}, {"epochs": 2, "minibatches": 2}):
        with device_elsewhere() as waits:
            learn("ppo", GAMES["ram"], THERE, rollouts=3, lag=lag, **settings)
        waited.append(sorted(waits))
    assert waited[0] == waited[1]
    assert waited[0].count("tolist") == 3 - lag  # for the metrics of an update
    turns = 2 * 3 * 16
    assert len(waited[0]) < 4 * turns  # for actions, and twice for what games show


def test_dqn_waits_once_for_updates_in_a_row():
    with device_elsewhere() as waits:
        agent, actions, _ = learn("dqn", GAMES["ram"], THERE, rollouts=3, update_steps=1)
    finite = waits.count("__bool__")  # whether the last one's loss is; a turn is two steps
    assert 0 < finite < 0.7 * agent.updates
    assert len(waits) - finite < 4 * 2 * len(actions)  # for actions, and twice for what games show


def test_the_learning_rate_stays_where_a_graph_reads_it():
    with device_elsewhere():
        agent, _, _ = learn("ppo", GAMES["ram"], THERE)
        rate = agent.optimizer._optimizers[0].lr
        assert isinstance(rate, Elsewhere)
        agent.optimizer.learning_rate = 0.25
        assert agent.optimizer._optimizers[0].lr is rate
        assert rate.item() == 0.25


def test_what_lies_on_two_devices_does_not_meet():
    with device_elsewhere():
        here, there = torch.ones(2), torch.ones(2, device=THERE)
        for mistake in (
            lambda: here + there,
            lambda: torch.stack([there, here]),
            lambda: here[there.long()],
            lambda: there.add_(here),
            lambda: torch._foreach_add_([there], [here]),
            lambda: torch.stack([there.sum(), torch.zeros(())]),
            lambda: torch.nn.functional.linear(there, torch.ones(3, 2)),
        ):
            with pytest.raises(RuntimeError, match="are on the CPU, others on cuda"):
                mistake()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            there.exponential_(generator=torch.Generator())
        for result in (there + 1, there + torch.tensor(1.0), there[here.long()], here.to(THERE), there.to("cpu").to("cuda")):
            assert result.device.type == THERE.type
        for result in (here + 1, there.cpu(), there.to("cpu"), there.to(here)):
            assert result.device.type == "cpu"
        moved = here.to(THERE)
        moved += 1
        there.copy_(here * 3)
        assert (here.tolist(), moved.tolist(), there.tolist()) == ([1, 1], [2, 2], [3, 3])


def test_a_graph_neither_waits_nor_draws():
    with device_elsewhere():
        x, generator = torch.ones(2, device=THERE), torch.Generator(THERE)
        assert Graphed(lambda x: {"double": 2 * x}, THERE)(x)["double"].tolist() == [2, 2]
        for mistake in (
            lambda x: {"sum": x * x.sum().item()},
            lambda x: {"sign": x if x.sum() > 0 else -x},
            lambda x: {"copy": x.cpu()},
            lambda x: {"copy": x.to("cpu")},
            lambda x: {"copy": x + torch.ones(2).to(THERE)},
            lambda x: {"copy": x + torch.tensor([1, 2], device=THERE)},
            lambda x: {"some": x[x > 0]},
            lambda x: {"draw": x.exponential_(generator=generator)},
            lambda x: {"draw": x + torch.rand(2, generator=generator, device=THERE)},
        ):
            with pytest.raises(RuntimeError, match="not while a graph is recorded"):
                Graphed(mistake, THERE)(x)
