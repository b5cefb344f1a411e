from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest

from envs.contract import TimeStep
from training.loop import Turns
from training.metrics import Clock


class Named(NamedTuple):
    """A step that says of which group it is."""

    observation: Any
    extra: Any
    reward: Any
    terminated: Any
    truncated: Any
    is_first: Any
    life_lost: Any
    frames: Any
    group: int


class Tape:
    """Environments and an agent that write down what is asked of them; the agent holds at the end of every third round."""

    def __init__(self, groups: int) -> None:
        self.log: list[str] = []
        self.groups = tuple(slice(group, group + 1) for group in range(groups))
        self._observed = 0

    def recv(self, group: int) -> Any:
        self.log.append(f"recv {group}")
        return self.seen(group)

    def seen(self, group: int) -> Any:
        return Named(*[np.zeros(1)] * 8, group)

    def send(self, actions: Any, group: int) -> None:
        self.log.append(f"send {group} {actions}")

    def observe(self, timestep: Any, slots: slice) -> None:
        self.log.append(f"observe {slots.start}")
        self._observed += 1

    def learn(self) -> dict[str, float] | None:
        return {"loss/total": 1.0} if self._observed % (3 * len(self.groups)) == 0 else None

    def act(self, timestep: Any, slots: slice) -> str:
        self.log.append(f"act {slots.start}")
        return f"for {timestep.group}"

    @property
    def holds(self) -> bool:
        return self._observed % (3 * len(self.groups)) > 2 * len(self.groups)


def test_groups_take_turns_and_wait_for_each_other_when_the_agent_holds() -> None:
    tape: Any = Tape(groups=2)  # speaks in strings where arrays would pass
    list(islice(Turns(tape, tape, Clock()), 7))
    turn = "recv {0}, observe {0}, act {0}, send {0} for {0}"
    assert tape.log == ", ".join(
        [
            *(turn.format(group) for group in (0, 1, 0, 1)),
            "recv 0, observe 0",  # the rollout is full for group 0, and not yet for group 1
            "recv 1, observe 1",  # here the agent learns
            "act 0, send 0 for 0, act 1, send 1 for 1",
            "recv 0, observe 0",
        ]
    ).split(", ")


def test_one_group_is_a_plain_loop() -> None:
    tape: Any = Tape(groups=1)
    list(islice(Turns(tape, tape, Clock()), 3))
    assert tape.log[:8] == ["recv 0", "observe 0", "act 0", "send 0 for 0"] * 2


def test_code_moves_behind_an_update_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tape: Any = Tape(groups=2)
    turns = Turns(tape, tape, Clock())
    monkeypatch.setattr(turns.pages, "look", lambda: tape.log.append("look"))
    list(islice(turns, 7))
    assert tape.log.count("look") == 1
    assert tape.log[tape.log.index("look") - 2 :][:4] == ["recv 1", "observe 1", "look", "act 0"]


def test_the_clock_knows_shares_and_frames() -> None:
    clock = Clock()
    with clock.measure("forward"):
        sum(range(100_000))
    lap = clock.lap(1_000)
    assert 0 < lap["time/forward"] <= 1
    assert lap["speed/frames_per_second"] > 0
    assert set(clock.lap(1_000)) == {"speed/frames_per_second"}


def test_a_timestep_names_every_field_of_the_contract() -> None:
    assert TimeStep._fields == ("observation", "extra", "reward", "terminated", "truncated", "is_first", "life_lost", "frames")
    with pytest.raises(TypeError):
        TimeStep(np.zeros(1))  # type: ignore[call-arg] # that is what is tested
