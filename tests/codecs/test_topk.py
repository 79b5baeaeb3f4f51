"""The top-k codec's own promises: ids, tail sums, ties, declared temperatures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs import TopKCodec
from kdcache.errors import CacheCorruptedError, UnsupportedTargetsError, UsageError
from tests.codecs.test_laws import assert_same_rows

INF = float("inf")


def round_trip(codec, logits):
    counts = torch.ones(len(logits), dtype=torch.int64)
    return codec.decode(codec.encode(logits, torch.zeros(0)), counts, logits.shape[-1])


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(
        st.lists(st.integers(-3, 3) | st.just(-INF), min_size=6, max_size=6).filter(
            lambda row: max(row) > -INF
        ),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 8),
)
def test_ids_are_the_largest_without_duplicates(logits, k):
    """Ties and masks abound here: any of equal classes may be kept, none twice (trap 15)."""
    logits = torch.tensor(logits, dtype=torch.float32)
    targets = round_trip(TopKCodec(k=k, dtype="float32"), logits)
    ids = targets.ids.long()
    assert ids.shape == targets.log_p.shape == (len(logits), min(k, 6))
    for row in ids.tolist():
        assert len(set(row)) == len(row)
    kept = logits.log_softmax(-1).gather(-1, ids)
    torch.testing.assert_close(targets.log_p, kept)
    best = logits.sort(dim=-1, descending=True).values[:, : min(k, 6)]
    assert torch.equal(logits.gather(-1, ids), best)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_buckets_equal_a_float64_reference(dtype, temperature):
    logits = 3 * torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    codec = TopKCodec(k=6, dtype=dtype, temperatures=(0.5, 1, 2, 4, 8))
    targets = round_trip(codec, logits)
    p = (logits.double() / temperature).softmax(-1)
    kept = p.gather(-1, targets.ids.long())
    wanted = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], dim=-1)
    found = targets.bucket_log_p(temperature).double().exp()
    tolerance = {"float16": 4e-3, "float32": 1e-5}[dtype]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=1e-9)
    torch.testing.assert_close(found.sum(-1), torch.ones(20).double(), rtol=0, atol=1e-6)


def test_tail_sums_do_not_inherit_the_rounding_of_what_is_kept():
    """Trap 12: 1 - sum(exp(stored)) errs by far more than the sum over the complement."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    logits[:, :8] += 9
    targets = round_trip(TopKCodec(k=8, dtype="float16", temperatures=(1,)), logits)
    p = logits.double().softmax(-1)
    true = 1 - p.gather(-1, targets.ids.long()).sum(-1)
    stored = targets.tail_log_sums[:, 0].double().exp()
    assert ((stored - true) / true).abs().max() < 1e-5
    derived = 1 - targets.log_p.double().exp().sum(-1)
    assert ((derived - true) / true).abs().max() > 1e-3


def test_large_common_offsets_cost_nothing():
    """log_p and tail of logits around 1e4 are those of the same logits around 0."""
    logits = torch.randint(-40, 40, (8, 30), generator=torch.Generator().manual_seed(0)) / 4
    near, far = (round_trip(TopKCodec(k=4, dtype="float32"), logits + c) for c in (0.0, 2.0**14))
    torch.testing.assert_close(near.log_p, far.log_p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(near.tail_log_sums, far.tail_log_sums, rtol=1e-6, atol=1e-6)


def test_raw_logits_come_back_with_the_offset():
    logits = 3 * torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) + 20
    targets = round_trip(TopKCodec(k=9, dtype="float32"), logits)
    found = (targets.log_p + targets.offset[:, None]).gather(-1, targets.ids.long().argsort())
    torch.testing.assert_close(found, logits)


def test_without_an_offset_all_else_is_the_same():
    """For teachers of which only log-probabilities are known."""
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    with_it, without = TopKCodec(k=3), TopKCodec(k=3, offset=False)
    assert "offset" not in with_it.settings()  # as caches have it that were written before
    assert without.settings()["offset"] is False
    pair = [round_trip(codec, logits) for codec in (with_it, without)]
    assert pair[1].offset is None
    assert [c.name for c in without.columns(9)] == ["ids", "log_p", "tail_log_sums"]
    for temperature in with_it.temperatures:
        assert torch.equal(*(targets.bucket_log_p(temperature) for targets in pair))


