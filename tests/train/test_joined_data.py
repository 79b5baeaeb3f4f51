"""What a student's data say of the cache that they are joined with, before anything is trained."""

from __future__ import annotations

import pytest

import kdcache
from kdcache.train.joined_data import Joining, join_data
from tests.train.small import Data, loader, net


@pytest.mark.parametrize(
    ("seed", "precision", "is_said"),
    [(7, "32-true", False), (8, "32-true", True), (7, "bf16-true", True)],
)
def test_a_validation_split_of_another_teacher(tmp_path, caplog, seed, precision, is_said):
    """Dumped on its own, or copied here: scores against it are of that teacher."""
    data = Data(val=loader(40, seed=1))
    options = {"progress": False, "pilot": False}
    kdcache.dump_teacher(net(seed=7), {"train": data.train}, tmp_path / "cache", **options)
    cache = kdcache.dump_teacher(
        net(seed=seed), data.validation, tmp_path / "cache", precision=precision, **options
    )
    caplog.clear()
    join_data(data, cache, Joining())
    text = "split 'val' of " in caplog.text and "was dumped by another teacher" in caplog.text
    assert text == is_said
    assert ("bf16-true" in caplog.text) == (precision == "bf16-true")
