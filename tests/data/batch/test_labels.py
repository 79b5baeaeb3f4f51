"""Labels beside targets, where no model tells which positions count."""

from __future__ import annotations

import pytest
import torch

from kdcache.data.batch.labels import target_labels
from kdcache.data.batch.selection import Selected
from kdcache.targets import DenseTargets

LABELS = torch.tensor([[1, 2, 3], [4, 5, 6]])
MASK = torch.tensor([[1, 1, 0], [0, 1, 1]])


def targets(*num_positions):
    values = torch.zeros(sum(num_positions), 9)
    return DenseTargets(values=values, num_positions=torch.tensor(num_positions), num_classes=9)


@pytest.mark.parametrize(
    ("mask", "num_positions", "wanted"),
    [
        (None, (3, 3), [1, 2, 3, 4, 5, 6]),
        (MASK, (2, 2), [1, 2, 5, 6]),
        (MASK, (3, 3), [1, 2, 3, 4, 5, 6]),  # a mask of something else: all positions count
        (MASK, (2, 1), None),
        (MASK, (1, 3), None),  # as many together, shared otherwise
        (None, (2, 2), None),
        (MASK[:, :2], (2, 2), None),
    ],
)
def test_labels_are_taken_where_they_are_the_positions(mask, num_positions, wanted):
    found = target_labels(Selected(labels=LABELS, mask=mask), targets(*num_positions))
    assert (None if found is None else found.tolist()) == wanted


@pytest.mark.parametrize("labels", [None, "a", [1, 2], LABELS.float(), LABELS[:1]])
def test_labels_of_another_kind_tell_nothing(labels):
    assert target_labels(Selected(labels=labels), targets(3, 3)) is None
