"""Any order of writing, racing, dying and reopening leaves the cache equal to a dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdcache.errors import CacheIncompleteError, MismatchError
from kdcache.store import Manifest, ViewWriter, open_cache, open_local_copy
from kdcache.store.format.layout import attempt_folder, new_attempt
from tests.store.synthetic import (
    Shards,
    concatenated,
    equal_bits,
    expected_take,
    files_below,
    manifest,
    random_columns,
)

SPLITS = st.sampled_from(["train", "val", "test.v2"])
SEEDS = st.integers(0, 1 << 30)


class CacheMachine(RuleBasedStateMachine):
    """The model: split -> manifest, and split -> shard -> columns of the first commit."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.cache = self.folder / "cache.zarr"
        self.manifests: dict[str, Manifest] = {}
        self.shards: dict[str, Shards] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def _columns(self, split: str, shard: int, seed: int):
        start, stop = self.manifests[split].shard_range(shard)
        return random_columns(self.manifests[split].columns, stop - start, seed)

    @rule(split=SPLITS, num_samples=st.integers(1, 7), samples_per_shard=st.integers(2, 5))
    def create(self, split, num_samples, samples_per_shard):
        if split in self.manifests:
            num_samples = self.manifests[split].num_samples
        wanted = manifest(split=split, num_samples=num_samples, samples_per_shard=samples_per_shard)
        writer = ViewWriter.create(self.cache, wanted, {})
        # The first writer's shards stand for all.
        first = self.manifests.setdefault(split, wanted)
        self.shards.setdefault(split, {})
        assert writer.manifest.samples_per_shard == first.samples_per_shard

    @precondition(lambda self: self.manifests)
    @rule(data=st.data(), seed=SEEDS)
    def write(self, data, seed):
        """By a writer of its own each time; often a duplicate, with other values."""
        split = data.draw(st.sampled_from(sorted(self.manifests)))
        shard = data.draw(st.integers(0, self.manifests[split].num_shards - 1))
        columns = self._columns(split, shard, seed)
        writer = ViewWriter.create(self.cache, self.manifests[split], {})
        commit = writer.write_shard(shard, columns, {"positions": 1.0})
        assert (commit is None) == (shard in self.shards[split])
        self.shards[split].setdefault(shard, columns)

    @precondition(lambda self: self.manifests)
    @rule(data=st.data(), seed=SEEDS, left=st.sampled_from(["folder", "array", "whole", "record"]))
    def die(self, data, seed, left):
        """What a killed writer leaves behind: an attempt, or half a record under another name."""
        split = data.draw(st.sampled_from(sorted(self.manifests)))
        shard = data.draw(st.integers(0, self.manifests[split].num_shards - 1))
        view = self.cache / split / "view-000"
        attempt = attempt_folder(view, shard, new_attempt())
        if left == "record":
            (view / "commits" / f".shard-{shard:06d}.json.0123456789ab").write_text('{"shard":')
        elif left == "folder":
            attempt.mkdir()
        else:
            other = ViewWriter.create(self.folder / "other", self.manifests[split], {})
            shutil.rmtree(other.folder)
            (other.folder / "commits").mkdir(parents=True)
            commit = other.write_shard(shard, self._columns(split, shard, seed))
            shutil.copytree(attempt_folder(other.folder, shard, commit.attempt), attempt)
            shutil.rmtree(self.folder / "other")
            if left == "array":
                next(path for path in attempt.rglob("0") if path.is_file()).write_bytes(b"half")

    @precondition(lambda self: self.manifests)
    @rule(data=st.data())
    def finish(self, data):
        split = data.draw(st.sampled_from(sorted(self.manifests)))
        writer = ViewWriter.create(self.cache, self.manifests[split], {})
        assert writer.finish() == (len(self.shards[split]) == writer.manifest.num_shards)

    @precondition(lambda self: self.manifests)
    @rule(data=st.data())
    def join_with_other_settings(self, data):
        split = data.draw(st.sampled_from(sorted(self.manifests)))
        before = files_below(self.cache)
        changed = manifest(split=split, num_samples=self.manifests[split].num_samples + 1)
        with pytest.raises(MismatchError):
            ViewWriter.create(self.cache, changed, {})
        assert files_below(self.cache) == before

    @precondition(lambda self: self.manifests)
    @rule(data=st.data())
    def train(self, data):
        split = data.draw(st.sampled_from(sorted(self.manifests)))
        view = open_cache(self.cache)[split]
        if len(self.shards[split]) < view.manifest.num_shards:
            with pytest.raises(CacheIncompleteError):
                open_local_copy(view, self.folder)
            return
        whole = concatenated(self.shards[split])
        samples = data.draw(st.lists(st.integers(0, view.manifest.num_samples - 1)))
        copy = open_local_copy(view, self.folder, in_memory_bytes=data.draw(SEEDS) % 2 * 10**6)
        expected = expected_take(view.manifest.columns, whole, samples)
        assert equal_bits(copy.take(samples), expected)

    @invariant()
    def reads_like_the_dict(self):
        if not self.manifests:
            return
        cache = open_cache(self.cache)
        assert set(cache) == set(self.manifests)
        for split, shards in self.shards.items():
            view = cache[split]
            missing = set(range(view.manifest.num_shards)) - set(shards)
            assert set(view.pending) == missing
            assert [commit.shard for commit in view.commits] == sorted(shards)
            for commit in view.commits:
                assert equal_bits(view.read_shard(commit), shards[commit.shard])


CacheMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
test_any_history = CacheMachine.TestCase
