"""The vocabulary's digest: the same for the same ids and tokens, another one for any others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, Subset

from kdcache.data.samples.vocabulary import check_vocabulary, find_vocabulary, vocabulary_digest
from kdcache.errors import MismatchError


def tokenizer(*tokens, ids=None):
    ids = range(len(tokens)) if ids is None else ids
    vocabulary = dict(zip(tokens, ids, strict=True))
    return SimpleNamespace(get_vocab=lambda: vocabulary)


BASE = tokenizer("a", "bc", "d")


@pytest.mark.parametrize(
    "other",
    [
        tokenizer("bc", "a", "d"),
        tokenizer("ab", "c", "d"),
        tokenizer("a", "bc", "d", ids=[0, 1, 3]),
        tokenizer("a", "bc"),
        tokenizer("a", "bc", "d", "e"),
    ],
    ids=["order", "cut", "id", "shorter", "longer"],
)
def test_any_difference_is_another_digest(other):
    assert vocabulary_digest(other) != vocabulary_digest(BASE)


def test_what_tells_nothing_of_the_ids_changes_nothing():
    assert vocabulary_digest(tokenizer("d", "a", "bc", ids=[2, 0, 1])) == vocabulary_digest(BASE)
    assert vocabulary_digest(tokenizer(b"a", b"bc", b"d")) == vocabulary_digest(BASE)


class Texts(list):
    tokenizer = BASE


class Collate:
    tokenizer = BASE

    def __call__(self, samples):
        return samples


@pytest.mark.parametrize(
    ("data", "loader"),
    [
        (SimpleNamespace(tokenizer=BASE), DataLoader([1])),
        (None, DataLoader(Subset(Subset(Texts([1, 2]), [0, 1]), [0]))),
        (SimpleNamespace(tokenizer="by name"), DataLoader([1], collate_fn=Collate())),
    ],
    ids=["data", "dataset", "collate_fn"],
)
def test_a_tokenizer_is_found_where_it_may_be(data, loader):
    assert find_vocabulary(data, loader) == vocabulary_digest(BASE)


def test_no_tokenizer_is_no_digest():
    assert find_vocabulary(None, DataLoader([1])) == ""


def test_only_what_both_sides_know_is_compared():
    check_vocabulary("", "xxh3:1")
    check_vocabulary("xxh3:1", "")
    check_vocabulary("xxh3:1", "xxh3:1")
    with pytest.raises(MismatchError, match=r"is xxh3:2 in this run and was xxh3:1 at the dump"):
        check_vocabulary("xxh3:1", "xxh3:2")
