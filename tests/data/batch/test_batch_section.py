"""``batch:`` from other configuration systems: mappings and sequences of classes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.batch.section import parse_mapping
from kdcache.errors import UsageError
from kdcache.train.results.record import plain


class Names(Mapping):
    """As OmegaConf's DictConfig: a mapping, and no dict."""

    def __init__(self, content):
        self._content = {key: wrapped(value) for key, value in content.items()}

    def __getitem__(self, key):
        return self._content[key]

    def __iter__(self):
        return iter(self._content)

    def __len__(self):
        return len(self._content)


class Items(Sequence):
    """As its ListConfig: a sequence, and neither list nor tuple."""

    def __init__(self, content):
        self._content = [wrapped(value) for value in content]

    def __getitem__(self, index):
        return self._content[index]

    def __len__(self):
        return len(self._content)


def wrapped(value):
    if isinstance(value, dict):
        return Names(value)
    return Items(value) if isinstance(value, list) else value


@pytest.mark.parametrize(
    "spec",
    [
        {"inputs": [0, 1], "labels": 2},
        {"inputs": {"x": "image", "y": "text"}, "labels": "digit", "class_dim": 1},
        {"inputs": ["ids"], "mask": ["mask", "labelled"], "labels": "labels", "causal": True},
        {"inputs": "all", "num_classes": 5},
        {"teacher": {"inputs": [0]}, "student": {"inputs": [1], "labels": 2}},
    ],
)
def test_containers_of_any_class_say_what_plain_ones_say(spec):
    found, expected = parse_mapping(wrapped(spec), "student"), parse_mapping(spec, "student")
    assert found == expected
    assert isinstance(found, BatchMapping)
    assert found.describe() == expected.describe()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ({"inputs": []}, "batch.inputs is empty"),
        ({"inputs": [0.5]}, r"not \[0.5\]"),
        ({"input": [0]}, "Did you mean 'inputs'"),
    ],
)
def test_what_is_wrong_in_them_is_said_as_of_plain_ones(spec, match):
    with pytest.raises(UsageError, match=match):
        parse_mapping(wrapped(spec), "student")


def test_a_sequence_is_no_mapping():
    with pytest.raises(UsageError, match=r"batch: is a mapping or a class path, not \[0, 1\]"):
        parse_mapping(Items([0, 1]), "student")


def test_they_stand_in_the_record_as_plain_values():
    assert plain(wrapped({"losses": {"kd_loss": 1.0}, "devices": [0, 1]})) == {
        "losses": {"kd_loss": 1.0},
        "devices": [0, 1],
    }
