"""What no fingerprint can see, found before the first sample is dumped or used."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

import kdcache
from kdcache import CachedDataset
from kdcache.data.batch.labels import MAX_NATS
from kdcache.data.join.probes import NUM_PROBES, check_join
from kdcache.data.samples.sources import spread
from kdcache.errors import AlignmentError, FingerprintMismatchError, MismatchError
from tests.data import toys

N = 200


def sorts(samples):
    return default_collate(sorted(samples, key=lambda sample: float(sample[0][0])))


def drops(samples):
    return default_collate(samples[1:])


def drops_now_and_then(samples):
    """Skips what it cannot use, as collate functions that filter None do."""
    return default_collate([sample for sample in samples if float(sample[0][0]) < 1.5])


def duplicates(samples):
    return default_collate([*samples, *samples])


def replaces(samples):
    """Another row in place of a broken one: as many rows, not the same."""
    return default_collate([samples[0], *samples[:-1]])


def crops_randomly(samples):
    images, labels = default_collate(samples)
    start = int(torch.randint(0, 4, ()))
    return images.roll(start, dims=1), labels


def adds_noise(samples):
    images, labels = default_collate(samples)
    return images + 1e-3 * torch.randn_like(images), labels


BAD_COLLATES = {
    sorts: "reorders",
    drops: "rows of",
    drops_now_and_then: "rows of",
    duplicates: "rows of",
    replaces: "reorders",
    crops_randomly: "random",
    adds_noise: "random",
}


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A teacher that is sure and right, and class names."""
    teacher = toys.make_teacher()
    with torch.no_grad():
        teacher.weight *= 5
        teacher.bias *= 5
    return toys.dump(
        tmp_path_factory.mktemp("probes") / "c",
        toys.labelled(N),
        teacher,
        class_names=["ant", "bee", "cat", "dog", "elk"],
        samples_per_shard=N,
    )


def join(dumped, samples=None, **options):
    return CachedDataset(toys.Samples(samples or toys.labelled(N)), dumped, **options)


def test_a_right_dataset_passes(dumped):
    check_join(join(dumped), ("ant", "bee", "cat", "dog", "elk"))
    check_join(join(dumped))


