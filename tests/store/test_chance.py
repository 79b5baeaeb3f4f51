"""A teacher that knows nothing is said aloud; one of which too little is known is not."""

from __future__ import annotations

import math
import re

import pytest

from kdcache.store.chance import chance_remark


def of(num_classes, labelled, accuracy, entropy=0.5, positions=None, shards=3):
    """Sums of a split, over several shards."""
    positions = labelled if positions is None else positions
    whole = {
        "positions": positions,
        "entropy": entropy * positions,
        "labelled": labelled,
        "correct": accuracy * labelled,
    }
    parts = [{name: value / shards for name, value in whole.items()} for _ in range(shards)]
    return chance_remark(parts, num_classes, "train")


FLAT = 0.99


@pytest.mark.parametrize(
    ("sums", "match"),
    [
        ({"num_classes": 10, "labelled": 5000, "accuracy": 0.103}, "10.30%.*as good as guessing"),
        ({"num_classes": 10, "labelled": 60_000, "accuracy": 0.01}, "less than guessing"),
        ({"num_classes": 1000, "labelled": 50_000, "accuracy": 0.0011}, "among 1,000 classes"),
        ({"num_classes": 2, "labelled": 10_000, "accuracy": 0.505}, "among 2 classes"),
        ({"num_classes": 32_768, "labelled": 200_000, "accuracy": 0.00004}, "among 32,768 classes"),
        (
            {"num_classes": 10, "labelled": 0, "accuracy": 0, "positions": 500, "entropy": 2.29},
            "entropy is 2",
        ),
        (
            {"num_classes": 50_257, "labelled": 9000, "accuracy": 0.05, "entropy": 10.75},
            "entropy is 10.75 nats",
        ),
        # Most labels are of one class: it is often right, and knows nothing.
        (
            {"num_classes": 2, "labelled": 1000, "accuracy": 0.942, "entropy": 0.6816},
            "entropy is 0.6816 nats",
        ),
        (
            {"num_classes": 4, "labelled": 300, "accuracy": 0.3267, "entropy": 1.3862},
            "entropy is 1.386 nats",
        ),
    ],
)
def test_guessing_is_said(sums, match):
    found = of(**sums)
    assert found is not None
    assert re.search(match, found)
    assert "weights were not loaded" in found


@pytest.mark.parametrize(
    "sums",
    [
        {"num_classes": 10, "labelled": 5000, "accuracy": 0.9941},
        {"num_classes": 10, "labelled": 5000, "accuracy": 0.15},
        {"num_classes": 2, "labelled": 10_000, "accuracy": 0.56, "entropy": FLAT * math.log(2)},
        {"num_classes": 4, "labelled": 5000, "accuracy": 0.34, "entropy": FLAT * math.log(4)},
        {"num_classes": 2, "labelled": 1000, "accuracy": 0.942, "entropy": 0.2},
        {"num_classes": 2, "labelled": 1000, "accuracy": 1.0, "entropy": 0.1},
        {"num_classes": 1000, "labelled": 10, "accuracy": 0.0},
        {"num_classes": 50_257, "labelled": 1, "accuracy": 0.0},
        {"num_classes": 2, "labelled": 20, "accuracy": 0.7},  # so few tell nothing
        {"num_classes": 10, "labelled": 5, "accuracy": 0.0},
        {"num_classes": 32_768, "labelled": 10_000, "accuracy": 0.2, "entropy": 6.0},
        {"num_classes": 10, "labelled": 0, "accuracy": 0, "positions": 500, "entropy": 1.5},
        {"num_classes": 10, "labelled": 0, "accuracy": 0, "positions": 0, "entropy": 0},
        {"num_classes": 1, "labelled": 500, "accuracy": 1.0, "entropy": 0.0},
    ],
)
def test_what_knows_something_or_cannot_be_told_is_not(sums):
    assert of(**sums) is None


def test_imported_targets_whose_entropy_is_not_known():
    parts = [{"positions": 100, "entropy": 460.0, "entropy_unknown": 1.0}]
    assert chance_remark(parts, 100, "train") is None
    assert chance_remark([], 100, "train") is None
    assert chance_remark([{}], 100, "train") is None
