"""A dataset that is not the dumped one: refused by the sample's name, with the likely cause."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from kdcache import CachedDataset, CachedStream
from kdcache.errors import (
    AlignmentError,
    DataError,
    FingerprintMismatchError,
    UsageError,
    paragraph,
)
from tests.data import toys

N = 22
SAMPLES = toys.labelled(N)
OTHERS = toys.labelled(N, seed=1)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    return toys.dump(
        tmp_path_factory.mktemp("refusals") / "c",
        {"train": toys.loader(SAMPLES), "val": toys.loader(OTHERS)},
    )


class Random(toys.Samples):
    def __getitem__(self, index):
        x, y = self.samples[index]
        return x + torch.rand(()), y


def changed(index, change):
    samples = list(SAMPLES)
    samples[index] = (change(samples[index][0]), samples[index][1])
    return samples


# name -> dataset, the sample that is named, the cause that is named
WRONG = {
    "shifted by one": (toys.Samples([OTHERS[0], *SAMPLES[:-1]]), 0, "of split 'val'"),
    "shifted back": (toys.Samples([*SAMPLES[1:], OTHERS[0]]), 0, "sample 0 now as sample 1"),
    "reordered": (toys.Samples(SAMPLES[::-1]), 0, "sample 0 now as sample 21"),
    "one swap": (
        toys.Samples([*SAMPLES[:8], SAMPLES[9], SAMPLES[8], *SAMPLES[10:]]),
        8,
        "sample 8 now as sample 9",
    ),
    "edited": (toys.Samples(changed(17, lambda x: x + 0.5)), 17, "edited"),
    "one bit": (
        toys.Samples(changed(4, lambda x: torch.nextafter(x, x + 1))),
        4,
        "edited, or its decoding",
    ),
    "another dtype": (toys.Samples(changed(4, lambda x: x.double())), 4, "edited"),
    "re-encoded": (
        toys.Samples([((x * 64).round() / 64, y) for x, y in SAMPLES]),
        0,
        r"reference sample 0: values differ by up to 0\.00",
    ),
    "resized": (toys.Samples([(x[:2], y) for x, y in SAMPLES]), 0, r"shape was \[4\], is \[2\]"),
    "random": (Random(SAMPLES), 0, "dataset is random"),
    "another split": (toys.Samples(OTHERS), 0, "sample 0 of split 'val': wrong split"),
}


@pytest.mark.parametrize(
    ("name", "num_workers"), [*((name, 0) for name in WRONG), ("edited", 1), ("random", 1)]
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_dataset_that_is_not_the_dumped_one(name, num_workers, dumped):
    dataset, number, cause = WRONG[name]
    joined = CachedDataset(dataset, dumped)
    with pytest.raises(FingerprintMismatchError) as caught:
        list(toys.joined_loader(joined, 4, num_workers=num_workers))
    text = paragraph(caught.value)
    assert text.startswith(f"sample {number} of split 'train' is not what the teacher saw")
    assert "Traceback" not in text
    assert re.search(cause, text)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([*SAMPLES, OTHERS[0]], "23 samples.* 22: it is longer .*sample 22 is the first"),
        (SAMPLES[:-1], "21 samples.* 22: it is shorter .*sample 21 is the first"),
        ([], "0 samples"),
    ],
)
def test_another_length(samples, says, dumped):
    with pytest.raises(AlignmentError, match=f"(?s){says}"):
        CachedDataset(toys.Samples(samples), dumped)


def test_only_the_samples_that_are_drawn_are_checked(dumped):
    joined = CachedDataset(toys.Samples(changed(17, lambda x: x + 1)), dumped)
    toys.assert_joined_equals_live(
        DataLoader(joined, batch_sampler=[[16, 18], [3]], collate_fn=joined.collate_fn),
        toys.live_linear,
    )


def test_the_one_override(dumped):
    joined = CachedDataset(toys.Samples(OTHERS), dumped, check_fingerprints=False)
    batch = joined.collate_fn(joined.__getitems__([2, 0]))
    expected = toys.make_teacher()(torch.stack([SAMPLES[2][0], SAMPLES[0][0]])).detach()
    torch.testing.assert_close(batch.targets.logits(), expected)


class TestCollation:
    @pytest.mark.parametrize("size", [1, 3, 5])
    def test_that_makes_another_number_of_rows(self, dumped, size):
        def collate(samples):
            return torch.zeros(size, toys.WIDTH), torch.zeros(size, dtype=torch.int64)

        joined = CachedDataset(toys.Samples(SAMPLES), dumped, collate_fn=collate)
        with pytest.raises(AlignmentError, match=f"made {size} rows of 4 samples"):
            next(iter(toys.joined_loader(joined, 4)))

    @pytest.mark.parametrize(("label", "num_workers"), [(-1, 0), (toys.NUM_CLASSES, 0), (10**6, 1)])
    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_of_a_label_that_is_no_class(self, dumped, label, num_workers):
        samples = list(SAMPLES)
        samples[9] = (samples[9][0], label)
        joined = CachedDataset(toys.Samples(samples), dumped)
        with pytest.raises(DataError) as caught:
            list(toys.joined_loader(joined, 4, num_workers=num_workers))
        assert paragraph(caught.value).startswith(f"sample 9 has the label {label}; the teacher")

    def test_of_labels_that_are_not_known(self, dumped):
        joined = CachedDataset(toys.Samples([(x, -100) for x, _ in SAMPLES]), dumped)
        toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)

    def test_labels_without_a_row_for_each_sample(self, dumped):
        joined = CachedDataset(
            toys.Samples(SAMPLES),
            dumped,
            collate_fn=lambda s: (torch.zeros(2, 4), torch.tensor([9])),
        )
        with pytest.raises(DataError, match=r"one of the samples \[6, 7\] has the label 9"):
            joined.collate_fn(joined.__getitems__([6, 7]))


class TestStreams:
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(SAMPLES)

    def test_as_a_dataset(self, dumped):
        with pytest.raises(UsageError, match=r"Stream is a stream.*kdcache\.CachedStream"):
            CachedDataset(self.Stream(), dumped)

    def test_batches_made_by_the_dataset(self, dumped):
        joined = CachedDataset(toys.Samples(SAMPLES), dumped)
        with pytest.raises(DataError, match="batch_size=None"):
            joined.loader_like(DataLoader(toys.Samples(SAMPLES), batch_size=None))

    def test_without_keys_at_the_join(self, dumped):
        with pytest.raises(UsageError, match=r"a stream have none.*key: content"):
            CachedStream(self.Stream(), dumped)

    def test_without_keys_at_the_dump(self, cache):
        with pytest.raises(UsageError, match=r"have no numbers.*key: content"):
            toys.dump(cache, DataLoader(self.Stream(), batch_size=4))
        assert not cache.exists()

    @pytest.mark.parametrize("dataset", [toys.Samples(SAMPLES), Stream()])
    def test_batches_made_by_the_dataset_at_the_dump(self, cache, dataset):
        with pytest.raises(DataError, match="batch_size=None"):
            toys.dump(cache, DataLoader(dataset, batch_size=None), key="content")
        assert not cache.exists()


class TestForeignSettings:
    def test_a_fingerprint_function_must_be_named_again(self, cache):
        toys.dump(cache, SAMPLES, fingerprint=first_number)
        with pytest.raises(UsageError, match=r"first_number.*Name the same function"):
            CachedDataset(toys.Samples(SAMPLES), cache)
        # What it does not look at may change.
        edited = [(torch.cat([x[:1], x[1:] + 1]), y) for x, y in SAMPLES]
        joined = CachedDataset(toys.Samples(edited), cache, fingerprint=first_number)
        joined.__getitems__(range(N))
        joined = CachedDataset(
            toys.Samples(changed(2, lambda x: x + 1)), cache, fingerprint=first_number
        )
        with pytest.raises(FingerprintMismatchError, match="sample 2"):
            joined.__getitems__(range(N))


def first_number(sample):
    return sample[0][0]
