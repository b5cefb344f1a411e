"""An update on several CPU cores: a batch is split, each part is one thread's, and the parts' gradients are added up.

    weights (float32) ──── refresh ────▶ a replica for each thread: shared weights in the run's precision, gradients of its own
      ▲                                    │ a part of the batch for each thread
      └── SharedOptimizer.step ◀── sum ────┘ a share of the rows of every weight for each thread

torch can split every single operation over the cores instead, but its threads then wait for each other hundreds of times an
update, spinning; as soon as another program wants a core, that takes ten times as long (`docs/log.md`). Here they meet thrice.
The sum is taken in a fixed order: the same parts give the same bits.
"""

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

SMALLEST = 64  # samples in a part; below that, splitting costs more than it saves
SMALLEST_OF_IMAGES = 16  # the same, where a sample is an image and takes longer

Metrics = dict[str, Tensor]
Work = Callable[[nn.Module, Tensor], Metrics]  # (network, indices of a part): call backward, return what to add up
_Result = TypeVar("_Result")


class Threads:
    """As many threads as share an update; 1 works without any."""

    def __init__(self, count: int) -> None:
        """Start them when they are first needed."""
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, "shard", initializer=lambda: torch.set_num_threads(1)) if count > 1 else None

    def run(self, work: Callable[..., _Result], *arguments: Iterable[Any]) -> list[_Result]:
        """What `work` returns for the first of each of the arguments, for the second, and so on, side by side."""
        first, *others = zip(*arguments, strict=True)
        if self._pool is None:
            return [work(*call) for call in (first, *others)]
        running = [self._pool.submit(work, *call) for call in others]
        return [work(*first), *(each.result() for each in running)]


