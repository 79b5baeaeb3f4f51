"""Streams: dumped in blocks up to their end, and joined by key, in whatever order they come."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import kdcache
from kdcache import CachedDataset, CachedStream
from kdcache.errors import AlignmentError, CacheIncompleteError, DataError, SampleError
from kdcache.store import open_cache
from kdcache.store.report import report_text
from kdcache.tools.verify import verify_cache
from tests.data import toys

N = 83
SAMPLES = toys.labelled(N)


class Stream(IterableDataset):
    """A list, one after another; divides itself among DataLoader workers, and may break."""

    def __init__(self, samples=SAMPLES, breaks_after=None):
        self.samples = samples
        self.breaks_after = breaks_after

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from self.samples[first : self.breaks_after : step]
        if self.breaks_after is not None:
            raise OSError("the connection was lost")


class Shuffled(Stream):
    """Another order every time."""

    def __iter__(self):
        return iter([self.samples[n] for n in torch.randperm(len(self.samples))])


def dump(cache, stream=None, **options):
    loader = DataLoader(stream or Stream(), batch_size=4, **options.pop("loader", {}))
    return toys.dump(cache, loader, key="content", **options)


def rows(cache):
    """Digests of every column of every shard."""
    return [
        {name: array.digest for name, array in commit.arrays.items()}
        for commit in cache["train"].commits
    ]


class TestDump:
    @pytest.mark.parametrize("length", [1, 4, 8, 40, 41, 43])
    def test_of_every_length_is_complete_and_right(self, cache, length):
        dumped = dump(cache, Stream(SAMPLES[:length]))
        assert dumped["train"].manifest.num_samples == length
        assert verify_cache(cache).samples == length
        assert verify_cache(cache).is_sound
        joined = CachedStream(Stream(SAMPLES[:length]), dumped)
        loader = DataLoader(joined, batch_size=3, collate_fn=joined.collate_fn)
        toys.assert_joined_equals_live(loader, toys.live_linear)

    def test_is_the_dump_of_the_same_samples_by_number(self, cache, tmp_path):
        numbered = toys.dump(tmp_path / "numbered", SAMPLES, key="content")
        assert rows(dump(cache)) == rows(numbered)

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_workers_do_not_divide_it(self, cache, tmp_path, num_workers):
        dumped = dump(cache, loader={"num_workers": num_workers})
        assert rows(dumped) == rows(dump(tmp_path / "alone"))

    def test_in_parts(self, cache, tmp_path):
        for part in ("1/3", "0/3", "2/3"):
            dumped = dump(cache, part=part)
            assert dumped["train"].is_complete == (part == "2/3")
        assert rows(dumped) == rows(dump(tmp_path / "alone"))

    def test_an_empty_one(self, cache):
        with pytest.raises(DataError, match="'train' is empty"):
            dump(cache, Stream([]))

    def test_that_is_random_is_refused(self, cache):
        with pytest.raises(AlignmentError, match="the dataset is random"):
            dump(cache, Shuffled())

    def test_again_is_reused(self, cache):
        before = dump(cache)["train"].digest
        assert dump(cache)["train"].digest == before


class TestResume:
    @pytest.fixture
    def broken(self, cache):
        """A dump that was interrupted after 48 samples; 40 are there."""
        with pytest.raises(SampleError, match=r"(?s)sample 50 .*connection was lost"):
            dump(cache, Stream(breaks_after=50))
        return open_cache(cache)

    def test_goes_on_after_what_is_there(self, broken, cache, tmp_path):
        attempts = [commit.attempt for commit in broken["train"].commits]
        assert len(attempts) == 5
        dumped = dump(cache)
        assert [commit.attempt for commit in dumped["train"].commits[:5]] == attempts
        assert rows(dumped) == rows(dump(tmp_path / "whole"))

    def test_until_then_it_is_not_complete(self, broken, cache):
        assert not broken["train"].is_complete
        with pytest.raises(CacheIncompleteError, match="the end of the stream was not reached"):
            CachedStream(Stream(), cache)
        assert "40 of a stream" in report_text(open_cache(cache).inspect(), 80)
        assert verify_cache(cache).problems == ("train: the end of the stream was not reached",)

    def test_with_another_order_is_refused(self, broken, cache):
        other = [*SAMPLES[:33], SAMPLES[34], SAMPLES[33], *SAMPLES[35:]]
        with pytest.raises(AlignmentError, match="sample 33 of the stream is not what it was"):
            dump(cache, Stream(other))
        assert len(open_cache(cache)["train"].commits) == 5

    @pytest.mark.parametrize(("length", "says"), [(82, "after 82"), (60, "after 60"), (35, "35")])
    def test_with_another_length_is_refused(self, cache, length, says):
        view = dump(cache)["train"]
        for name in ("commits/shard-000002.json", "index.json"):
            (view.folder / name).unlink()
        with pytest.raises(AlignmentError, match=says):
            dump(cache, Stream(SAMPLES[:length]))


class TestJoin:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_in_another_order_and_in_parts(self, cache, num_workers):
        dumped = dump(cache)
        joined = CachedStream(Stream(SAMPLES[::-2]), dumped)
        loader = joined.loader_like(DataLoader(joined.dataset, 5, num_workers=num_workers))
        batches = toys.assert_joined_equals_live(loader, toys.live_linear)
        assert sum(len(labels) for _, labels in batches) == 42

    def test_of_a_numbered_dataset_with_a_streams_cache_and_the_other_way(self, cache, tmp_path):
        joined = CachedDataset(toys.Samples(SAMPLES[5:]), dump(cache))
        toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)
        numbered = toys.dump(tmp_path / "numbered", SAMPLES, key="content")
        stream = CachedStream(Shuffled(), numbered)
        loader = stream.loader_like(DataLoader(stream.dataset, 5))
        toys.assert_joined_equals_live(loader, toys.live_linear)

    def test_a_sample_that_the_teacher_never_saw(self, cache):
        dumped = dump(cache)
        stream = Stream([*SAMPLES[:7], (torch.zeros(toys.WIDTH), 0)])
        joined = CachedStream(stream, dumped)
        with pytest.raises(AlignmentError, match="sample 7 is not in split 'train'"):
            list(joined.loader_like(DataLoader(stream, 4)))

    def test_trains_a_student(self, cache, tmp_path):
        dump(cache)
        run = kdcache.train_student(
            toys.make_teacher(seed=1),
            DataLoader(Shuffled(), batch_size=8),
            cache,
            output=tmp_path / "run",
            progress=False,
            learning_rate=0.05,
            trainer={"max_epochs": 30, "accelerator": "cpu"},
        )
        assert run.losses["kd_loss"] < 0.05


class Undivided(Stream):
    """The whole list in every worker, as datasets are that do not know of workers."""

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", [Stream, Undivided])
def test_workers_that_each_read_the_whole_stream(cache, capfd, kind, workers):
    dumped = dump(cache)
    joined = CachedStream(kind(), dumped["train"])
    loader = joined.loader_like(DataLoader(kind(), batch_size=5, num_workers=workers))
    logger, handler = logging.getLogger("kdcache"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)  # in workers, whose records no fixture sees
    try:
        for _ in range(2):  # epochs: a sample that comes in both has not come twice
            found = sum(len(batch[0]) for batch, _ in loader)
    finally:
        logger.removeHandler(handler)
    is_repeated = kind is Undivided and workers == 2
    assert found == (2 * N if is_repeated else N)
    said = capfd.readouterr().err
    assert ("samples of the stream came more than once" in said) == is_repeated
    assert ("from 2 workers" in said) == is_repeated
