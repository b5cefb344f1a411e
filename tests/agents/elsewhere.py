"""A second device on a machine that has none: tensors that say they are on a GPU, and are computed on the CPU.

As with CUDA, a calculation whose tensors lie on different devices is refused, and so is numpy over there. What a CUDA graph
cannot hold is refused where an agent would have one recorded: waiting for the device, and draws. Not seen are kernels, the
order between streams, and whether what a graph uses stays where it is in memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from agents import cuda_graphs

THERE, _HERE = torch.device("cuda"), torch.device("cpu")
# What takes tensors of either device; its result is where the first is
_COPIES = {Tensor.copy_, Tensor.to, Tensor.__setitem__, Tensor.__getitem__, torch._foreach_copy_}
_WAITS = {
    *(
        Tensor.item,
        Tensor.tolist,
        Tensor.__bool__,
        Tensor.__float__,
        Tensor.__int__,
        Tensor.__index__,
        Tensor.equal,
        torch.equal,
    ),
    *(Tensor.nonzero, torch.nonzero, Tensor.masked_select, torch.masked_select, Tensor.unique, torch.unique),
}
_waited: list[str] = []
_recording = False


class Elsewhere(Tensor):
    """A tensor that is there."""

    device = property(lambda self: torch.device("cuda", 0))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Elsewhere":
        """Another one there."""
        if id(self) not in memo:
            own = _there(self.detach().clone())
            memo[id(self)] = nn.Parameter(own, self.requires_grad) if isinstance(self, nn.Parameter) else own
        return memo[id(self)]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """A call that is given one."""
        return _call(function, arguments, named or {})


class _Calls(TorchFunctionMode):
    """Sees the calls that are given no such tensor too, as those that make the first one."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _call(function, arguments, named or {})


class _Generator(torch.Generator):
    """Knows for which device it is; a real one for a GPU would draw other numbers."""

    def __new__(cls, device: Any = _HERE) -> Self:
        self = super().__new__(cls)
        self.where = torch.device(device)
        return self


class _Stream:
    """Everything has been done when a call returns."""

    def wait_stream(self, other: Self) -> None:
        pass


@contextlib.contextmanager
def device_elsewhere() -> Iterator[list[str]]:
    """Inside, torch has the device `THERE`; gives the calls that waited for it, in their order."""
    global _waited
    changes: list[tuple[Any, str, Any]] = [
        (torch, "Generator", _Generator),
        (nn.Module, "to", _move),
        (torch.cuda, "mem_get_info", lambda device: (10**11, 10**11)),
        (torch.cuda, "current_stream", _Stream),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "Stream", lambda device, priority: _Stream()),
        (cuda_graphs.Graphed, "__call__", _record),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, changed in changes:
            stack.enter_context(mock.patch.object(owner, name, changed))
        stack.enter_context(_Calls())
        _waited = []
        yield _waited


def _record(graphed: cuda_graphs.Graphed, *arguments: Tensor) -> dict[str, Tensor]:
    """What an agent would have recorded; called as it is."""
    global _recording
    _recording = graphed._stream is not None
    try:
        return graphed._function(*arguments)
    finally:
        _recording = False


def _move(module: nn.Module, *wanted: Any) -> nn.Module:
    """`nn.Module.to`, which would leave a weight the class that it had."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            part.register_parameter(name, nn.Parameter(weight.detach().to(*wanted), weight.requires_grad))
        for name, table in part.named_buffers(recurse=False):
            setattr(part, name, table.to(*wanted))
    return module


def _call(function: Callable[..., Any], arguments: Any, named: Any) -> Any:
    given = [value for value in tree_iter((arguments, named)) if isinstance(value, Tensor)]
    away = [isinstance(value, Elsewhere) for value in given]
    with torch._C.DisableTorchFunctionSubclass():
        if function is Tensor.__deepcopy__:  # what was copied before is in its memo
            return function(*arguments, **named)
        wanted = _device_asked_for(function, arguments, named)
        if any(away) or wanted == THERE:
            _refuse(function, arguments, named, given, wanted)
        if wanted in (_HERE, THERE):
            return _moved(function, arguments, named, given, there=wanted == THERE)
        result = function(*arguments, **named)
        goes = away[0] if function in _COPIES else any(away)
        return tree_map(lambda value: _there(value) if isinstance(value, Tensor) else value, result) if goes else result


def _refuse(function: Callable[..., Any], arguments: Any, named: Any, given: list[Tensor], wanted: torch.device | None) -> None:
    """Refuse what torch refuses of tensors that are there."""
    name, generator = function.__name__, named.get("generator")
    if function in (Tensor.numpy, Tensor.__array__):
        raise TypeError(f"can't convert {THERE} device type tensor to numpy")
    if generator is not None and getattr(generator, "where", _HERE).type != THERE.type:
        raise RuntimeError(f"{name}: a generator of the CPU draws for {THERE}")
    waits = _waits(function, arguments, named, given, wanted)
    _waited.extend([name] * waits)
    if _recording and (waits or generator is not None):
        raise RuntimeError(f"{name}: not while a graph is recorded")
    alone = {id(value) for value in (*arguments, *named.values())}  # where a number without dimensions may be of the CPU
    here = [value.shape for value in given if not isinstance(value, Elsewhere) and (value.dim() or id(value) not in alone)]
    reads_here = function is Tensor.__getitem__ and not isinstance(arguments[0], Elsewhere)
    if here and len(here) < len(given) and (function not in _COPIES or reads_here):
        raise RuntimeError(f"{name}: tensors of shapes {here} are on the CPU, others on {THERE}")


def _waits(function: Callable[..., Any], arguments: Any, named: Any, given: list[Tensor], wanted: torch.device | None) -> bool:
    """Whether a call waits for the device: it tells the CPU something, copies between both, or makes as much as a mask says."""
    here = [not isinstance(value, Elsewhere) for value in given]
    if not given:
        copies = function in (torch.tensor, torch.as_tensor)  # of numbers of Python's
    elif wanted is not None:
        copies = here[0] == (wanted == THERE)
    else:
        copies = function in _COPIES and any(value.dim() and is_here for value, is_here in zip(given, here, strict=True))
    index = arguments[1] if function in (Tensor.__getitem__, Tensor.__setitem__) else ()
    masks = any(isinstance(part, Tensor) and part.dtype == torch.bool for part in tree_iter(index))
    return function in _WAITS or masks or (copies and not named.get("non_blocking"))


def _device_asked_for(function: Callable[..., Any], arguments: Any, named: Any) -> torch.device | None:
    if function is Tensor.cpu:
        return _HERE
    asked = [named.get("device"), *(arguments[1:] if function is Tensor.to else ())]
    devices = [value.device if isinstance(value, Tensor) else value for value in asked]
    device = next((torch.device(value) for value in devices if isinstance(value, torch.device | str)), None)
    return THERE if device is not None and device.type == THERE.type else device


def _moved(function: Callable[..., Any], arguments: Any, named: Any, given: list[Tensor], *, there: bool) -> Any:
    """What a call makes on a device, which is a copy where it comes from the other one."""

    def here(value: Any) -> Any:
        if isinstance(value, torch.device | str):
            return _HERE
        return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value

    result = function(*tree_map(here, arguments), **{name: here(value) for name, value in named.items()})
    if given and isinstance(given[0], Elsewhere) != there and result.data_ptr() == given[0].data_ptr():
        result = result.clone()
    return _there(result) if there else result


def _there(tensor: Tensor) -> Elsewhere:
    return tensor if isinstance(tensor, Elsewhere) else tensor.as_subclass(Elsewhere)
