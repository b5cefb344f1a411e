"""When a rollout is learned from: at its end, or with a lag while the next one is played.

    lag 0    play 0 ── learn 0 ── play 1 ── learn 1 ── play 2
    lag 1    play 0 ┬─ play 1 ──┬─ play 2 ──┬─ play 3           plays with a copy of the weights, taken where the lines meet
                    └─ learn 0 ─┴─ learn 1 ─┴─ learn 2          learns from a copy of the rollout

What is learned from does not depend on how long anything takes.
"""

import copy
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agents.agent import BrokenOff, NonFiniteError
from agents.cuda_graphs import cuda_stream
from agents.rollout import Rollout


class Update(NamedTuple):
    """What an update leaves behind."""

    names: list[str]
    values: Tensor  # of its metrics, in the order of their names
    batch: dict[str, Any]  # tensors that it learned from, where they are still there


class Learner:
    """Makes an update of each rollout, and knows what plays meanwhile and what is learned from."""

    def __init__(
        self, update: Callable[[float], Update], network: nn.Module, rollout: Rollout, past: Rollout, device: torch.device
    ) -> None:
        """Learn from `past` by `update`, which takes a learning rate and changes `network`.

        Where `past` is not the `rollout` that is filled, it is learned from with a lag.
        """
        self.lag = past is not rollout
        self.actor = copy.deepcopy(network) if self.lag else network
        """What plays."""
        self.past = past
        """What is learned from."""
        self.updates = 0
        """Updates whose metrics are known."""
        self._update, self._network, self._rollout = update, network, rollout
        self._background = _Background(device) if self.lag else None
        self._taken = False  # whether `past` is the rollout that has just been filled
        self._running: Future[Update] | None = None  # an update that has begun, and whose metrics have not been returned
        self._rate = 0.0  # of that update
        self._waits = False  # `past` is to be learned from: its update was broken off

    def learn(self, rate: float, *, last: bool) -> dict[str, float] | None:
        """Learn from the rollout that is full now; called again where that was broken off.

        Args:
            rate: Learning rate of its update.
            last: Nothing will be played any more, and the update is waited for.

        Returns:
            Metrics; with a lag of the update before, and of the last one in place of that before it.

        Raises:
            BrokenOff: an update was broken off.
            NonFiniteError: one of the metrics is not finite.
        """
        metrics = None
        if self.lag and not self._taken:
            metrics = self._end() if self._running or self._waits else None
            self._take()
        self._rate = rate
        self._begin()
        if not self.lag or last:
            metrics = self._end()
        self._taken = False
        return metrics

    def _take(self) -> None:
        """Play with what has been learned by now, and learn from what was played by now."""
        self.actor.load_state_dict(self._network.state_dict())
        self.past.copy_(self._rollout)
        self._taken = True

    def _begin(self) -> None:
        self._waits = False
        self.past.upload()
        if self._background is not None:
            self._running = self._background.run(self._update, self._rate)
        else:
            self._running = _at_once(self._update, self._rate)

    def _end(self) -> dict[str, float]:
        """Wait for an update, which begins here where it was broken off before; returns its metrics."""
        if self._waits:
            self._begin()
        update = self._wait()
        if update is None:
            raise BrokenOff
        metrics = {**self._metrics_of(update), "learning_rate": self._rate}
        self._running = None
        self.updates += 1
        return metrics

    def _wait(self) -> Update | None:
        """Wait for the update that was begun; None where there is none, or it was broken off and waits to be made again."""
        if self._running is None:
            return None
        if self._background is not None:
            self._background.join()
        try:
            return self._running.result()
        except BrokenOff:
            self._running, self._waits = None, True
            return None

    def _metrics_of(self, update: Update) -> dict[str, float]:
        values = update.values.tolist()  # one wait for the device, not one a metric
        metrics = dict(zip(update.names, values, strict=True))
        if wrong := [name for name, value in metrics.items() if not math.isfinite(value)]:
            what = f"{', '.join(wrong)} of update {self.updates + 1}"
            raise NonFiniteError(what, {**self.past.tables, **update.batch})
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """With a lag: what plays, and what stands between a rollout and the next update, which is waited for."""
        update = self._wait()
        metrics = self._metrics_of(update) if update else {}
        return {
            "actor": self.actor.state_dict(),
            "rate": self._rate,
            "taken": self._taken,
            "waits": self._waits,
            "past": self.past.state_dict(self.past.steps) if self._waits else {},
            "metrics": metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state."""
        self.actor.load_state_dict(state["actor"])
        self._rate, self._taken, self._waits = state["rate"], state["taken"], state["waits"]
        if self._waits:
            self.past.load_state_dict(state["past"])
        if metrics := state["metrics"]:
            self._running = _at_once(lambda _: Update([*metrics], torch.tensor([*metrics.values()]), {}), self._rate)


class _Background:
    """Makes updates beside what is done meanwhile: in a stream of its own on a GPU, in a thread of its own elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._stream = cuda_stream(device)
        self._pool = None  # whose thread starts when it is first needed
        if self._stream is None:
            self._pool = ThreadPoolExecutor(1, "learner", initializer=lambda: torch.set_num_threads(1))

    def run(self, update: Callable[[float], Update], rate: float) -> Future[Update]:
        """Begin an update; on a GPU all of it is on its way when this returns."""
        if self._pool is not None:
            return self._pool.submit(update, rate)
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return _at_once(update, rate)

    def join(self) -> None:
        """On a GPU, let what reads the weights from now on do so after what was begun."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)


def _at_once(update: Callable[[float], Update], rate: float) -> Future[Update]:
    """Make an update, which may be broken off."""
    future: Future[Update] = Future()
    try:
        future.set_result(update(rate))
    except BrokenOff as broken:
        future.set_exception(broken)
    return future
