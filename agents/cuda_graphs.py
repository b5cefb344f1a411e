"""A function of tensors whose kernels are launched at once: CUDA graphs.

A small network's kernels take less time than the CPU needs to launch them one by one. A graph is recorded once, and launched as
a whole from then on: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before one is recorded: libraries make their choices in them, and allocate

_Signature = tuple[tuple[torch.Size, torch.dtype], ...]
_Function = Callable[..., dict[str, Tensor]]


def cuda_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream | None:
    """A stream of its own; None on any device but CUDA."""
    if device.type != "cuda":
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority)  # type: ignore[no-untyped-call] # torch has no types for it
    return stream


class Graphed:
    """Does what a function does; on a CUDA device, from the fourth call with arguments of the same shapes on, as a graph.

    The function takes and returns tensors on the device. It has to do the same whatever they hold: no branch on their values,
    no wait for the device, no draw. What it uses beside them has to stay where it is in memory.
    """

    def __init__(self, function: _Function, device: torch.device, priority: int = 0) -> None:
        """Call `function` as it is on any device but CUDA; there, of lower `priority` goes first."""
        self._function = function
        self._stream = cuda_stream(device, priority)
        self._calls: Counter[_Signature] = Counter()
        self._graphs: dict[_Signature, _Graph] = {}

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor]:
        """What the function returns."""
        if self._stream is None:
            return self._function(*arguments)
        signature = tuple((argument.shape, argument.dtype) for argument in arguments)
        if self._calls[signature] < WARM_UP:
            self._calls[signature] += 1
            return self._in_stream(arguments, self._stream)
        if signature not in self._graphs:
            self._graphs[signature] = _Graph(self._function, arguments, self._stream)
        return self._graphs[signature](*arguments)

    def _in_stream(self, arguments: tuple[Tensor, ...], stream: torch.cuda.Stream) -> dict[str, Tensor]:
        """Call it in the stream in which it will be recorded."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self._function(*arguments)
        torch.cuda.current_stream().wait_stream(stream)
        return results


class _Graph:
    """A recording, with memory of its own for what goes in and comes out."""

    def __init__(self, function: _Function, arguments: tuple[Tensor, ...], stream: torch.cuda.Stream) -> None:
        self._arguments = [argument.clone(memory_format=torch.contiguous_format) for argument in arguments]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._results = function(*self._arguments)

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor]:
        for own, argument in zip(self._arguments, arguments, strict=True):
            own.copy_(argument)
        self._graph.replay()
        return {name: result.clone() for name, result in self._results.items()}
