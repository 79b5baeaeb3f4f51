"""Losses: divergences on dense and sparse targets, and the objective that weighs them.

Torch only. Each loss is a function of flat logits (P, C) that returns a sum and a count, so it
serves a plain PyTorch loop as well; where targets come from is not known here.
"""

from kdcache.losses.labels import student_loss
from kdcache.losses.loss_sum import LossSum
from kdcache.losses.objective import Objective
from kdcache.losses.target_losses import cos_embed_loss, kd_loss, mse_logits

__all__ = ["LossSum", "Objective", "cos_embed_loss", "kd_loss", "mse_logits", "student_loss"]
