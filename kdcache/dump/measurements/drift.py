"""How far a teacher's output for a sample depends on the samples beside it in a batch.

Padding that leaks (a group norm over time without a mask) or statistics over the batch make a
target one of its batch, not of its sample; a student sees other batches. A few samples are run
together and each alone, and the difference is written down.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.data.batch.forward import FlatOutput
from kdcache.data.batch.labels import MAX_NATS

log = logging.getLogger(__name__)

NUM_SAMPLES = 8
# Rounding that depends on the batch's shape: measured on transformers and a ResNet with heads from
# flat to very sure, means up to 1e-11 nats in float32, 1e-4 under bfloat16 autocast and 5e-4 in
# pure bfloat16 (3e-2 at the worst position). Padding that leaks into a norm over time gave 0.02 to
# 0.08 in a toy, and 1.1 in a group-norm wav2vec 2.0 (transformers issue 21534) with a sure head.
MAX_MEAN_KL = 0.01
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What came out, over all positions that could be compared.

    Attributes:
        samples: that were run together, and each alone.
        positions: compared.
        changed_counts: samples with another number of valid positions alone. Of these the
            positions that both have are compared, from whichever end fits better.
        mean_kl: nats per position, KL(together || alone).
        max_kl: nats, of the position that differs most.
        max_abs: the largest difference of a log-probability, at most 100 nats.
        worst_sample: number of the sample with that position; None where there is no position.
    """

    samples: int
    positions: int
    changed_counts: int
    mean_kl: float
    max_kl: float
    max_abs: float
    worst_sample: int | None

    def to_json(self) -> dict[str, int | float | None]:
        """Finite numbers by name, for the manifest."""
        return dataclasses.asdict(self)


def measure_drift(
    forward: Callable[[Any], FlatOutput],
    collate_fn: Callable[[list[Any]], Any],
    samples: Sequence[Any],
    numbers: Sequence[int],
) -> Drift | None:
    """Run a teacher on at most 8 samples together and on each of them alone.

    Args:
        forward: flat logits of a batch, (P, C) float32.
        collate_fn: the user's.
        samples: of the dataset; those after the eighth are not looked at. Samples of unlike
            lengths tell most.
        numbers: of the samples.

    Returns:
        What came out; None where there are not two samples, or the teacher takes no batch of one.
    """
    chosen = list(samples[:NUM_SAMPLES])
    if len(chosen) < 2:
        return None
    together = forward(collate_fn(chosen))
    alone = []
    for number, sample in zip(numbers, chosen, strict=False):
        try:
            alone.append(forward(collate_fn([sample])))
        except Exception as error:  # whatever a user's teacher raises for a batch of one
            log.info(
                "the teacher takes no batch of one (sample %d: %s): how far its targets depend on "
                "the batch is not known",
                number,
                error,
            )
            return None
    return _compared(together, alone, numbers)


def _compared(together: FlatOutput, alone: Sequence[FlatOutput], numbers: Sequence[int]) -> Drift:
    parts = torch.split(together.logits, together.num_positions.tolist())
    both = [_aligned(part, single.logits) for part, single in zip(parts, alone, strict=True)]
    owners = [n for n, (kl, _) in zip(numbers, both, strict=False) for _ in range(len(kl))]
    kl, difference = (torch.cat(columns) for columns in zip(*both, strict=True))
    if not owners:
        kl = difference = torch.zeros(1)
    changed = [len(part) != len(single.logits) for part, single in zip(parts, alone, strict=True)]
    return Drift(
        samples=len(alone),
        positions=len(owners),
        changed_counts=sum(changed),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        max_abs=float(difference.max()),
        worst_sample=owners[int(kl.argmax())] if owners else None,
    )


def _aligned(together: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
    """The distances of the positions that both have: padding may be on either side."""
    count = min(len(together), len(alone))
    first = _distances(together[:count], alone[:count])
    last = _distances(together[len(together) - count :], alone[len(alone) - count :])
    return first if first[0].sum() <= last[0].sum() else last


def _distances(together: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
    """KL(together || alone) and the largest difference of a log-probability, (P,) each.

    Args:
        together: (P, C) logits; -inf is a masked class.
        alone: the same positions.
    """
    size = max(1, _BLOCK_NUMBERS // together.shape[-1])  # a vocabulary's worth of float64 is much
    pairs = zip(torch.split(together, size), torch.split(alone, size), strict=True)
    kl, difference = zip(*(_block_distances(*pair) for pair in pairs), strict=True)
    return torch.cat(kl), torch.cat(difference)


def _block_distances(together: Tensor, alone: Tensor) -> tuple[Tensor, Tensor]:
    log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in (together, alone))
    difference = (log_p.clamp(min=-MAX_NATS) - log_q.clamp(min=-MAX_NATS)).nan_to_num(MAX_NATS)
    kl = (log_p.exp().nan_to_num() * difference).sum(dim=-1).clamp(min=0)
    return kl, difference.abs().amax(dim=-1)


def warning_text(drift: Drift) -> str | None:
    """What to tell a person of a drift that no rounding explains; None where it is small."""
    found = []
    if drift.mean_kl > MAX_MEAN_KL:
        found.append(
            f"their targets differ by {drift.mean_kl:.3g} nats per position (most in sample "
            f"{drift.worst_sample}: {drift.max_kl:.3g})"
        )
    if drift.changed_counts:
        found.append(f"{drift.changed_counts} of them have another number of valid positions")
    if not found:
        return None
    return (
        f"what the teacher says of a sample depends on the others in its batch: of "
        f"{drift.samples} samples, run together and each alone, {' and '.join(found)}. Padding "
        "that the teacher does not mask does this, or that counts as positions. Give it the mask "
        "(batch.mask), batch samples of like lengths, or dump with batch size 1."
    )
