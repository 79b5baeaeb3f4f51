"""Plain arguments: what is taken, and what it becomes."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache import values
from kdcache.errors import UsageError


@pytest.mark.parametrize("value", [True, False, np.bool_(True)])
def test_flags(value):
    assert values.flag(value, "extend") is bool(value)


@pytest.mark.parametrize("value", ["no", 0, 1, None, np.int64(1)])
def test_what_is_no_flag(value):
    with pytest.raises(UsageError, match="extend is True or False, not"):
        values.flag(value, "extend")


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value):
    found = values.whole_number(value, "devices")
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [3.0, "3", True, None, 0, -1, np.float32(3), np.bool_(True)])
def test_what_is_no_whole_number(value):
    with pytest.raises(UsageError, match="devices is a whole number, at least 1, not"):
        values.whole_number(value, "devices")


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3)])
def test_numbers(value):
    found = values.number(value, "grace_s")
    assert (found, type(found)) == (3.0, float)


@pytest.mark.parametrize("value", ["3", True, None, [3]])
def test_what_is_no_number(value):
    with pytest.raises(UsageError, match="grace_s is a number, not"):
        values.number(value, "grace_s")


@pytest.mark.parametrize("value", [["a", "b"], ("a", "b"), np.array(["a", "b"]), {"a": 1, "b": 2}])
def test_texts(value):
    assert values.texts(value, "class_names") == ("a", "b")


@pytest.mark.parametrize("value", ["ab", 3, None, [0, 1], ["a", None], [None]])
def test_what_are_no_texts(value):
    with pytest.raises(UsageError, match="class_names is a list of texts"):
        values.texts(value, "class_names")


@pytest.mark.parametrize(
    ("given", "meant"),
    [(16, "16-mixed"), ("16", "16-mixed"), (32, "32-true"), ("16-true", "16-true"), (8, "8")],
)
def test_precisions(given, meant):
    assert values.precision(given, "precision") == meant


@pytest.mark.parametrize("given", [True, None, 16.0, b"16"])
def test_what_is_no_precision(given):
    with pytest.raises(UsageError, match="precision is one of Lightning's"):
        values.precision(given, "precision")
