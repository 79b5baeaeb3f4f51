"""The teacher, asked again: what is stored is what it says, or the difference has a name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.data.batch.mapping import BatchMapping
from kdcache.dump import DumpJob, run_job
from kdcache.dump.recompute import TOLERANCE_NATS, recompute
from kdcache.errors import (
    AlignmentError,
    CacheMissingError,
    FingerprintMismatchError,
    UsageError,
)
from kdcache.store import open_cache
from tests.data import toys
from tests.dump.adaptive_codec import AdaptiveCodec
from tests.dump.measurements.test_statistics import exact_kl

N = 50


def job_of(cache, samples=None, **options):
    settings = {
        "teacher": toys.make_teacher(),
        "loaders": {"train": toys.loader(samples or toys.labelled(N), batch_size=4)},
        "cache": cache,
        "samples_per_shard": 10,
        "accelerator": "cpu",
        "progress": False,
    }
    return DumpJob(**{**settings, **options})


def dumped(cache, **options):
    job = job_of(cache, **options)
    run_job(lambda: job, cache=job.cache)
    return job


def nudged(by=0.1):
    """One weight of the teacher's, changed."""
    teacher = toys.make_teacher()
    with torch.no_grad():
        teacher.weight[0, 0] += by
    return teacher


CODECS = [DenseCodec(dtype="float32"), DenseCodec(), DenseCodec(dtype="bfloat16"), TopKCodec(k=2)]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}-{codec.dtype}")
def test_the_same_teacher_says_the_same(cache, codec):
    job = dumped(cache, codec=codec)
    (found,) = recompute(job, 3)
    assert (found.split, found.drawn, found.changed, found.drifted) == ("train", 3, {}, False)
    # Shards of ten samples, batches of four: the third of a shard has two.
    assert 1 <= found.batches == found.identical_batches <= 3
    assert found.samples == found.positions <= 12
    assert set(dataclasses.astuple(found.drift)) == {0.0}
    is_lossless = codec.dtype == "float32"
    assert (found.codec.max_kl == 0) == is_lossless
    assert 0 <= found.codec.mean_kl <= found.codec.max_kl < 1e-4


def test_the_same_seed_draws_the_same_and_another_one_others(cache):
    """Seen by which batches are run."""
    job = dumped(cache)
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toys.make_teacher()

        def forward(self, x):
            seen[-1].add(tuple(x[:, 0].tolist()))
            return self.inner(x)

    for seed in (1, 1, 2):
        seen.append(set())
        recompute(dataclasses.replace(job, teacher=Watched()), 4, seed=seed)
    assert seen[0] == seen[1] != seen[2]


def test_batches_are_those_of_the_dump(cache):
    """A teacher whose output depends on the batch is the same only in the same batches."""

    class OfItsBatch(nn.Module):
        def forward(self, x):
            return x + x.mean(0)

    samples = list(toys.vectors(N))
    dumped(cache, samples=samples, teacher=OfItsBatch())
    loaders = {"train": toys.loader(samples, batch_size=25)}
    (found,) = recompute(job_of(cache, teacher=OfItsBatch(), loaders=loaders), N)
    assert found.samples == N
    assert found.drift.max_kl == 0
    assert found.changed == {"batch_size": (4, 25)}


def test_a_nudged_weight_is_named_and_its_drift_measured(cache):
    dumped(cache, codec=toys.LOSSLESS)
    (found,) = recompute(job_of(cache, codec=toys.LOSSLESS, teacher=nudged()), N)
    assert set(found.changed) == {"identity.teacher.weights"}
    inputs = toys.vectors(N)
    with torch.no_grad():
        log_p, log_q = (
            teacher(inputs).double().log_softmax(-1) for teacher in (toys.make_teacher(), nudged())
        )
    expected = exact_kl(log_p, log_q)
    assert found.drift.mean_kl == pytest.approx(expected.mean().item(), rel=1e-3)
    assert found.drift.max_kl == pytest.approx(expected.max().item(), rel=1e-3)
    gap = (log_p.exp() - log_q.exp()).abs().max().item()
    assert found.drift.max_difference == pytest.approx(gap, rel=1e-3)
    # Without a loss, what is stored is as far from the logits as it is from what would be stored.
    assert found.codec.mean_kl == pytest.approx(exact_kl(log_q, log_p).mean().item(), rel=1e-3)
    assert found.identical_batches < found.batches


