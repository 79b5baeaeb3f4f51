"""The order of training samples: a pure function of a seed and the epoch.

So a training that was interrupted within an epoch goes on with exactly the samples that are left,
and several ranks share an epoch without a word between them: the k-th batches of all ranks are,
together, the k-th batch of one process with as many times the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)


class EpochOrder(DistributedSampler[int]):
    """Numbers of samples for this rank, each in exactly one place of an epoch over all ranks.

    Where ranks would be left with different numbers of batches, which would make one wait for
    ever, the last ones repeat samples of the epoch's beginning (at most one each), or leave some
    out where the loader drops what is incomplete anyway.

    A DistributedSampler by name only: Lightning leaves those alone.

    Args:
        num_samples: N.
        batch_size: of one rank.
        shuffle: False: in their own order.
        drop_last: whether incomplete batches are dropped.
        seed: of all orders; None: :meth:`seeded` says it before the first epoch.

    Attributes:
        start: samples of this rank that the next pass leaves out, since they were trained on
            before an interruption; 0 again after it has begun.
    """

    def __init__(  # DistributedSampler's own asks for ranks, which are not there yet
        self,
        *,
        num_samples: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool = False,
        seed: int | None = None,
    ) -> None:
        self.total = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.order_seed = seed
        self.epoch = 0
        self.start = 0

    @classmethod
    def like(cls, loader: DataLoader[Any]) -> EpochOrder | None:
        """The order of a loader that shuffles everything, or nothing, as PyTorch's own do.

        None where another sampler, or batch sampler, decides.
        """
        batches: Any = loader.batch_sampler
        if type(batches) is not BatchSampler:
            return None
        sampler: Any = batches.sampler
        dataset = loader.dataset
        if isinstance(sampler, EpochOrder):
            return sampler
        is_random = type(sampler) is RandomSampler and not sampler.replacement
        if not is_random and type(sampler) is not SequentialSampler:
            return None
        if len(sampler) != len(dataset):  # type: ignore[arg-type]
            return None  # a part of the samples
        # Its initial seed is taken below, not its state, which every pass over the loader moves on.
        generator = sampler.generator if is_random else None  # the loader's, where it made it
        return cls(
            num_samples=len(dataset),  # type: ignore[arg-type]
            batch_size=batches.batch_size,
            shuffle=is_random,
            drop_last=batches.drop_last,
            seed=None if generator is None else generator.initial_seed(),
        )

    def seeded(self, seed: int) -> None:
        """Give a seed to an order that has none."""
        if self.order_seed is None:
            self.order_seed = seed

    def whole(self) -> Tensor:
        """The order of all ranks' samples in this epoch, (N,) int64."""
        if not self.shuffle:
            return torch.arange(self.total)
        generator = torch.Generator()
        # Multiplied, so that epoch 1 of a seed is not epoch 0 of the next one. A generator of its
        # own: the global one is left to dropout and augmentation.
        generator.manual_seed(((self.order_seed or 0) * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.total, generator=generator)

    def of_rank(self, rank: int, num_ranks: int) -> Tensor:
        """The samples of one rank, in order."""
        order = self.whole()
        missing = self._all(num_ranks) - len(order)
        if missing > 0:
            order = torch.cat([order, order.repeat(-(-missing // len(order)))[:missing]])
        # Interleaved, so that the k-th batches of all ranks are the k-th of one large batch's
        # order.
        return order[: self._all(num_ranks)][rank::num_ranks]

    def _all(self, num_ranks: int) -> int:
        """Samples of all ranks together, those that come twice included."""
        even, left = divmod(self.total, num_ranks)
        if left and self.drop_last:
            return even * num_ranks
        if left and even % self.batch_size == 0:  # some ranks would have one batch less
            return (even + 1) * num_ranks
        return self.total

    def __iter__(self) -> Iterator[int]:
        """The samples of this process's rank."""
        numbers = self.of_rank(*_ranks())
        start, self.start = self.start, 0
        return iter(numbers[start:].tolist())

    def __len__(self) -> int:
        """Samples of this process's rank in a whole epoch."""
        rank, num_ranks = _ranks()
        return len(range(rank, self._all(num_ranks), num_ranks))

    def set_epoch(self, epoch: int) -> None:
        """Lightning says which epoch begins."""
        self.epoch = epoch


def _ranks() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
