"""What the tests of fused losses share: problems, and the same answer from the plain functions."""

from dataclasses import dataclass
from typing import Any

import torch

from kdcache import losses
from kdcache.codecs import DenseCodec, TopKCodec

NAMES = ("kd_loss", "reverse_kl", "jensen_shannon", "total_variation", "student_loss")
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
P, C, D = 13, 11, 4


def encoded(logits, k=None, **settings):
    """Dense targets, or the top k, through the codec."""
    if k is None:
        codec = DenseCodec(**{"dtype": "float32", **settings})
    else:
        codec = TopKCodec(k=k, temperatures=TEMPERATURES, **{"dtype": "float32", **settings})
    columns = codec.encode(logits, torch.zeros(len(logits), 2))
    return codec.decode(columns, torch.ones(len(logits)).long(), logits.shape[-1])


@dataclass
class Case:
    """P positions among R rows: teacher's logits, student's, labels partly ignored."""

    teacher: Any
    logits: Any
    labels: Any
    rows: Any


def case(*, rows=False, num_classes=C, num_positions=P, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    num_rows = num_positions + 5 if rows else num_positions
    teacher = 3 * torch.randn(num_positions, num_classes, generator=generator)
    logits = 3 * torch.randn(num_rows, num_classes, generator=generator)
    labels = torch.randint(0, num_classes, (num_positions,), generator=generator)
    labels[::3] = -100
    picked = torch.randperm(num_rows, generator=generator)[:num_positions] if rows else None
    return Case(teacher, logits.to(dtype), labels, picked)


def weights_of(names):
    return {name: 0.3 - 0.25 * number for number, name in enumerate(names)}


def plain(logits, targets, labels, weights, temperature, rows=None):
    """(total, name -> LossSum) by autograd through the plain functions."""
    logits = logits if rows is None else logits[rows]
    terms = {
        name: losses.student_loss(logits, labels)
        if name == "student_loss"
        else getattr(losses, name)(logits, targets, temperature)
        for name in weights
    }
    return sum(weights[name] * term.sum for name, term in terms.items()), terms


def relative_error(found, wanted):
    """Of a gradient, in the norm; an absolute one where 0 is wanted."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / (wanted.norm() or 1.0))