@pytest.mark.parametrize(("by", "drifted"), [(1e-4, False), (2.0, True)])
def test_the_tolerance(cache, by, drifted):
    dumped(cache)
    (found,) = recompute(job_of(cache, teacher=nudged(by)), N)
    assert found.drifted == drifted == (found.drift.mean_kl > TOLERANCE_NATS)
    assert found.changed


def test_top_k_where_other_classes_are_kept_now(cache):
    """The ids differ; shares of the bucket stand for what was not kept."""
    turned = toys.make_teacher()
    with torch.no_grad():
        turned.weight.copy_(turned.weight.roll(1, 0))
        turned.bias.copy_(turned.bias.roll(1, 0))
    dumped(cache, codec=TopKCodec(k=2))
    (found,) = recompute(job_of(cache, codec=TopKCodec(k=2), teacher=turned), N)
    assert found.drifted
    assert 0.05 < found.drift.mean_kl < found.drift.max_kl <= 80
    assert 0.05 < found.drift.max_difference <= 1


def test_settings_that_differ_are_told_field_by_field(cache):
    dumped(cache, class_names=("a", "b", "c", "d", "e"))
    options = {
        "codec": TopKCodec(k=3),
        "class_names": ("b", "a", "c", "d", "e"),
        "mapping": BatchMapping(inputs=(0,)),
        "fingerprint": "sample",
        "precision": "bf16-mixed",
    }
    (found,) = recompute(job_of(cache, **options), N)
    assert {
        "codec.name",
        "codec.k",
        "codec.temperatures",
        "identity.class_names",
        "identity.batch",
        "identity.precision",
        "fingerprint.source",
    } < set(found.changed)
    assert found.changed["identity.precision"] == ("32-true", "bf16-mixed")
    # The cache's own codec is used, whatever the run would use: what is left is the precision.
    assert 0 < found.drift.mean_kl < TOLERANCE_NATS
    assert not found.drifted


def test_a_dataset_that_has_grown_is_told_and_what_was_dumped_is_compared(cache):
    dumped(cache)
    (found,) = recompute(job_of(cache, toys.labelled(N) + toys.labelled(3, seed=1)), N)
    assert found.changed["num_samples"] == (N, N + 3)
    assert found.samples == N
    assert found.drift.max_kl == 0


def test_a_dataset_that_has_shrunk_is_compared_as_far_as_it_goes(cache):
    dumped(cache)
    (found,) = recompute(job_of(cache, toys.labelled(N)[:17]), N)
    assert found.changed["num_samples"] == (N, 17)
    assert found.samples == 14  # 10 of the first shard, and one whole batch of the second
    assert found.drift.max_kl == 0
    with pytest.raises(AlignmentError, match="has 3 samples, fewer than the first batch"):
        recompute(job_of(cache, toys.labelled(N)[:3]), N)


def test_a_sample_that_the_teacher_did_not_see_is_named(cache):
    dumped(cache)
    samples = toys.labelled(N)
    samples[23] = (samples[23][0] + 1, samples[23][1])
    with pytest.raises(FingerprintMismatchError, match=r"sample 23 of split 'train' .*1 of 4"):
        recompute(job_of(cache, samples), N)


