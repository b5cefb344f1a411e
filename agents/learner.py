"""Updates beside playing: in a stream of its own on a GPU, in a thread of its own elsewhere."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.agent import BrokenOff
from agents.cuda_graphs import cuda_stream


class Update(NamedTuple):
    """What an update leaves behind."""

    names: list[str]
    values: Tensor  # of its metrics, in the order of their names
    batch: dict[str, Any]  # tensors that it learned from, where they are still there


class Learner:
    """Makes updates, at once or beside what is done meanwhile."""

    def __init__(self, device: torch.device, *, beside: bool) -> None:
        """Start the thread when it is first needed."""
        self._stream = cuda_stream(device) if beside else None
        threaded = beside and self._stream is None
        self._pool = ThreadPoolExecutor(1, "learner", initializer=lambda: torch.set_num_threads(1)) if threaded else None

    def run(self, update: Callable[[], Update]) -> Future[Update]:
        """Begin an update; on a GPU all of it is on its way when this returns, without either it has been made."""
        if self._pool is not None:
            return self._pool.submit(update)
        future: Future[Update] = Future()
        try:
            future.set_result(self._in_stream(update))
        except BrokenOff as broken:
            future.set_exception(broken)
        return future

    def _in_stream(self, update: Callable[[], Update]) -> Update:
        if self._stream is None:
            return update()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return update()

    def result(self, future: Future[Update]) -> Update:
        """Wait for an update; what reads the weights from now on does so behind it.

        Raises:
            BrokenOff: it was broken off.
        """
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        return future.result()


def finished(metrics: dict[str, float]) -> Future[Update]:
    """An update that was made before, of which its metrics are left."""
    future: Future[Update] = Future()
    future.set_result(Update([*metrics], torch.tensor([*metrics.values()]), {}))
    return future