class TestCollate:
    @pytest.mark.parametrize("collate", BAD_COLLATES, ids=lambda collate: collate.__name__)
    def test_at_the_dump(self, collate, cache):
        samples = toys.loader(toys.labelled(N), batch_size=40, collate_fn=collate)
        with pytest.raises(AlignmentError, match=BAD_COLLATES[collate]):
            toys.dump(cache, samples)
        assert not cache.exists()

    @pytest.mark.parametrize("collate", BAD_COLLATES, ids=lambda collate: collate.__name__)
    def test_at_the_join(self, collate, dumped):
        with pytest.raises(AlignmentError, match=BAD_COLLATES[collate]):
            check_join(join(dumped, collate_fn=collate))

    def test_sorting_is_found_where_neighbours_do_not_tell(self, dumped):
        """Neighbours are alike in a dataset that is sorted by what the collate sorts by."""
        places = {tuple(x.tolist()): n // 40 for n, (x, _) in enumerate(toys.labelled(N))}

        def sorts_by_fifth(samples):
            return default_collate(sorted(samples, key=lambda s: -places[tuple(s[0].tolist())]))

        with pytest.raises(AlignmentError, match="reorders"):
            check_join(join(dumped, collate_fn=sorts_by_fifth))

    def test_nan_is_equal_to_itself(self, dumped, cache):
        class Deaf(nn.Module):
            def forward(self, x):
                return x.nan_to_num()

        samples = [(torch.tensor([1.0, float("nan"), n]), 0) for n in range(9)]
        toys.dump(cache, samples, Deaf())
        check_join(CachedDataset(toys.Samples(samples), cache))


class TestRandomDataset:
    class Rarely(toys.Samples):
        """One sample in four is drawn at random: most probes see nothing."""

        def __getitem__(self, index):
            x, y = self.samples[index]
            return (x + torch.rand(()), y) if index % 4 == 1 else (x, y)

    def test_at_the_dump(self, cache):
        with pytest.raises(AlignmentError, match=r"dataset is random: sample \d+, drawn twice"):
            toys.dump(cache, toys.loader(self.Rarely(toys.labelled(N))))
        assert not cache.exists()

    def test_at_the_join(self, dumped):
        joined = CachedDataset(self.Rarely(toys.labelled(N)), dumped)
        with pytest.raises(FingerprintMismatchError, match="dataset is random"):
            check_join(joined)


class TestClassNames:
    @pytest.mark.parametrize(
        ("names", "says"),
        [
            (("ant", "cat", "bee", "dog", "elk"), "class 1 is 'bee' in the cache and 'cat' in"),
            (("ant", "bee", "cat", "dog"), r"class 4 is 'elk' in the cache and '\(none\)'"),
            (("ant", "bee", "cat", "dog", "elk", "fox"), r"class 5 is '\(none\)' in the cache"),
        ],
    )
    def test_in_another_order(self, dumped, names, says):
        with pytest.raises(MismatchError, match=says):
            check_join(join(dumped), names)


class TestCanary:
    def labels_changed(self, change):
        return [(x, change(n, y)) for n, (x, y) in enumerate(toys.labelled(N))]

    def test_labels_of_the_sample_before(self, dumped):
        right = [y for _, y in toys.labelled(N)]
        with pytest.raises(MismatchError, match=r"cross-entropy on this run's labels is \d"):
            check_join(join(dumped, self.labels_changed(lambda n, _: right[n - 1])))

    def test_classes_in_another_order(self, dumped):
        with pytest.raises(MismatchError, match="name different things"):
            check_join(join(dumped, self.labels_changed(lambda _, y: (y + 1) % 5)))

    def test_a_few_other_labels_are_the_users_business(self, dumped):
        check_join(join(dumped, self.labels_changed(lambda n, y: 0 if n == 7 else y)))

    def test_a_tenth_of_the_labels_is_more_than_a_few(self, cache):
        """A quarter of a nat, where as many positions are labelled as at the dump."""
        samples = [(x, 0) for x in toys.vectors(400)]

        class Sure(nn.Module):
            def forward(self, x):
                return torch.tensor([2.5, 0, 0, 0, 0]).expand(len(x), 5)

        toys.dump(cache, samples, Sure())
        wrong = [(x, int(n % 10 == 0)) for n, (x, _) in enumerate(samples)]
        with pytest.raises(MismatchError, match=r"is 0\.5\d\d nats .*at the dump it was 0\.28"):
            check_join(CachedDataset(toys.Samples(wrong), cache))

    def test_no_labels_at_all(self, dumped):
        check_join(join(dumped, self.labels_changed(lambda *_: -100)))
        check_join(join(dumped, [(x,) for x in toys.vectors(N)]))

    def test_a_label_beyond_the_top_k_is_no_alarm(self, cache):
        """Its log-probability is only bounded by the tail's, at the dump as at the join."""

        class Zipf(nn.Module):
            """Half the tail's mass is on one class, and the labels name that one."""

            def forward(self, x):
                logits = torch.full((len(x), 1000), -10.0)
                logits[:, :4] = torch.tensor([3.0, 2.9, 2.8, 2.7])
                logits[:, 4] = 2.6
                return logits

        samples = [(x, 4) for x in toys.vectors(N)]
        toys.dump(cache, samples, Zipf(), codec=kdcache.TopKCodec(k=4))
        check_join(CachedDataset(toys.Samples(samples), cache))

    def test_a_label_in_a_masked_class_is_no_alarm(self, cache):
        class Masks(nn.Module):
            def forward(self, x):
                return torch.cat([x, torch.full((len(x), 1), -torch.inf)], dim=1)

        samples = [(x, 4 if n == 3 else 0) for n, x in enumerate(toys.vectors(N))]
        view = toys.dump(cache, samples, Masks())["train"]
        assert max(c.statistics["cross_entropy"] for c in view.commits) >= MAX_NATS
        check_join(CachedDataset(toys.Samples(samples), cache))

    @pytest.mark.parametrize("is_wrong", [False, True])
    def test_other_positions_that_have_labels_are_another_population(self, cache, is_wrong):
        """A sure teacher; at the dump all is labelled, now only what it finds hard."""
        flat, sure = torch.full((5,), 0.0), torch.tensor([6.0, 0, 0, 0, 0])

        class Teacher(nn.Module):
            def forward(self, x):
                return torch.where(x[:, :1] > 1, flat, sure)

        vectors = toys.vectors(400)
        hard = [bool(x[0] > 1) for x in vectors]
        toys.dump(cache, [(x, 0) for x in vectors], Teacher())
        label = 1 if is_wrong else 0
        kept = [
            (x, 0 if h else (label if n % 2 else -100))
            for n, (x, h) in enumerate(zip(vectors, hard, strict=True))
        ]
        only_hard = [(x, 0 if h else -100) for x, h in zip(vectors, hard, strict=True)]
        if is_wrong:
            with pytest.raises(MismatchError, match="name different things"):
                check_join(CachedDataset(toys.Samples(kept), cache))
        else:
            check_join(CachedDataset(toys.Samples(only_hard), cache))

    @pytest.mark.parametrize("shift", [0, 1])
    def test_labels_of_masked_positions(self, cache, shift):
        """Sentences of uneven lengths: labels are taken where the mask counts a position."""

        class Right(toys.TokenTeacher):
            """Is sure of the token's own class."""

            def forward(self, input_ids, attention_mask):
                return 9.0 * nn.functional.one_hot(input_ids % toys.NUM_CLASSES, 5)

        source = toys.loader(toys.Tokens(), collate_fn=toys.pad_right)
        toys.dump(cache, source, Right())

        def collate(samples):
            batch = toys.pad_right(samples)
            known = batch["labels"] >= 0
            batch["labels"][known] = (batch["labels"][known] + shift) % toys.NUM_CLASSES
            return batch

        joined = CachedDataset(toys.Tokens(), cache, collate_fn=collate)
        if shift:
            with pytest.raises(MismatchError, match="over 38 probed positions"):
                check_join(joined)
        else:
            check_join(joined)


@pytest.mark.parametrize("length", [1, 5, 1023, 1024, 1025, 60_000])
def test_probes_are_spread_over_everything(length):
    found = spread(length, NUM_PROBES)
    assert len(found) == min(length, NUM_PROBES)
    assert (found[0], found[-1]) == (0, length - 1)
    assert found == sorted(set(found))
