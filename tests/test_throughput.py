"""How the benchmark shares time out, on a machine whose speed changes."""

from collections.abc import Callable

import pytest

from tests.test_docs import benchmark

throughput, turns = benchmark("throughput"), benchmark("turns")


class Machine:
    """A clock that goes on by what each work costs, twice as fast in every other period."""

    def __init__(self, period: float) -> None:
        self.now, self.period = 0.0, period

    def work(self, cost: float, steps: int) -> Callable[[], int]:
        def work() -> int:
            slow = int(self.now / self.period) % 2
            self.now += cost * (1 + slow)
            return steps

        return work


def test_parts_get_the_seconds_they_were_promised_and_no_more_than_a_unit_beyond(monkeypatch):
    machine = Machine(period=1e9)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: machine.now)
    short, long = turns.Part(machine.work(0.01, 5), 1.0), turns.Part(machine.work(1.7, 1024), 10.0)
    assert turns.take_turns({"short": short, "long": long}) == pytest.approx({"short": 500, "long": 1024 / 1.7})
    warm_up = 0.25 + 3.4  # a quarter, in whole units
    assert machine.now == pytest.approx(warm_up + 1.0 + 10.2, abs=0.02)


@pytest.mark.parametrize(("count", "ratio"), [(10, 1.0), (1, 0.74)])
def test_a_machine_that_is_slow_now_and_then_is_so_for_all_parts(count, ratio, monkeypatch):
    """Measured in one turn each they seem to differ."""
    machine = Machine(period=2.3)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: machine.now)
    monkeypatch.setattr(turns, "TURNS", count)
    parts = {name: turns.Part(machine.work(0.01, 1), 3.0) for name in ("one", "other")}
    rates = turns.take_turns(parts)
    assert rates["one"] / rates["other"] == pytest.approx(ratio, abs=0.05)


def test_games_are_under_way_at_both_ends_of_what_is_timed_and_nowhere_else(monkeypatch):
    """Else the first step of a turn would cost nothing, and the last would run beside another part."""
    bench = throughput.Bench(throughput.Case("ppo", "CartPole-v1", {"num_envs": 4}), throughput.Options())
    with bench.games() as envs:
        for group in range(len(envs.groups)):
            envs.recv(group)
        under_way = [0] * len(envs.groups)
        send, receive = envs.send, envs.recv

        def counted_send(actions, group):
            send(actions, group)
            under_way[group] += 1

        def counted_receive(group):
            receive(group)
            under_way[group] -= 1

        monkeypatch.setattr(envs, "send", counted_send)
        monkeypatch.setattr(envs, "recv", counted_receive)
        part = bench.player(envs, 0.1)
        for _ in range(2):
            part.begin()
            assert under_way == [1] * len(envs.groups)
            assert part.work() == 4
            assert under_way == [1] * len(envs.groups)
            part.end()
            assert under_way == [0] * len(envs.groups)