class Shards:
    """The network as it computes: in the run's precision, and as often as there are threads."""

    def __init__(
        self, network: nn.Module, threads: Threads, precision: torch.dtype = torch.float32, *, images: bool = False
    ) -> None:
        """Compute with the weights of `network`; in bfloat16 with a copy, which `refresh` brings up to date."""
        self._whole, self._threads = network, threads
        self._smallest = SMALLEST_OF_IMAGES if images else SMALLEST
        self.network = network if precision == torch.float32 else _lowered(network, precision)
        """What to act with."""
        self._replicas = [self.network, *(copy.deepcopy(self.network) for _ in range(threads.count - 1))]
        for replica in self._replicas[1:]:
            for shared, own in zip(self.network.parameters(), replica.parameters(), strict=True):
                own.data = shared.data

    def refresh(self) -> None:
        """Take over the weights after they have changed."""
        pairs = zip(self._whole.parameters(), self.network.parameters(), strict=True)
        lowered = [(weight.detach(), own.detach()) for weight, own in pairs if own.dtype != weight.dtype]  # others are shared

        def copy_rows(share: int) -> None:
            for weight, own in lowered:
                _rows(own, share, self._threads.count).copy_(_rows(weight, share, self._threads.count))

        if lowered:
            self._threads.run(copy_rows, range(self._threads.count))

    def clip(self, longest: float) -> Tensor:
        """Shorten the gradient in the network to a length, as `nn.utils.clip_grad_norm_` does; returns how long it was."""
        gradients = [_gradient(weight) for weight in self._whole.parameters()]

        def length(share: int) -> Tensor:
            return nn.utils.get_total_norm([_rows(gradient, share, self._threads.count) for gradient in gradients])

        def shorten(share: int) -> None:
            for gradient in gradients:
                _rows(gradient, share, self._threads.count).mul_(factor)

        norm: Tensor = torch.stack(self._threads.run(length, range(self._threads.count))).norm()
        factor = (longest / (norm + 1e-6)).clamp(max=1)
        self._threads.run(shorten, range(self._threads.count))
        return norm

    def gradients(self, work: Work, indices: Tensor, samples: int = 1) -> Metrics:
        """Leave the gradient of a whole batch in the network; (B,) indices are split between the threads.

        Args:
            work: Adds its part's share of the gradient to the network it is given, and returns its share of each metric.
            indices: What the batch is made of.
            samples: How many samples stand behind each index.

        Returns:
            The sums of the metrics.
        """
        parts = indices.chunk(max(1, min(len(self._replicas), len(indices) * samples // self._smallest)))
        replicas = self._replicas[: len(parts)]
        for replica in replicas:
            replica.zero_grad(set_to_none=True)
        results = self._threads.run(work, replicas, parts) if len(parts) > 1 else [work(self.network, indices)]
        self._add_up(replicas)
        return {name: torch.stack([metrics[name] for metrics in results]).sum() for name in results[0]}

    def _add_up(self, replicas: list[nn.Module]) -> None:
        """Sum up the replicas' gradients in the whole network, whose own they are where it is the first replica."""
        own = self.network is self._whole
        if own and len(replicas) == 1:
            return
        weights = list(self._whole.parameters())
        terms = list(zip(*(replica.parameters() for replica in replicas), strict=True))
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.empty_like(weight)

        def add(share: int) -> None:
            for weight, (first, *others) in zip(weights, terms, strict=True):
                rows = _rows(_gradient(weight), share, self._threads.count)
                if not own:
                    rows.copy_(_rows(_gradient(first), share, self._threads.count))
                for other in others:
                    rows.add_(_rows(_gradient(other), share, self._threads.count))

        self._threads.run(add, range(self._threads.count))


class SharedOptimizer:
    """A torch optimiser that works on each number for itself, its step shared between threads.

    Its rows are views of the weights, which have to stay where they are in memory, and each of which has to have a gradient.
    """

    def __init__(
        self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], network: nn.Module, threads: Threads
    ) -> None:
        """`make` builds one over some parameters: it is called for each thread's share of the rows."""
        self._weights, self._threads = list(network.parameters()), threads
        shares = range(threads.count)
        self._rows = [[nn.Parameter(_rows(w.detach(), share, threads.count)) for w in self._weights] for share in shares]
        self._optimizers = [make(rows) for rows in self._rows]
        self._make_graphable()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The settings, once for each thread."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _make_graphable(self) -> None:
        """On CUDA, let a step be recorded: its size has to be where a graph finds it, in memory of the device."""
        for group in self.param_groups:
            if self._weights[0].is_cuda:
                group["lr"] = torch.tensor(float(group["lr"]), device=self._weights[0].device)
                group["capturable"] = True

    def step(self) -> None:
        """Step along the gradients of the network's weights."""

        def step(share: int) -> None:
            for weight, rows in zip(self._weights, self._rows[share], strict=True):
                rows.grad = _rows(_gradient(weight), share, self._threads.count)
            self._optimizers[share].step()

        self._threads.run(step, range(self._threads.count))

    def state_dict(self) -> dict[str, Any]:
        """As of one optimiser over the whole weights, whatever the number of threads."""
        states = [optimizer.state_dict() for optimizer in self._optimizers]

        def whole(index: int, name: str) -> Tensor:
            parts: list[Tensor] = [state["state"][index][name] for state in states]
            return torch.cat(parts) if parts[0].dim() else parts[0]

        moments = {index: {name: whole(index, name) for name in own} for index, own in states[0]["state"].items()}
        groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in states[0]["param_groups"]]
        return {"state": moments, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state; each share's moments are laid out in memory as its weights are.

        A fused optimiser walks weights and moments side by side in memory; a file holds no such layout, and a convolution's
        weights lie channels last here.
        """
        for share, (optimizer, rows) in enumerate(zip(self._optimizers, self._rows, strict=True)):
            moments = {
                index: {name: _share_of(value, share, self._threads.count, rows[index]) for name, value in whole.items()}
                for index, whole in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": moments})
            for weights, restored in optimizer.state.items():
                for name, moment in restored.items():
                    if moment.shape == weights.shape:
                        restored[name] = torch.empty_like(weights).copy_(moment)
        self._make_graphable()


def set_learning_rate(optimizer: SharedOptimizer, rate: float) -> None:
    """Step as far from now on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _share_of(moment: Tensor, share: int, count: int, rows: Tensor) -> Tensor:
    if not moment.dim():
        return moment.clone()
    part = _rows(moment, share, count)
    if part.shape != rows.shape:
        raise ValueError(f"the optimiser's state is of weights {tuple(moment.shape)}")
    return part


def _rows(tensor: Tensor, share: int, count: int) -> Tensor:
    """One of `count` shares of a tensor's rows; none of them where there are fewer than shares."""
    rows = len(tensor)
    return tensor[rows * share // count : rows * (share + 1) // count]


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None, "a weight that no output depends on"
    return weight.grad


def _lowered(network: nn.Module, precision: torch.dtype) -> nn.Module:
    """A copy that holds in `precision` what autocast computes in it; other weights are shared."""
    low = copy.deepcopy(network)
    for module in low.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)
    for weight, own in zip(network.parameters(), low.parameters(), strict=True):
        if own.dtype == weight.dtype:
            own.data = weight.data
    return low
