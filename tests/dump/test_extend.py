"""A dataset that has grown at its end: only what is new goes through the teacher."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import kdcache
from kdcache.errors import FingerprintMismatchError, MismatchError
from kdcache.store import open_cache, open_local_copy
from kdcache.tools.verify import verify_cache
from tests.data import toys

SAMPLES = toys.labelled(60)
OLD = 27


class Counting(nn.Module):
    """Counts the samples that it sees."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = toys.make_teacher(), 0

    def forward(self, x):
        self.seen += len(x)
        return self.inner(x)


def assert_right(cache, samples):
    joined = kdcache.CachedDataset(toys.Samples(samples), cache)
    toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)


@pytest.mark.parametrize("lengths", [(OLD, 28), (OLD, 60), (24, 40), (1, 9), (OLD, 30, 31, 60)])
def test_only_what_is_new_is_dumped(cache, lengths):
    toys.dump(cache, SAMPLES[: lengths[0]])
    for before, length in itertools.pairwise(lengths):
        attempts = [commit.attempt for commit in open_cache(cache)["train"].commits]
        dumped = toys.dump(cache, SAMPLES[:length], extend=True)
        commits = dumped["train"].commits
        assert [commit.attempt for commit in commits[: len(attempts)]] == attempts
        assert commits[len(attempts)].start == before
        assert commits[-1].stop == length
        assert verify_cache(cache).is_sound
        assert_right(cache, SAMPLES[:length])
    assert open_cache(cache)["train"].manifest.extended_from == lengths[:-1]


def test_the_teacher_only_sees_probes_and_what_is_new(cache):
    toys.dump(cache, SAMPLES[:OLD], Counting())
    alone = Counting()
    toys.dump(cache.with_name("new"), SAMPLES, alone)
    grown = Counting()
    toys.dump(cache, SAMPLES, grown, extend=True)
    assert grown.seen < alone.seen


def test_in_parts_and_resumed(cache):
    toys.dump(cache, SAMPLES[:OLD])
    for part in ("1/2", "0/2"):
        dumped = toys.dump(cache, SAMPLES, extend=True, part=part)
    assert dumped["train"].is_complete
    assert dumped["train"].manifest.extended_from == (OLD,)
    assert_right(cache, SAMPLES)
    digest = dumped["train"].digest
    assert toys.dump(cache, SAMPLES)["train"].digest == digest  # without --extend, too


def test_a_factory_is_called_for_what_is_new(cache):
    toys.dump(cache, SAMPLES[:OLD], toys.make_teacher)
    dumped = toys.dump(cache, SAMPLES, toys.make_teacher, extend=True)
    assert dumped["train"].is_complete


def test_copies_of_other_splits_stay_valid(cache, tmp_path):
    loaders = {"train": toys.loader(SAMPLES[:OLD]), "test": toys.loader(SAMPLES[50:])}
    dumped = toys.dump(cache, loaders)
    digest = dumped["train"].digest
    copy = open_local_copy(dumped["test"], tmp_path / "copies", in_memory_bytes=0)
    grown = toys.dump(cache, {**loaders, "train": toys.loader(SAMPLES)}, extend=True)
    again = open_local_copy(grown["test"], tmp_path / "copies", in_memory_bytes=0)
    assert again.location == copy.location
    assert grown["train"].digest != digest


def test_without_being_asked_it_is_refused_with_the_way_out(cache):
    toys.dump(cache, SAMPLES[:OLD])
    with pytest.raises(MismatchError, match=r"(?s)num_samples.*--extend dumps only those"):
        toys.dump(cache, SAMPLES)


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (SAMPLES[10:], {}),
        ([*SAMPLES[5:30], *SAMPLES[:5], *SAMPLES[30:]], {}),
        (SAMPLES, {"codec": kdcache.DenseCodec()}),
        (SAMPLES, {"teacher": toys.make_teacher(seed=3)}),
    ],
    ids=["front cut off", "reordered", "other codec", "other teacher"],
)
def test_what_is_there_must_be_the_same(cache, samples, options):
    toys.dump(cache, SAMPLES[:OLD])
    before = open_cache(cache)["train"].digest
    with pytest.raises(MismatchError):
        toys.dump(cache, samples, extend=True, **options)
    assert open_cache(cache)["train"].digest == before


def test_a_shorter_dataset_is_no_extension(cache):
    toys.dump(cache, SAMPLES)
    with pytest.raises(MismatchError, match="num_samples"):
        toys.dump(cache, SAMPLES[:OLD], extend=True)


def test_an_edited_sample_in_between_is_found_at_the_join(cache):
    """The dump only probes what is there; every sample is checked when it is joined."""
    toys.dump(cache, SAMPLES[:OLD])
    toys.dump(cache, SAMPLES, extend=True)
    edited = list(SAMPLES)
    edited[11] = (torch.zeros(toys.WIDTH), 0)
    with pytest.raises(FingerprintMismatchError, match="sample 11"):
        assert_right(cache, edited)
