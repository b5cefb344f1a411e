"""An update on several CPU cores: a batch is split, each part is one thread's, and the parts' gradients are added up.

    weights (float32) ──── refresh ────▶ a replica for each thread: shared weights in the run's precision, gradients of its own
      ▲                                    │ a part of the batch for each thread
      └── SharedOptimizer.step ◀── sum ────┘ a share of the rows of every weight for each thread

torch can split every single operation over the cores instead, but its threads then wait for each other hundreds of times an
update, spinning; as soon as another program wants a core, that takes ten times as long (`docs/log.md`). Here they meet five
times, and once more for weights in bfloat16. A part can be begun before the others are there.
The sum is taken in a fixed order: the same parts give the same bits.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from agents.dense import Dense, write_gradient
from agents.networks import lowered

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
        self._tensors: list[Tensor] = []
        self._shares: list[list[Tensor]] = []  # of their rows

    def run(self, work: Callable[..., _Result], *arguments: Iterable[Any]) -> list[_Result]:
        """What `work` returns for the first of each of the arguments, for the second, and so on, side by side."""
        first, *others = zip(*arguments, strict=True)
        if self._pool is None:
            return [work(*call) for call in (first, *others)]
        running = [self._pool.submit(work, *call) for call in others]
        return [work(*first), *(each.result() for each in running)]

    def submit(self, work: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """Let another thread work beside the caller; there has to be one."""
        assert self._pool is not None
        return self._pool.submit(work, *arguments)

    def shares(self, tensors: Iterable[Tensor]) -> list[list[Tensor]]:
        """Each thread's share of the rows of some tensors, as views; empty where there are fewer rows than threads.

        Of the same tensors as the last time they are the same views: to make one takes as long as a sum of a few numbers.
        """
        given = [*tensors]
        if [*map(id, given)] != [*map(id, self._tensors)]:
            self._tensors, self._shares = given, _shares(given, self.count)
        return self._shares


class Shards:
    """The network as it computes: in the run's precision, and as often as there are threads."""

    def __init__(
        self, network: nn.Module, threads: Threads, precision: torch.dtype = torch.float32, *, images: bool = False
    ) -> None:
        """Compute with the weights of `network`; in bfloat16 with a copy, which `refresh` brings up to date.

        The weights have to stay where they are in memory.
        """
        self._whole, self._threads = network, threads
        self._smallest = SMALLEST_OF_IMAGES if images else SMALLEST
        self.network = network if precision == torch.float32 else lowered(network, precision)
        """What to act with."""
        self._replicas = [self.network, *(copy.deepcopy(self.network) for _ in range(threads.count - 1))]
        for replica in self._replicas[1:]:
            for shared, own in zip(self.network.parameters(), replica.parameters(), strict=True):
                own.data = shared.data
        self._dense = [_dense_layers(replica) for replica in self._replicas]
        self._begun: list[tuple[Tensor, Future[Metrics]]] = []  # parts of the next batch
        pairs = zip(network.parameters(), self.network.parameters(), strict=True)
        copies = [(weight.detach(), own.detach()) for weight, own in pairs if own.dtype != weight.dtype]  # others are shared
        self._copies = [_shares(tensors, threads.count) for tensors in zip(*copies, strict=True)]

    def refresh(self) -> None:
        """Take over the weights after they have changed."""
        if self._copies:

            def copy_rows(weights: list[Tensor], own: list[Tensor]) -> None:
                for weight, low in zip(weights, own, strict=True):
                    low.copy_(weight)

            self._threads.run(copy_rows, *self._copies)

    def clip(self, longest: float, scale: Tensor | float = 1.0) -> Tensor:
        """Multiply the gradient in the network by `scale`, and shorten what comes out as `nn.utils.clip_grad_norm_` does.

        Returns:
            How long it was before it was shortened.
        """
        gradients = self._threads.shares(map(_gradient, self._whole.parameters()))

        def shorten(rows: list[Tensor]) -> None:
            for gradient in rows:
                gradient.mul_(factor)

        norm: Tensor = torch.stack(self._threads.run(nn.utils.get_total_norm, gradients)).norm() * scale
        factor = (longest / (norm + 1e-6)).clamp(max=1) * scale
        self._threads.run(shorten, gradients)
        return norm

    def gradients(self, work: Work, indices: Tensor, samples: int = 1) -> Metrics:
        """Leave the gradient of a whole batch in the network; (B,) indices are split between the threads.

        Args:
            work: Adds its part's share of the gradient to the network it is given, and returns its share of each metric. Parts
                that threads have begun with are only waited for.
            indices: What the batch is made of.
            samples: How many samples stand behind each index.

        Returns:
            The sums of the metrics.
        """
        parts, begun = self.parts(indices, samples), self.begun
        assert all(torch.equal(one, other) for (one, _), other in zip(self._begun, parts, strict=False))
        try:
            rest = [self._emptied(number, collect=len(parts) > 1) for number in range(begun, len(parts))]
            made = self._threads.run(work, rest, parts[begun:])
            results = [*(each.result() for _, each in self._begun), *made]
            self._add_up(self._replicas[: len(parts)])
        finally:
            self.forget()
        return {name: torch.stack([metrics[name] for metrics in results]).sum() for name in results[0]}

    def parts(self, indices: Tensor, samples: int = 1) -> tuple[Tensor, ...]:
        """How the threads split a batch; see `gradients`."""
        return indices.chunk(max(1, min(len(self._replicas), len(indices) * samples // self._smallest)))

    @property
    def begun(self) -> int:
        """Parts of the next batch that threads have begun with."""
        return len(self._begun)

    def begin(self, work: Work, parts: Sequence[Tensor]) -> None:
        """Let threads begin with the first parts of a batch, as far as none has; the next `gradients` is of that batch."""
        for number in range(self.begun, len(parts)):
            running = self._threads.submit(work, self._emptied(number, collect=True), parts[number])
            self._begun.append((parts[number], running))

    def forget(self) -> None:
        """Wait for the parts that threads have begun with, and let go of them."""
        wait([running for _, running in self._begun])
        self._begun.clear()
        for layer in itertools.chain(*self._dense):
            if layer is not None:
                layer.factors = None

    def _emptied(self, number: int, *, collect: bool) -> nn.Module:
        """A replica without a gradient; its dense layers `collect` factors, or none."""
        replica = self._replicas[number]
        replica.zero_grad(set_to_none=True)
        for layer in self._dense[number]:
            if layer is not None:
                layer.factors = [] if collect else None
        return replica

    def _add_up(self, replicas: list[nn.Module]) -> None:
        """Sum up the replicas' gradients in the whole network, whose own they are where it is the first replica."""
        own = self.network is self._whole
        if own and len(replicas) == 1:
            return
        for weight in self._whole.parameters():
            if weight.grad is None:
                weight.grad = torch.empty_like(weight)
        sums = self._threads.shares(map(_gradient, self._whole.parameters()))
        terms = list(zip(*(replica.parameters() for replica in replicas), strict=True))
        layers = list(zip(*self._dense[: len(replicas)], strict=True))

        def add(share: int) -> None:
            for rows, (first, *others), copies in zip(sums[share], terms, layers, strict=True):
                if copies[0] is not None and copies[0].factors is not None:
                    write_gradient(copies, _share(len(first), share, self._threads.count), rows)
                    continue
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

        def step(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], gradients: list[Tensor]) -> None:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()

        self._threads.run(step, self._optimizers, self._rows, self._threads.shares(map(_gradient, self._weights)))

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
    return tensor[_share(len(tensor), share, count)]


def _shares(tensors: Iterable[Tensor], count: int) -> list[list[Tensor]]:
    """By share, and then in the order of the tensors."""
    given = [*tensors]
    return [[_rows(tensor, share, count) for tensor in given] for share in range(count)]


def _share(rows: int, share: int, count: int) -> slice:
    return slice(rows * share // count, rows * (share + 1) // count)


def _dense_layers(network: nn.Module) -> list[Dense | None]:
    """Whose weights each of the parameters is."""
    layers = {id(module.weight): module for module in network.modules() if isinstance(module, Dense)}
    return [layers.get(id(weight)) for weight in network.parameters()]


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None, "a weight that no output depends on"
    return weight.grad
