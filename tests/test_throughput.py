"""How the benchmark shares time out, on a machine whose speed changes."""

import pytest

from benchmarks import throughput


class Machine:
    """A clock that goes on by what each work costs; it is twice as slow in every other `period`."""

    def __init__(self, period: float) -> None:
        self.now, self.period = 0.0, period

    def work(self, cost: float, steps: int):
        def work() -> int:
            slow = int(self.now / self.period) % 2
            self.now += cost * (1 + slow)
            return steps

        return work


def test_parts_get_the_seconds_they_were_promised_and_no_more_than_a_unit_beyond(monkeypatch):
    machine = Machine(period=1e9)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: machine.now)
    short, long = machine.work(0.01, steps=5), machine.work(1.7, steps=1024)
    assert throughput.by_turns({"short": (short, 1.0), "long": (long, 10.0)}) == pytest.approx(
        {"short": 500, "long": 1024 / 1.7}
    )
    warm_up = 0.25 + 3.4  # a quarter, in whole units
    assert machine.now == pytest.approx(warm_up + 1.0 + 10.2, abs=0.02)


def test_a_machine_that_is_slow_now_and_then_is_so_for_all_parts(monkeypatch):
    """Three seconds in a row of each would see other speeds: their ratio would be wrong by up to a half."""
    machine = Machine(period=2.3)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: machine.now)
    rates = throughput.by_turns({"one": (machine.work(0.01, 1), 3.0), "other": (machine.work(0.01, 1), 3.0)})
    assert rates["one"] / rates["other"] == pytest.approx(1, abs=0.1)
