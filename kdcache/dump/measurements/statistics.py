"""Sums over a batch's positions that a commit records: what the teacher is like, label by label.

They feed the progress bar, ``inspect``, ``verify`` and the start-up check that compares the
targets' cross-entropy on the student's labels with the one at the dump. Part of them is fidelity:
what storing the targets cost, measured for every position while its logits are still there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdcache.data.batch.labels import MAX_NATS
from kdcache.dump.measurements.fidelity import FLOOR, fidelity, row_blocks
from kdcache.losses.labels import IGNORE_INDEX
from kdcache.targets import SoftTargets, rows_of

NAMES = (
    "positions",
    "entropy",
    "entropy_squared",
    "compared",
    "divergence",
    "divergence_squared",
    "kept_mass",
    "labelled",
    "correct",
    "cross_entropy",
    "stored_cross_entropy",
    "stored_cross_entropy_squared",
)


def batch_statistics(logits: Tensor, labels: Tensor | None, targets: SoftTargets) -> Tensor:
    """Sums over one batch, on the logits' device; nothing here waits for it.

    Args:
        logits: (P, C) float32.
        labels: (P,) int64, 0 to C - 1, or -100 for none; None where nothing is labelled.
        targets: the same positions, as a student will read them.

    Returns:
        (12,) float64 in the order of ``NAMES``: positions; their entropy in nats, and its square;
        positions whose targets could be compared, their KL(teacher ||
        stored) in nats, its square, and the mass that was kept; labelled positions, those whose
        top class is the label, the logits' cross-entropy in nats, and that of the stored targets,
        with its square.
    """
    sums = torch.zeros(len(NAMES), dtype=torch.float64, device=logits.device)
    for rows in row_blocks(logits, targets):
        part = _block(
            logits[rows], None if labels is None else labels[rows], rows_of(targets, rows)
        )
        sums += torch.stack([value.sum(dtype=torch.float64) for value in part])
    return sums


def _block(logits: Tensor, labels: Tensor | None, targets: SoftTargets) -> list[Tensor]:
    """What is summed up, in the order of ``NAMES``."""
    log_p = logits.log_softmax(dim=-1)
    # Before it is clamped in place: a label may lie below the floor.
    by_label = [] if labels is None else _by_label(logits, log_p, labels, targets)
    p = log_p.clamp_(min=FLOOR).exp()
    entropy = -(p * log_p).sum(dim=-1)
    one, none = torch.ones_like(entropy), torch.zeros_like(entropy)
    found = fidelity(logits, log_p, p, targets)
    kl, kept = found or (none, none)
    compared = one if found else none
    sums = [one, entropy, entropy.square(), compared, kl, kl.square(), kept, *by_label]
    return [*sums, *[none] * (len(NAMES) - len(sums))]


def _by_label(logits: Tensor, log_p: Tensor, labels: Tensor, targets: SoftTargets) -> list[Tensor]:
    known = labels != IGNORE_INDEX
    taken = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    cross_entropy = torch.where(known, -taken.clamp(min=-MAX_NATS), 0.0)
    # max, not argmax, which takes three times as long on a CPU.
    correct = (logits.max(dim=-1).indices == labels) & known
    # As label_nats, which would wait for the device to count the labelled positions.
    stored = -targets.label_log_p(labels).double().clamp(min=-MAX_NATS)
    stored = torch.where(known, stored, 0.0)
    return [known, correct, cross_entropy, stored, stored.square()]


def as_mapping(sums: Tensor) -> Mapping[str, float]:
    """Named numbers for a commit."""
    return dict(zip(NAMES, sums.tolist(), strict=True))
