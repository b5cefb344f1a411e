"""An update on several CPU cores: a batch is split, each part is one thread's, and the parts' gradients are added up.

    weights (float32) ──── refresh ────▶ a replica for each thread: shared weights in the run's precision, gradients of its own
      ▲                                    │ a part of the batch for each thread
      └────────── step ◀────────── sum ────┘ a share of the rows of every large weight for each thread

torch can split every single operation over the cores instead, but its threads then wait for each other hundreds of times an
update, spinning; as soon as another program wants a core, that takes ten times as long (`docs/log.md`). Here they meet one to
three times, since two threads that are both in Python hold each other up: for what is small one alone is faster than two.
A part can be begun before the others are there. The sum is taken in a fixed order: the same parts give the same bits.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from agents.dense import Dense, Product
from agents.networks import lowered

SMALLEST = 64  # samples in a part; below that, splitting costs more than it saves
SMALLEST_OF_IMAGES = 16  # the same, where a sample is an image and takes longer
_SHARED = 2**19  # numbers of a layer's weights; fewer are all one thread's, since to share them takes longer

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

    def submit(self, work: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """Let another thread work beside the caller; there has to be one."""
        assert self._pool is not None
        return self._pool.submit(work, *arguments)


class Shards:
    """The network as it computes: in the run's precision, and as often as there are threads."""

    def __init__(
        self, network: nn.Module, threads: Threads, precision: torch.dtype = torch.float32, *, images: bool = False
    ) -> None:
        """Compute with the weights of `network`; in bfloat16 with a copy, which `refresh` brings up to date.

        The weights have to stay where they are in memory.
        """
        self._whole, self._threads, self._sharers = [*network.parameters()], threads, _sharers(network, threads)
        self._smallest = SMALLEST_OF_IMAGES if images else SMALLEST
        self.network = network if precision == torch.float32 else lowered(network, precision)
        """What to act with."""
        self._replicas = [self.network, *(copy.deepcopy(self.network) for _ in range(threads.count - 1))]
        for replica in self._replicas[1:]:
            for shared, own in zip(self.network.parameters(), replica.parameters(), strict=True):
                own.data = shared.data
        self._weights = [[*replica.parameters()] for replica in self._replicas]  # to look for them takes as long as a sum
        self._dense = [_dense_layers(replica) for replica in self._replicas]
        self._squares = torch.zeros(1)  # of the lengths of the gradient's shares
        self._products: list[Product | None] = []  # what `step` has to write of the gradient, by weight
        self._begun: list[tuple[Tensor, Future[Metrics]]] = []  # parts of the next batch
        pairs = zip(self._whole, self._weights[0], strict=True)
        copies = [(weight.detach(), own.detach()) for weight, own in pairs if own.dtype != weight.dtype]  # others are shared
        self._copies = [shares(tensors, self._sharers) for tensors in zip(*copies, strict=True)]
        self._gradients: list[Tensor] = []
        self._rows: list[list[Tensor]] = []  # of the gradients, by share

    def refresh(self) -> None:
        """Take over the weights after they have changed."""
        if self._copies:
            self._threads.run(self._copy_rows, range(self._sharers))

    def _copy_rows(self, share: int) -> None:
        weights, own = (rows[share] for rows in self._copies)
        torch._foreach_copy_(own, weights)

    def step(self, optimizer: "SharedOptimizer", longest: float, scale: Tensor | float = 1.0) -> Tensor:
        """Step along the last gradient, times `scale` and shortened as by `nn.utils.clip_grad_norm_`, and `refresh`.

        Returns:
            How long it was before it was shortened.
        """
        norm: Tensor = self._squares.sum().clamp(min=0).sqrt() * scale
        factor = (longest / (norm + 1e-6)).clamp(max=1) * scale

        def move(share: int, gradients: list[Tensor]) -> None:
            for weight, gradient, product in zip(self._whole, gradients, self._products, strict=True):
                if product is not None:
                    product.write_scaled(_slice_of(weight, share, self._sharers), gradient, factor)
            rest = [gradient for gradient, product in zip(gradients, self._products, strict=True) if product is None]
            torch._foreach_mul_(rest, factor)
            optimizer.step_rows(share, gradients)
            if self._copies:
                self._copy_rows(share)

        self._threads.run(move, range(self._sharers), self._shared_gradients())
        self._products = []  # let go of what they were made of
        return norm

    def gradients(self, work: Work, indices: Tensor, samples: int = 1) -> Metrics:
        """Make the gradient of a whole batch, which `step` goes along; (B,) indices are split between the threads.

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
            self._add_up(len(parts))
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
        for weight in self._weights[number]:
            weight.grad = None
        for layer in self._dense[number]:
            if layer is not None:
                layer.factors = [] if collect else None
        return self._replicas[number]

    def _add_up(self, parts: int) -> None:
        """Sum up the first replicas' gradients in the whole network, which is itself the first replica in float32.

        Of a dense layer that has seen few samples only the length: `step` writes it, already shortened.
        """
        own, count = self._weights[0][0] is self._whole[0], self._sharers
        products = [_product(copies) for copies in zip(*self._dense[:parts], strict=True)]
        for weight, product in zip(self._whole, products, strict=True):
            if weight.grad is None and (product is not None or not own):
                weight.grad = torch.empty_like(weight)
        sums = self._shared_gradients()
        terms = list(zip(*self._weights[:parts], strict=True))
        self._products = [product if product is not None and product.few else None for product in products]

        def add(share: int) -> Tensor:
            plain, made = [], []
            for rows, copies, product in zip(sums[share], terms, products, strict=True):
                if not len(rows) or (product is not None and product.few):
                    continue
                made.append(rows)
                if product is not None:
                    product.write(_slice_of(copies[0], share, count), rows)
                else:
                    plain.append((rows, *(_rows(_gradient(copy), share, count) for copy in copies)))
            if plain:
                given, first, *others = map(list, zip(*plain, strict=True))
                if not own:
                    torch._foreach_copy_(given, first)
                for other in others:
                    torch._foreach_add_(given, other)
            return torch.stack(torch._foreach_norm(made)).square().sum() if made else torch.zeros(())

        large = any(len(rows) for rows, product in zip(sums[-1], self._products, strict=True) if product is None)
        squares = self._threads.run(add, range(count if large else 1))
        self._squares = torch.stack([*squares, *(product.square() for product in self._products if product is not None)])

    def _shared_gradients(self) -> list[list[Tensor]]:
        """Each thread's share of the rows of gradients, as views; empty where it has none.

        Of the same gradients as the last time they are the same views: to make one takes as long as a sum of a few numbers.
        """
        given = [*map(_gradient, self._whole)]
        if [*map(id, given)] != [*map(id, self._gradients)]:
            self._gradients, self._rows = given, shares(given, self._sharers)
        return self._rows


class Optimizer(Protocol):
    """Steps along gradients, each number for itself."""

    lr: float | Tensor

    @property
    def moments(self) -> dict[str, list[Tensor]]:
        """What it remembers of each weight, by name; it stays where it is in memory."""

    def step_along(self, gradients: list[Tensor]) -> None:
        """A step along a gradient for each weight."""


class SharedOptimizer:
    """An optimiser whose step is shared between threads.

    Its rows are views of the weights, which have to stay where they are in memory, and each of which has to have a gradient.
    """

    def __init__(self, make: Callable[[list[nn.Parameter]], Optimizer], network: nn.Module, threads: Threads) -> None:
        """`make` builds one over some parameters: it is called for each share of the rows."""
        self.sharers = _sharers(network, threads)
        """How many shares there are."""
        rows = shares((weight.detach() for weight in network.parameters()), self.sharers)
        self._rows = [[nn.Parameter(weight, requires_grad=False) for weight in share] for share in rows]
        self._optimizers = [make(rows) for rows in self._rows]
        self._learning_rate = float(self._optimizers[0].lr)
        device = self._rows[0][0].device
        if device.type == "cuda":  # a recorded step finds its size in memory of the device
            for optimizer in self._optimizers:
                optimizer.lr = torch.tensor(self._learning_rate, device=device)

    @property
    def learning_rate(self) -> float:
        """Size of the steps from now on."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._learning_rate = rate
        for optimizer in self._optimizers:
            if isinstance(optimizer.lr, Tensor):
                optimizer.lr.fill_(rate)
            else:
                optimizer.lr = rate

    def step_rows(self, share: int, gradients: list[Tensor]) -> None:
        """One share of a step, by its share of the gradients."""
        self._optimizers[share].step_along(gradients)

    def state_dict(self) -> dict[str, Any]:
        """As of one of torch's optimisers over the whole weights, whatever the number of threads."""
        first, indices = self._optimizers[0].moments, [*range(len(self._rows[0]))]

        def whole(name: str, index: int) -> Tensor:
            parts = [optimizer.moments[name][index] for optimizer in self._optimizers]
            return torch.cat(parts) if parts[0].dim() else parts[0]

        moments = {index: {name: whole(name, index) for name in first} for index in indices}
        return {"state": moments, "param_groups": [{"lr": self.learning_rate, "params": indices}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state, of torch's own too, which has no moments before its first step.

        Raises:
            ValueError: it is of other weights.
        """
        saved = state["state"]
        if saved and sorted(saved) != [*range(len(self._rows[0]))]:
            raise ValueError(f"the optimiser's state is of {len(saved)} weights")
        for share, optimizer in enumerate(self._optimizers):
            for name, moments in optimizer.moments.items():
                for index, moment in enumerate(moments):
                    if saved:
                        moment.copy_(_share_of(saved[index][name], share, self.sharers, moment))
                    else:
                        moment.zero_()
        self.learning_rate = float(state["param_groups"][0]["lr"])


def _share_of(moment: Tensor, share: int, count: int, rows: Tensor) -> Tensor:
    part = _rows(moment, share, count) if moment.dim() else moment
    if part.shape != rows.shape:
        raise ValueError(f"the optimiser's state is of weights {tuple(moment.shape)}")
    return part


def _rows(tensor: Tensor, share: int, count: int) -> Tensor:
    """One of `count` shares of a tensor's rows; the tensor itself where that is all of them."""
    rows = _slice_of(tensor, share, count)
    return tensor if rows == slice(0, len(tensor)) else tensor[rows]


def shares(tensors: Iterable[Tensor], count: int) -> list[list[Tensor]]:
    """The rows of some tensors in `count` shares, as views: by share, and then in the order of the tensors."""
    given = [*tensors]
    return [[_rows(tensor, share, count) for tensor in given] for share in range(count)]


def _sharers(network: nn.Module, threads: Threads) -> int:
    """How many threads share the rows of weights."""
    return threads.count if any(weight.numel() >= _SHARED for weight in network.parameters()) else 1


def _slice_of(tensor: Tensor, share: int, count: int) -> slice:
    """Which rows; all of a small tensor's are the first's."""
    if tensor.numel() < _SHARED:
        return slice(0, 0 if share else len(tensor))
    return slice(len(tensor) * share // count, len(tensor) * (share + 1) // count)


def _dense_layers(network: nn.Module) -> list[Dense | None]:
    """Whose weights each of the parameters is."""
    layers = {id(module.weight): module for module in network.modules() if isinstance(module, Dense)}
    return [layers.get(id(weight)) for weight in network.parameters()]


def _product(layers: Sequence[Dense | None]) -> Product | None:
    """Of copies of a dense layer that have collected factors."""
    collected = [layer for layer in layers if layer is not None and layer.factors is not None]
    return Product(collected) if collected else None


def _gradient(weight: nn.Parameter) -> Tensor:
    assert weight.grad is not None, "a weight that no output depends on"
    return weight.grad