def test_a_mask_that_counts_other_positions_is_named(cache):
    def collate(samples, side):
        batch = toys.pad(samples, side="right")
        batch["attention_mask"][2, side:] = 0
        return batch

    def loader(limit):
        return DataLoader(toys.Tokens(), batch_size=4, collate_fn=lambda s: collate(s, limit))

    options = {"teacher": toys.TokenTeacher(), "samples_per_shard": 8}
    dumped(cache, loaders={"train": loader(9)}, **options)
    job = job_of(cache, loaders={"train": loader(5)}, **options)
    with pytest.raises(AlignmentError, match="sample 2 of split 'train' has 5 positions now, 7 "):
        recompute(job, 99)


def test_variable_lengths(cache):
    loaders = {"train": DataLoader(toys.Tokens(), batch_size=3, collate_fn=toys.pad_left)}
    options = {"teacher": toys.TokenTeacher(), "loaders": loaders, "codec": TopKCodec(k=2)}
    job = dumped(cache, samples_per_shard=4, **options)
    (found,) = recompute(job, 99)
    assert (found.drawn, found.samples, found.batches) == (11, 11, 5)
    assert found.positions == sum(toys.Tokens.LENGTHS)
    assert found.identical_batches == 5
    assert found.drift.max_kl == 0


class TestCodecOfAUsersOwn:
    def test_is_compared_bit_for_bit(self, cache):
        job = dumped(cache, codec=AdaptiveCodec())
        (found,) = recompute(job, N)
        assert (found.drift, found.codec, found.drifted) == (None, None, False)
        assert found.identical_batches == found.batches == 15
        (found,) = recompute(dataclasses.replace(job, teacher=nudged()), N)
        assert found.drifted


def test_every_split_that_both_have(cache):
    loaders = {name: toys.loader(toys.labelled(9, seed=n)) for n, name in enumerate("abc")}
    dumped(cache, loaders={name: loaders[name] for name in "ab"})
    found = recompute(job_of(cache, loaders={name: loaders[name] for name in "cba"}), 2)
    assert [one.split for one in found] == ["b", "a"]
    assert all(one.drift.max_kl == 0 for one in found)


def test_an_unfinished_dump_is_compared_as_far_as_it_goes(cache):
    job = dumped(cache)
    view = open_cache(cache)["train"].folder
    (view / "index.json").unlink()
    (view / "commits" / "shard-000001.json").unlink()
    (found,) = recompute(job, 99)
    assert (found.drawn, found.samples) == (N - 10, N - 10)
    assert found.drift.max_kl == 0


def test_workers_of_the_loader_are_used(cache):
    job = dumped(cache)
    images, labels = (
        torch.stack(list(map(torch.as_tensor, part)))
        for part in zip(*toys.labelled(N), strict=True)
    )
    loader = DataLoader(TensorDataset(images, labels), batch_size=4, num_workers=1)
    (found,) = recompute(dataclasses.replace(job, loaders={"train": loader}), N)
    assert found.drift.max_kl == 0
    assert "identity.dataset.class" in found.changed


def test_nothing_is_written(cache):
    job = dumped(cache)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    recompute(dataclasses.replace(job, teacher=nudged()), N)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


class TestWrongCalls:
    @pytest.mark.parametrize("number", [0, -1])
    def test_no_samples(self, cache, number):
        with pytest.raises(UsageError, match=f"not {number}"):
            recompute(dumped(cache), number)

    def test_no_cache(self, cache):
        with pytest.raises(CacheMissingError):
            recompute(job_of(cache), 1)

    def test_no_split_in_common(self, cache):
        dumped(cache)
        with pytest.raises(UsageError, match="it has train, the data test"):
            recompute(job_of(cache, loaders={"test": toys.loader(toys.labelled(4))}), 1)

    def test_a_stream(self, cache):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(toys.labelled(N))

        dumped(cache)
        with pytest.raises(UsageError, match="a stream cannot be asked"):
            recompute(job_of(cache, loaders={"train": DataLoader(Stream(), batch_size=4)}), 1)
