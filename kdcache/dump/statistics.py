"""Sums over a batch's positions that a commit records: what the teacher is like, label by label.

They cost one log-softmax a batch and feed the progress bar, ``inspect`` and the start-up check
that compares the teacher's cross-entropy on the student's labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdcache.data.join import IGNORE_INDEX

NAMES = (
    "positions",
    "entropy",
    "labelled",
    "correct",
    "cross_entropy",
    "cross_entropy_squared",
)


def batch_statistics(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Sums over one batch, on the logits' device.

    Args:
        logits: (P, C) float32.
        labels: (P,) int64 with -100 for none, or None.

    Returns:
        (6,) float64 in the order of ``NAMES``: positions, entropy in nats, labelled positions,
        those whose top class is the label, cross-entropy in nats and its square.
    """
    log_p = logits.log_softmax(dim=-1)
    entropy = -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(dtype=torch.float64)
    sums = [logits.new_tensor(len(logits), dtype=torch.float64), entropy]
    if labels is None:
        return torch.stack([*sums, *[torch.zeros_like(entropy)] * 4])
    known = (labels != IGNORE_INDEX) & (labels >= 0) & (labels < logits.shape[-1])
    taken = log_p.gather(-1, labels.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    cross_entropy = torch.where(known, -taken, 0.0).double()
    correct = (log_p.argmax(dim=-1) == labels) & known
    counts = [known.sum(dtype=torch.float64), correct.sum(dtype=torch.float64)]
    return torch.stack([*sums, *counts, cross_entropy.sum(), cross_entropy.square().sum()])


def as_mapping(sums: Tensor) -> Mapping[str, float]:
    """Named numbers for a commit; infinities (a masked class that is the label) become 1e30."""
    values = torch.nan_to_num(sums, nan=0.0, posinf=1e30, neginf=-1e30).tolist()
    return dict(zip(NAMES, values, strict=True))
