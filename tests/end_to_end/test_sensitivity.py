"""The measurement can see an error at all: every kind of wrong target worsens the student.

Each wrong pairing is made behind the back of the checks, which would refuse all of them.
"""

from __future__ import annotations

import functools
import statistics

import digits
import pytest
import torch

from kdcache.losses import kd_loss
from kdcache.targets import DenseTargets

SEEDS = range(4)
TEMPERATURE = 2.0
SIGMAS = 5


def targets_of(logits):
    return DenseTargets(
        values=logits,
        num_positions=torch.ones(len(logits), dtype=torch.int64),
        num_classes=digits.NUM_CLASSES,
    )


def right(logits):
    return logits


def shuffled(logits):
    return logits[torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))]


def shifted(logits):
    return logits.roll(1, dims=0)


def permuted_classes(logits):
    return logits.roll(1, dims=-1)


def softened_twice(logits):
    """Targets that were stored at temperature 2 and are read as if at 1."""
    return logits / TEMPERATURE


@functools.cache
def divergences(wrong):
    """KL(teacher || student) in nats on the test set, one number a seed."""
    teacher = digits.trained_teacher()
    images, _ = digits.images_and_labels()
    train, test = images[: digits.NUM_TRAIN], images[digits.NUM_TRAIN :]
    with torch.no_grad():
        targets, test_targets = wrong(teacher(train)), targets_of(teacher(test))
    found = []
    for seed in SEEDS:
        student = digits.net(32, seed=seed)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        order = torch.Generator().manual_seed(seed)
        for _ in range(12):
            for part in torch.randperm(len(train), generator=order).split(64):
                optimizer.zero_grad()
                kd_loss(
                    student(train[part]), targets_of(targets[part]), TEMPERATURE
                ).mean().backward()
                optimizer.step()
        with torch.no_grad():
            found.append(kd_loss(student(test), test_targets, 1.0).mean().item())
    return found


@pytest.mark.parametrize("wrong", [shuffled, shifted, permuted_classes, softened_twice])
def test_wrong_targets_worsen_the_student_beyond_the_seeds_spread(wrong):
    good, bad = divergences(right), divergences(wrong)
    spread = max(statistics.stdev(good), statistics.stdev(bad))
    assert statistics.mean(bad) - statistics.mean(good) > SIGMAS * spread
