"""Datasets, streams and collate functions that raise: errors name the sample, and what stays."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import IterableDataset, Subset, default_collate

import kdcache
from kdcache import cli
from kdcache.data.samples import sources
from kdcache.errors import AlignmentError, SampleError, paragraph
from tests.data import toys

N, WRONG = 120, 101  # which no probe and no first batch looks at
SAMPLES = toys.labelled(N)
TRUNCATED = "image file is truncated (5 bytes not processed)"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Photos(toys.Samples):
    """One of them is truncated, until it is mended."""

    def __init__(self, samples=SAMPLES, wrong=WRONG, error=None):
        super().__init__(samples)
        self.wrong, self.error = wrong, error or OSError(TRUNCATED)

    def __getitem__(self, index):
        if index == self.wrong:
            raise self.error
        return super().__getitem__(index)


class Batched(Photos):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def part(**options):
    return Subset(Photos(**options), range(N))


class Stream(IterableDataset):
    def __init__(self, wrong=WRONG):
        self.photos = Photos(wrong=wrong)

    def __iter__(self):
        return (self.photos[number] for number in range(N))


class Short(toys.Samples):
    """A wrong __len__, as of a list that was filtered later."""

    def __len__(self):
        return 2 * N


def collate(samples):
    """Fails on a sample of another width, and on it alone only."""
    if any(len(x) != toys.WIDTH for x, _ in samples):
        raise ValueError("expected four features")
    return default_collate(samples)


def message(run):
    """What a person reads on the command line of an error that is about one sample."""
    with pytest.raises(SampleError) as caught:
        run()
    return paragraph(caught.value)


def test_the_dataset_is_not_where_it_is_looked_at_first():
    looked_at = {*sources.spread(N, 32), *range(4)}
    assert WRONG not in looked_at


class TestDump:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("kind", [Photos, Batched, part])
    def test_names_sample_split_error_and_what_stays(self, cache, kind, workers):
        loader = toys.loader(kind(), num_workers=workers)
        text = message(lambda: toys.dump(cache, {"train": toys.loader(SAMPLES), "test": loader}))
        first, where, below = text.splitlines()[0], text.splitlines()[0], text.splitlines()[1]
        assert first.startswith(f"sample {WRONG} of split 'test' cannot be read: ")
        assert "test_unreadable.py:" in where
        assert below == f"  OSError: {TRUNCATED}"
        assert "Traceback" not in text
        # Of shards of 8 samples those before it; the one in hand may have been begun.
        done = len(kdcache.open_cache(cache)["test"].commits)
        assert 0 < done <= WRONG // 8
        assert f"{done} of 15 shards of split 'test' are committed and stay" in text
        mended = toys.loader(kind(wrong=None))
        cache = toys.dump(cache, {"train": toys.loader(SAMPLES), "test": mended})
        assert cache["test"].is_complete

    @pytest.mark.parametrize("wrong", [0, N - 1])
    def test_before_anything_is_written(self, cache, wrong):
        text = message(lambda: toys.dump(cache, Photos(wrong=wrong)))
        assert f"sample {wrong} of split 'train'" in text
        assert "Nothing of split 'train' was written yet; the same command begins it." in text

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_stream(self, cache, workers):
        loader = toys.loader(Stream(), num_workers=workers)
        text = message(lambda: toys.dump(cache, loader, key="content"))
        assert f"sample {WRONG} of split 'train' cannot be read: the stream Stream raised" in text
        assert TRUNCATED in text
        assert "shards of split 'train' are committed and stay" in text
        toys.dump(cache, toys.loader(Stream(wrong=None), num_workers=workers), key="content")
        assert kdcache.open_cache(cache)["train"].is_complete

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_collate_function(self, cache, workers):
        samples = [*SAMPLES[:WRONG], (torch.zeros(5), 0), *SAMPLES[WRONG + 1 :]]
        loader = toys.loader(samples, collate_fn=collate, num_workers=workers)
        text = message(lambda: toys.dump(cache, loader))
        assert f"sample {WRONG} of split 'train' cannot be collated: collate_fn (collate)" in text
        assert "  ValueError: expected four features" in text
        assert "are committed and stay" in text

    def test_a_length_that_is_too_long(self, cache):
        text = message(lambda: toys.dump(cache, Short(SAMPLES)))
        assert "of split 'train' cannot be read: Short raised" in text
        assert "Its __len__ says that there are 240 samples; correct the one that is wrong." in text

    def test_on_the_command_line(self, cache, tmp_path, monkeypatch, capsys):
        (tmp_path / "photo_data.py").write_text(
            "from tests.data.samples import test_unreadable as t\n"
            "from tests.data import toys\n"
            "class Data:\n"
            "    def train_dataloader(self):\n"
            "        return toys.loader(t.Photos(), num_workers=2)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        command = ["dump-teacher", "--data.class_path", "photo_data.Data", "--cache", str(cache)]
        command += ["--teacher.class_path", "tests.data.toys.make_teacher", "--progress", "false"]
        assert cli.main([*command, "--dump.accelerator", "cpu"]) == 1
        shown = capsys.readouterr().err
        assert f"SampleError: sample {WRONG} of split 'train' cannot be read: Photos" in shown
        assert shown.count("Traceback") == 0


class TestTraining:
    """A student's data fails where the teacher's did not."""

    def train(self, cache, dataset, **options):
        loader = toys.loader(dataset, **options)
        kdcache.train_student(
            toys.make_teacher(1),
            loader,
            cache,
            output=cache.parent / "run",
            progress=False,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
        )

    @pytest.mark.parametrize("workers", [0, 2])
    def test_names_the_sample(self, cache, monkeypatch, workers):
        toys.dump(cache, SAMPLES)
        monkeypatch.setattr("kdcache.data.join.probes.NUM_PROBES", 8)
        text = message(lambda: self.train(cache, Photos(), num_workers=workers))
        assert text.startswith(f"sample {WRONG} of split 'train' cannot be read: Photos raised")
        assert TRUNCATED in text

    @pytest.mark.parametrize("workers", [0, 2])
    def test_of_a_validation_set_that_was_not_dumped(self, cache, workers):
        toys.dump(cache, SAMPLES)

        class Data:
            def train_dataloader(self):
                return toys.loader(SAMPLES)

            def val_dataloader(self):
                return {"other": toys.loader(Photos(), num_workers=workers)}

        options = {"trainer": {"max_epochs": 1, "accelerator": "cpu"}, "progress": False}
        run = cache.parent / "run"
        with pytest.raises(SampleError) as caught:
            kdcache.train_student(toys.make_teacher(1), Data(), cache, output=run, **options)
        text = paragraph(caught.value)
        assert text.startswith(f"sample {WRONG} of split 'other' cannot be read: Photos raised at")

    def test_of_a_stream(self, cache, monkeypatch):
        toys.dump(cache, SAMPLES, key="content")
        monkeypatch.setattr("kdcache.data.join.probes.NUM_PROBES", 8)
        text = message(lambda: self.train(cache, Stream(), num_workers=2))
        assert f"sample {WRONG} of split 'train' (as worker " in text

    def test_of_a_collate_function(self, cache):
        toys.dump(cache, SAMPLES)
        joined = kdcache.CachedDataset(toys.Samples(SAMPLES), cache, collate_fn=self.broken)
        with pytest.raises(
            SampleError, match=r"samples 3 to 5 of split 'train' cannot be collated"
        ):
            joined.collate_fn(joined.__getitems__([3, 4, 5]))

    @staticmethod
    def broken(samples):
        raise KeyError("attention_mask")


def test_iteration_over_a_joined_dataset_ends(cache):
    """Python's own protocol: IndexError, and no SampleError, says that there are no more."""
    toys.dump(cache, SAMPLES)
    joined = kdcache.CachedDataset(toys.Samples(SAMPLES), cache)
    assert len(list(joined)) == N
    with pytest.raises(IndexError):
        joined[N]


