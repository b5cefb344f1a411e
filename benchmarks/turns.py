"""Rates of several works on a machine whose speed changes from one second to the next: they take turns within a round."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

WARM_UP = 0.25  # share of the seconds
TURNS = 10  # of each part

Work = Callable[[], int]  # makes some steps, or learns from some samples, and returns how many


class Part(NamedTuple):
    """Something that is measured."""

    work: Work
    seconds: float
    """Of it in a round."""
    begin: Callable[[], object] | None = None
    """Before each of its turns."""
    end: Callable[[], object] | None = None
    """Behind each, so that nothing of it runs beside another's."""


def take_turns(parts: Mapping[str, Part]) -> dict[str, float]:
    """Steps a second of each part, behind a warm-up."""
    for part in parts.values():
        _spend(part, WARM_UP * part.seconds)
    steps, spent = dict.fromkeys(parts, 0), dict.fromkeys(parts, 0.0)
    for turn in range(1, TURNS + 1):
        for name, part in parts.items():
            made, seconds = _spend(part, part.seconds * turn / TURNS - spent[name])
            steps[name] += made
            spent[name] += seconds
    return {name: steps[name] / spent[name] for name in parts}


def _spend(part: Part, seconds: float) -> tuple[int, float]:
    """Let a part work for so many seconds and to the end of what it has begun; its steps and the seconds they took."""
    if seconds <= 0:
        return 0, 0.0
    if part.begin:
        part.begin()
    start, steps, spent = time.perf_counter(), 0, 0.0
    while spent < seconds:
        steps += part.work()
        spent = time.perf_counter() - start
    if part.end:
        part.end()
    return steps, spent


def rate(part: Part) -> float:
    """Steps a second of one."""
    return take_turns({"": part})[""]
