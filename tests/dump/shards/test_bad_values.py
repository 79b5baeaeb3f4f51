"""Values that no target should hold: the sample is named, what was finished stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache import CachedDataset, DenseCodec, TopKCodec
from kdcache.dump.shards.encoding import invalid_positions
from kdcache.errors import DataError
from kdcache.store import open_cache
from tests.data import toys

N = 100  # more than are probed: 17 is not, so that it may be mended
NAN, INF = float("nan"), float("inf")


class Echo(nn.Module):
    """Logits are the inputs."""

    def forward(self, x):
        return x


def samples_with(number, row):
    samples = [(x.clone(), n % 4) for n, x in enumerate(toys.vectors(N))]
    samples[number][0][:] = torch.tensor(row)
    return samples


BAD_ROWS = {
    "NaN": [0.0, NAN, 0.0, 0.0],
    "+inf": [0.0, INF, 0.0, 0.0],
    "all -inf": [-INF, -INF, -INF, -INF],
    "NaN among -inf": [-INF, NAN, -INF, 0.0],
}
CODECS = {
    "float32": toys.LOSSLESS,
    "float16": DenseCodec(),
    "bfloat16": DenseCodec(dtype="bfloat16"),
    "topk": TopKCodec(k=2),
}


@pytest.mark.parametrize("row", BAD_ROWS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_sample_is_named_and_finished_shards_stay(cache, row, codec):
    samples = samples_with(17, BAD_ROWS[row])
    with pytest.raises(DataError, match=r"logits of sample 17 are NaN, \+inf, or all -inf"):
        toys.dump(cache, samples, Echo(), codec=CODECS[codec])
    view = open_cache(cache)["train"]
    assert [commit.shard for commit in view.commits] == [0, 1]
    # Mended, it goes on where it stopped.
    mended = samples_with(17, [0.0, 1.0, 2.0, 3.0])
    attempts = [commit.attempt for commit in view.commits]
    view = toys.dump(cache, mended, Echo(), codec=CODECS[codec])["train"]
    assert [commit.attempt for commit in view.commits][:2] == attempts
    assert not view.pending


def test_in_the_first_batch_nothing_is_begun(cache):
    with pytest.raises(DataError, match="sample 2 are NaN"):
        toys.dump(cache, samples_with(2, BAD_ROWS["NaN"]), Echo())
    assert not cache.exists()


def test_among_positions_the_sample_is_the_one_that_owns_them(cache):
    class Fails(toys.TokenTeacher):
        def forward(self, input_ids, attention_mask):
            output = super().forward(input_ids, attention_mask)
            # Sample 9 has token 9 first; masked positions may hold anything.
            output.logits[attention_mask == 0] = NAN
            output.logits[(input_ids == 14) & (attention_mask == 1)] = NAN
            return output

    tokens = [toys.Tokens()[n]["input_ids"].tolist() for n in range(len(toys.Tokens()))]
    first = next(n for n, ids in enumerate(tokens) if 14 in ids)
    source = toys.loader(toys.Tokens(), collate_fn=toys.pad_right)
    with pytest.raises(DataError, match=rf"logits of sample {first} are"):
        toys.dump(cache, source, Fails())


def test_masked_classes_are_kept(cache):
    row = [-INF, 2.0, -INF, 1.0]
    toys.dump(cache, samples_with(17, row), Echo())
    joined = CachedDataset(toys.Samples(samples_with(17, row)), cache)
    logits = joined.collate_fn(joined.__getitems__([17, 0])).targets.logits()
    assert logits[0].tolist() == row


@pytest.mark.parametrize("number", [1, 17])
def test_a_spread_that_float16_does_not_hold(cache, number):
    samples = samples_with(number, [0.0, -70000.0, 1.0, 2.0])
    with pytest.raises(DataError, match=rf"sample {number}: .*do not fit into float16"):
        toys.dump(cache, samples, Echo(), codec=DenseCodec())


def test_overflow_in_half_precision_names_the_sample(cache):
    class Overflows(nn.Module):
        def forward(self, x):
            return (x * 1e30).bfloat16() * 1e30

    samples = [(x.abs() * 1e-30, 0) for x in toys.vectors(N)]
    samples[12] = (torch.ones(4), 0)
    with pytest.raises(DataError, match="sample 12 are"):
        toys.dump(cache, samples, Overflows())


@pytest.mark.parametrize("label", [-1, 4, 255])
@pytest.mark.parametrize("number", [1, 17])
def test_a_label_that_is_no_class(cache, label, number):
    samples = [(x, label if n == number else 0) for n, x in enumerate(toys.vectors(N))]
    with pytest.raises(DataError, match=rf"sample {number} has the label {label}; the teacher has"):
        toys.dump(cache, samples, Echo())


@pytest.mark.parametrize(
    ("row", "is_invalid"),
    [
        ([0.0, 1.0], False),
        ([-INF, 1.0], False),
        ([3e38, -3e38], False),
        ([NAN, 1.0], True),
        ([INF, 1.0], True),
        ([-INF, -INF], True),
        ([-INF, INF], True),
        ([NAN, -INF], True),
    ],
)
def test_what_is_invalid(row, is_invalid):
    assert invalid_positions(torch.tensor([row])).tolist() == [is_invalid]


def test_no_position_is_valid():
    assert invalid_positions(torch.zeros(0, 3)).tolist() == []