@pytest.mark.parametrize("block", [1, 7, 60, 100, 1 << 30])
@pytest.mark.parametrize("num_positions", [0, 1, 2, 3, 11])
@pytest.mark.parametrize("offset", [True, False])
def test_how_positions_are_cut_changes_nothing(monkeypatch, block, num_positions, offset):
    """Blocks of one, some and all positions, and of more numbers than there are."""
    codec = TopKCodec(k=5, offset=offset)
    logits = 3 * torch.randn(num_positions, 30, generator=torch.Generator().manual_seed(0))
    whole = codec.encode(logits, torch.zeros(num_positions, 2))
    monkeypatch.setattr("kdcache.codecs.topk._BLOCK_NUMBERS", {"cpu": block})
    sizes = []
    encode = TopKCodec._encode_block
    monkeypatch.setattr(
        TopKCodec, "_encode_block", lambda self, z: sizes.append(len(z)) or encode(self, z)
    )
    cut = codec.encode(logits, torch.zeros(num_positions, 2))
    assert sum(sizes) == num_positions
    assert min(sizes, default=2) > 1 or num_positions < 2
    assert max(sizes, default=0) < 2 * max(2, block // 30)
    assert_same_rows(cut, whole, logits)


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [
        (256, torch.uint8),
        (257, torch.uint16),
        (32_769, torch.uint16),
        (65_536, torch.uint16),
        (65_537, torch.int32),
        (200_000, torch.int32),
    ],
)
def test_ids_are_as_wide_as_needed(num_classes, dtype):
    """Trap 24: the last class number survives, and no type is wider than it must be."""
    logits = torch.zeros(1, num_classes)
    logits[0, -1] = 1
    ids = round_trip(TopKCodec(k=1), logits).ids
    assert ids.dtype == dtype
    assert int(ids.long()) == num_classes - 1


@pytest.mark.parametrize("k", [5, 9])
def test_all_classes_kept(k):
    """K = C: no tail, and every temperature can be served by the targets."""
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    targets = round_trip(TopKCodec(k=k, dtype="float32", temperatures=(1,)), logits)
    assert (targets.tail_log_sums == -INF).all()
    buckets = targets.bucket_log_p(3.0)
    wanted = (logits / 3).log_softmax(-1).gather(-1, targets.ids.long())
    torch.testing.assert_close(buckets[:, :-1], wanted)
    assert (buckets[:, -1] == -INF).all()


def test_undeclared_temperatures_are_refused_by_name():
    codec = TopKCodec(k=2, temperatures=(1, 2.5))
    codec.check_temperature(2.5)
    with pytest.raises(
        UnsupportedTargetsError, match=r"temperature 4: .* temperature 1, 2\.5 only\..*including"
    ):
        codec.check_temperature(4)
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 4"):
        round_trip(codec, torch.zeros(1, 5)).bucket_log_p(4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.0}, r"k is 2\.0"),
        ({"k": True}, "k is True"),
        ({"dtype": "bfloat16"}, "no dtype 'bfloat16'. Did you mean 'float16'"),
        ({"offset": "no"}, "offset is true or false, not 'no'"),
        ({"temperatures": ()}, "positive numbers"),
        ({"temperatures": (1, 0)}, "positive numbers"),
        ({"temperatures": (INF,)}, "positive numbers"),
        ({"temperatures": (float("nan"),)}, "positive numbers"),
    ],
)
def test_refused_settings(settings, said):
    with pytest.raises(UsageError, match=said):
        TopKCodec(**settings)


@pytest.mark.parametrize("wrong", [5, -1, 2**31 - 1])
def test_a_class_that_is_none_is_refused(wrong):
    """Somebody else's cache may hold anything: found before a loss indexes with it."""
    codec = TopKCodec(k=2)
    columns = dict(codec.encode(torch.randn(3, 5), torch.zeros(3, 2, dtype=torch.int64)))
    columns["ids"] = columns["ids"].to(torch.int32)
    columns["ids"][1, 1] = wrong
    with pytest.raises(CacheCorruptedError, match="not among the 5 of the cache"):
        codec.decode(columns, torch.ones(3, dtype=torch.int64), 5)


@pytest.mark.parametrize("temperatures", [(1, 2, 4, 8), (8, 0.5, 3, 1.5), (16, 8, 4, 2, 1, 0.5)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0, 400.0])
def test_tail_sums_equal_float64_at_every_temperature(temperatures, scale):
    """Chained powers cost no digits, and a tail of e**-1000 is not lost."""
    logits = scale * torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    codec = TopKCodec(k=4, dtype="float32", temperatures=temperatures)
    stored = codec.encode(logits, None)["tail_log_sums"].double()
    log_p = logits.double().log_softmax(-1)
    kept = log_p.topk(4, dim=-1).indices
    tail = log_p.scatter(-1, kept, -INF)
    for column, temperature in enumerate(temperatures):
        wanted = (tail / temperature).logsumexp(-1)
        error = (stored[:, column] - wanted).abs()
        assert (error <= 2e-6 + 2e-7 * wanted.abs() + 2e-7 * scale).all()
