"""Gradients on several CPU cores: a batch is split, each part is one thread's, and the parts' gradients are added up.

torch can split every single operation over the cores instead, but its threads then wait for each other hundreds of times an
update, spinning; as soon as another program wants a core, that takes ten times as long (`docs/log.md`). Here they meet once.
The sum is taken in a fixed order: the same parts give the same bits.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

SMALLEST = 64  # samples in a part; below that, splitting costs more than it saves

Metrics = dict[str, Tensor]
Work = Callable[[nn.Module, Tensor], Metrics]  # (network, indices of a part): call backward, return what to add up


class Shards:
    """The same network as often as there are threads: shared weights, gradients of its own for each."""

    def __init__(self, network: nn.Module, count: int) -> None:
        """Use up to `count` threads; 1 works without any."""
        self._replicas = [network, *(copy.deepcopy(network) for _ in range(count - 1))]
        for replica in self._replicas[1:]:
            for shared, own in zip(network.parameters(), replica.parameters(), strict=True):
                own.data = shared.data
        self._pool = ThreadPoolExecutor(count, "shard", initializer=lambda: torch.set_num_threads(1)) if count > 1 else None

    def gradients(self, work: Work, indices: Tensor, samples: int = 1) -> Metrics:
        """Leave the gradient of a whole batch in the network; (B,) indices are split between the threads.

        Args:
            work: Adds its part's share of the gradient to the network it is given, and returns its share of each metric.
            indices: What the batch is made of.
            samples: How many samples stand behind each index.

        Returns:
            The sums of the metrics.
        """
        parts = indices.chunk(max(1, min(len(self._replicas), len(indices) * samples // SMALLEST)))
        for replica in self._replicas:
            replica.zero_grad(set_to_none=True)
        if self._pool is None or len(parts) == 1:
            return work(self._replicas[0], indices)
        jobs = [self._pool.submit(work, replica, part) for replica, part in zip(self._replicas, parts, strict=False)]
        results = [job.result() for job in jobs]
        for replica in self._replicas[1 : len(parts)]:
            for total, own in zip(self._replicas[0].parameters(), replica.parameters(), strict=True):
                if total.grad is not None and own.grad is not None:
                    total.grad.add_(own.grad)
        return {name: torch.stack([metrics[name] for metrics in results]).sum() for name in results[0]}
