"""Heads whose outputs are no distribution over classes on the last axis: refused, not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.errors import DataError
from tests.data import toys

IMAGES = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(6)]


def dump(cache, teacher, samples, **options):
    return toys.dump(cache, toys.loader(samples, 3), teacher, **options)


def test_a_forgotten_class_axis(cache):
    """(B, 5, 8, 8) logits and (B, 8, 8) labels: the last axis has 8 entries, and is not it."""
    samples = [(image, torch.ones(8, 8, dtype=torch.int64)) for image in IMAGES]
    teacher = nn.Conv2d(3, 5, 1)
    with pytest.raises(DataError, match=r"axis 1 seems to hold the classes.*batch\.class_dim"):
        dump(cache, teacher, samples)
    assert not cache.exists()
    mapping = {"inputs": [0], "labels": 1, "class_dim": 1}
    assert dump(cache, teacher, samples, batch=mapping)["train"].manifest.num_classes == 5


def test_a_single_logit(cache):
    samples = [(image.reshape(-1), n % 2) for n, image in enumerate(IMAGES)]
    with pytest.raises(DataError, match="head with one logit"):
        dump(cache, nn.Linear(192, 1), samples)
    assert not cache.exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_several_classes_of_one_sample(cache, dtype):
    several = torch.tensor([1, 0, 1, 1], dtype=dtype)
    samples = [(image.reshape(-1), several) for image in IMAGES]
    with pytest.raises(DataError, match="multi-label heads are not supported"):
        dump(cache, nn.Linear(192, 4), samples)
    assert not cache.exists()


def test_soft_and_one_hot_labels_name_one_class(cache):
    soft = torch.tensor([0.1, 0.2, 0.3, 0.4])
    samples = [(image.reshape(-1), soft) for image in IMAGES]
    assert dump(cache, nn.Linear(192, 4), samples)["train"].is_complete
