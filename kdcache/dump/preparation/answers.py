"""What the teacher said of the first samples, kept with the cache; whoever goes on is held to it.

Class and weights do not make a teacher: arguments, buffers that are not saved, and its code decide
as well. Every process runs the first batch anyway, so its first positions cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcache.errors import MismatchError
from kdcache.store import Manifest

ANSWERS = "answers"
"""Where the first reference has them: of each position [class, its log p, entropy, mean log p]."""

_NUM_POSITIONS, _NUM_MEASURES = 16, 3
# Nats, or parts of a number above 1. TF32 and float32 differ by about a hundredth at the surest
# positions; bfloat16 moves logits of 20 by a twentieth. Another sign or head: by whole nats.
_NEAR_NATS = {"32-true": 0.05, "64-true": 0.05}
_NEAR_NATS_OF_HALF = 0.2


def answers_of(logits: Tensor) -> list[list[float]]:
    """What is kept of the first positions.

    Args:
        logits: (P, C) float32, on any device.

    Returns:
        For each of at most 16: the most likely class, its log-probability, the entropy, and the
        mean log-probability of all classes that are possible, in nats.
    """
    log_p = first_log_p(logits)
    classes = log_p.argmax(-1)
    measured = _measured(log_p, classes).tolist()
    return [
        [number, *(float(f"{value:.7g}") for value in values)]
        for number, values in zip(classes.tolist(), measured, strict=True)
    ]


def first_log_p(logits: Tensor) -> Tensor:
    """Log-probabilities of the first positions, (at most 16, C) float64 on the CPU."""
    return logits[:_NUM_POSITIONS].detach().cpu().double().log_softmax(-1)


def check_answers(manifest: Manifest, log_p: Tensor, cache: Path) -> None:
    """Hold a teacher that goes on with a split against the one that began it.

    Args:
        manifest: of the cache; one without answers is taken as it is.
        log_p: this teacher's, from :func:`first_log_p`.
        cache: for the error.

    Raises:
        MismatchError: it says something else of the same samples.
    """
    stored = _stored(manifest.references[0] if manifest.references else {}, log_p)
    if stored is None:
        return
    classes, then = stored
    now = _measured(log_p[: len(classes)], classes)
    # Relative where numbers are large: of a teacher that is sure, only the mean tells its
    # temperature, and that is as far from 0 as its logits are.
    apart = ((now - then).abs() / then.abs().clamp_min(1.0)).amax(-1)
    precision = manifest.identity.get("precision", "")
    if apart.mean() <= _NEAR_NATS.get(precision, _NEAR_NATS_OF_HALF):
        return
    worst = int(apart.argmax())
    texts = [
        f"log-probability {p:.4g}, entropy {h:.4g}, mean log-probability {m:.4g}"
        for p, h, m in (then[worst].tolist(), now[worst].tolist())
    ]
    raise MismatchError(
        f"the teacher has the class and the weights of the one that began split "
        f"{manifest.split!r} of {cache}, and says something else of its first samples: position "
        f"{worst} of the first batch, class {int(classes[worst])}, in nats: {texts[0]} there; "
        f"{texts[1]} here. "
        "Its arguments (teacher.init_args), buffers that are not saved, its code, or something "
        "random in it differ. Nothing was written. Restore them to resume, or choose a new cache "
        "path."
    )


def _stored(reference: Mapping[str, Any], log_p: Tensor) -> tuple[Tensor, Tensor] | None:
    """Classes (P,) and measures (P, 3); None where they cannot be of these positions."""
    rows = reference.get(ANSWERS)
    if not isinstance(rows, list) or not 0 < len(rows) <= len(log_p):
        return None
    try:
        values = torch.tensor(rows, dtype=torch.float64)
    except (TypeError, ValueError):
        return None
    if values.dim() != 2 or values.shape[1] != 1 + _NUM_MEASURES:
        return None
    classes = values[:, 0].long()
    if not ((classes >= 0) & (classes < log_p.shape[-1])).all():
        return None
    return classes, values[:, 1:]


def _measured(log_p: Tensor, classes: Tensor) -> Tensor:
    """(P, 3), in nats: log-probability of a class, entropy, mean log-probability.

    A class with probability 0 adds nothing to either of the last two.
    """
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    possible = log_p.isfinite()
    mean = log_p.where(possible, 0.0).sum(-1) / possible.sum(-1).clamp_min(1)
    return torch.stack([log_p.gather(-1, classes[:, None])[:, 0], entropy, mean], dim=-1)
