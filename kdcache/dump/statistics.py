"""Sums over a batch's positions that a commit records: what the teacher is like, label by label.

They feed the progress bar, ``inspect``, and the start-up check that compares the targets'
cross-entropy on the student's labels with the one at the dump.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdcache.data.labels import MAX_NATS, label_nats
from kdcache.losses.labels import IGNORE_INDEX
from kdcache.targets import SoftTargets

NAMES = (
    "positions",
    "entropy",
    "labelled",
    "correct",
    "cross_entropy",
    "stored_cross_entropy",
    "stored_cross_entropy_squared",
)


def batch_statistics(logits: Tensor, labels: Tensor | None, targets: SoftTargets) -> Tensor:
    """Sums over one batch, on the logits' device.

    Args:
        logits: (P, C) float32.
        labels: (P,) int64, 0 to C - 1, or -100 for none; None where nothing is labelled.
        targets: the same positions, as a student will read them.

    Returns:
        (7,) float64 in the order of ``NAMES``: positions, entropy in nats, labelled positions,
        those whose top class is the label, the logits' cross-entropy in nats, and that of the
        stored targets, with its square.
    """
    log_p = logits.log_softmax(dim=-1)
    entropy = torch.special.entr(log_p.exp()).sum(dtype=torch.float64)
    positions = torch.full_like(entropy, len(logits))
    if labels is None:
        return torch.stack([positions, entropy, *[torch.zeros_like(entropy)] * 5])
    known = labels != IGNORE_INDEX
    taken = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    cross_entropy = torch.where(known, -taken.clamp(min=-MAX_NATS), 0.0)
    correct = (logits.argmax(dim=-1) == labels) & known
    stored = label_nats(targets, labels)
    sums = [known, correct, cross_entropy, stored, stored.square()]
    return torch.stack([positions, entropy, *(part.sum(dtype=torch.float64) for part in sums)])


def as_mapping(sums: Tensor) -> Mapping[str, float]:
    """Named numbers for a commit."""
    return dict(zip(NAMES, sums.tolist(), strict=True))