@pytest.mark.parametrize("wrong", [3, 17, WRONG])
@pytest.mark.parametrize("what", [None, (object(), 1)])
def test_a_sample_without_a_fingerprint(cache, wrong, what):
    """As of a dataset that gives None where it could not read."""
    samples = [*SAMPLES[:wrong], what, *SAMPLES[wrong + 1 :]]
    text = message(lambda: toys.dump(cache, samples))
    assert text.startswith(f"sample {wrong} of split 'train' ")


@pytest.mark.parametrize("wrong", [3, WRONG])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_fingerprint_function_that_raises(cache, wrong, workers):
    def of(sample):
        return sample[0] if not torch.equal(sample[0], SAMPLES[wrong][0]) else sample["id"]

    loader = toys.loader(SAMPLES, num_workers=workers)
    text = message(lambda: toys.dump(cache, loader, fingerprint=of))
    assert text.startswith(f"sample {wrong} of split 'train' has no fingerprint: the fingerprint f")
    assert "test_unreadable.py:" in text.splitlines()[0]
    assert text.splitlines()[1] == "  TypeError: tuple indices must be integers or slices, not str"


def test_a_probed_sample_that_makes_no_batch(cache):
    probed = sources.spread(N, 32)[9]
    samples = [*SAMPLES[:probed], (torch.zeros(5), 0), *SAMPLES[probed + 1 :]]
    text = message(lambda: toys.dump(cache, samples))
    assert f"sample {probed} of split 'train' beside the others of its batch" in text


class TestReading:
    def test_a_batched_fetch_that_only_fails_together(self):
        class Together(toys.Samples):
            def __getitems__(self, indices):
                if len(indices) > 1:
                    raise MemoryError("too many")
                return [self.samples[indices[0]]]

        text = message(lambda: sources.fetch(Together(SAMPLES), [4, 9, 7]))
        assert text.startswith("samples 4 to 7 cannot be read: Together raised")

    def test_samples_that_only_fail_together(self):
        uneven = [(torch.zeros(4), 0), (torch.zeros(5), 0)]
        text = message(lambda: sources.collated(default_collate, uneven, [4, 9], "train"))
        assert "samples 4 to 9 of split 'train' together cannot be collated" in text
        assert "RuntimeError" in text

    @pytest.mark.parametrize("odd", [0, 1, 4])
    def test_a_sample_that_only_fails_beside_others(self, odd):
        samples = [(torch.zeros(5 if n == odd else 4), 0) for n in range(5)]
        text = message(lambda: sources.collated(default_collate, samples, range(10, 15), "train"))
        assert text.startswith(
            f"sample {10 + odd} of split 'train' beside the others of its batch cannot be collated"
        )

    def test_what_kdcache_says_itself_is_left_as_it_is(self):
        error = AlignmentError("of a dataset that is joined already")
        with pytest.raises(AlignmentError, match=r"^of a dataset that is joined already$"):
            sources.fetch(Photos(error=error), [WRONG])

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
    def test_what_is_no_error_is_left_as_it_is(self, error):
        with pytest.raises(type(error)):
            sources.fetch(Photos(error=error), [WRONG])

    def test_a_stream_is_read_as_it_is(self):
        assert list(sources.in_turn(range(5))) == list(range(5))
        assert list(sources.in_turn([])) == []
