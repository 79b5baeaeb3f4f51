"""Losses: divergences on dense and sparse targets, and the objective that weighs them.

Torch only. Each loss is a function of flat logits (P, C) that returns a sum and a count
(``loss_sum``), so it serves a plain PyTorch loop as well; where targets come from is not known
here. ``objective`` weighs losses by name, and its ``evaluation`` says what a batch needs and gives:
``target_losses`` on soft targets (``divergences``, ``logit_distances``), ``labels``, and an
``own_loss`` of the user's. All are computed in one ``precision``. fused/ computes several at once,
with their gradient, for vocabularies.
"""

from kdcache.losses.evaluation import Evaluation, StepCounts
from kdcache.losses.fused.one_pass import fused_losses
from kdcache.losses.labels import student_loss
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.objective import Objective
from kdcache.losses.target_losses import (
    cos_embed_loss,
    jensen_shannon,
    kd_loss,
    mse_logits,
    reverse_kl,
    total_variation,
)

__all__ = [
    "Evaluation",
    "LossSum",
    "Objective",
    "StepCounts",
    "cos_embed_loss",
    "fused_losses",
    "jensen_shannon",
    "kd_loss",
    "mse_logits",
    "reverse_kl",
    "student_loss",
    "total_variation",
]
