"""A dump on the device holds what one on the CPU holds."""

from __future__ import annotations

import pytest
import torch

import kdcache
from tests.data.sequences import VOCABULARY, CausalNet
from tests.train import small

CODECS = {
    "float32": kdcache.DenseCodec(dtype="float32"),
    "float16": kdcache.DenseCodec(),
    "bfloat16": kdcache.DenseCodec(dtype="bfloat16"),
    "topk": kdcache.TopKCodec(k=3, temperatures=(1.0, 2.0)),
}


def dumped(path, where, codec, **options):
    return kdcache.dump_teacher(
        small.Teacher(),
        small.loader(),
        path,
        codec=CODECS[codec],
        samples_per_shard=32,
        accelerator=where,
        progress=False,
        **options,
    )


def targets_of(cache):
    """Of all samples, in order."""
    return [targets for _, targets in small.joined_loader(cache)]


def compare(found, wanted, allowed):
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.num_positions, other.num_positions)
        if hasattr(other, "ids"):
            assert torch.equal(one.ids, other.ids)
            for temperature in other.temperatures:
                own, reference = (t.bucket_log_p(temperature) for t in (one, other))
                torch.testing.assert_close(own, reference, rtol=0, atol=allowed)
        else:
            torch.testing.assert_close(one.logits(), other.logits(), rtol=0, atol=allowed)


# What two roundings of nearly the same number to the stored type may be apart; numbers are < 8.
ALLOWED = {"float32": 1e-5, "float16": 8 * 2**-10, "bfloat16": 8 * 2**-7, "topk": 8 * 2**-10}


@pytest.mark.parametrize("codec", CODECS)
def test_equal_to_the_cpus(tmp_path, codec, device):
    places = {"reference.zarr": "cpu", "own.zarr": device}
    caches = [dumped(tmp_path / name, where, codec) for name, where in places.items()]
    wanted, found = map(targets_of, caches)
    compare(found, wanted, ALLOWED[codec])
    sums = [cache["train"].commits[0].statistics for cache in caches]
    assert sums[0].keys() == sums[1].keys()
    for name, value in sums[0].items():
        assert sums[1][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_at_half_precision(tmp_path, precision, device):
    found = targets_of(dumped(tmp_path / "own.zarr", device, "float32", precision=precision))
    wanted = targets_of(dumped(tmp_path / "reference.zarr", "cpu", "float32"))
    compare(found, wanted, 0.1)


def test_what_was_begun_on_the_cpu_is_finished_on_the_device(tmp_path, device):
    path = tmp_path / "both.zarr"
    for part, where in enumerate(("cpu", device)):
        cache = kdcache.dump_teacher(
            small.Teacher(),
            small.loader(),
            path,
            codec=CODECS["float32"],
            samples_per_shard=32,
            part=f"{part}/2",
            accelerator=where,
            progress=False,
        )
    compare(
        targets_of(cache), targets_of(dumped(tmp_path / "reference.zarr", "cpu", "float32")), 1e-5
    )


def test_token_positions(tmp_path, device):
    """Padded sequences: the same positions are kept."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "input_ids": torch.randint(1, VOCABULARY, (8,), generator=generator),
            "attention_mask": (torch.arange(8) < 3 + n % 6).long(),
        }
        for n in range(24)
    ]
    batch, caches = {"causal": True}, []
    for name, where in (("reference", "cpu"), ("own", device)):
        cache = kdcache.dump_teacher(
            CausalNet(),
            torch.utils.data.DataLoader(samples, batch_size=4),
            tmp_path / f"{name}.zarr",
            codec=kdcache.DenseCodec(dtype="float32"),
            batch=batch,
            accelerator=where,
            progress=False,
        )
        joined = kdcache.CachedDataset(samples, cache["train"], batch=batch)
        caches.append([joined[n].targets for n in range(len(samples))])
    assert caches[0][5].num_rows() == 7
    compare(*caches, 1e-4)
