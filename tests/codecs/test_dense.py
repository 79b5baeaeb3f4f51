"""The dense codec's own promises: exactness, precision at an offset, overflow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs import DenseCodec
from kdcache.errors import DataError, UsageError
from kdcache.losses import kd_loss

INF = float("inf")
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32) | st.just(-INF)


def round_trip(codec, logits):
    counts = torch.ones(len(logits), dtype=torch.int64)
    return codec.decode(codec.encode(logits, torch.zeros(0)), counts, logits.shape[-1])


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.lists(NUMBERS, min_size=4, max_size=4), max_size=5))
def test_float32_is_bit_exact(rows):
    logits = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    decoded = round_trip(DenseCodec(dtype="float32"), logits).logits()
    assert decoded.numpy().tobytes() == logits.numpy().tobytes()


@settings(deadline=None, max_examples=50)
@given(
    dtype=st.sampled_from(["float16", "bfloat16"]),
    offset=st.floats(-1000, 1000, width=32),
    seed=st.integers(0, 999),
)
def test_half_forms_round_relative_to_the_largest_logit(dtype, offset, seed):
    logits = 5 * torch.randn(3, 20, generator=torch.Generator().manual_seed(seed)) + offset
    decoded = round_trip(DenseCodec(dtype=dtype), logits).logits()
    below_top = logits.amax(-1, keepdim=True) - logits
    step = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    assert ((decoded - logits).abs() <= step * below_top + 1e-7 * abs(offset) + 1e-6).all()
    assert torch.equal(decoded.amax(-1), logits.amax(-1))


def test_bfloat16_at_a_common_offset():
    """Raw bfloat16 at an offset of 60 costs a KL of some 1e-3; this form stays below 1e-4."""
    logits = 3 * torch.randn(500, 100, generator=torch.Generator().manual_seed(0)) + 60
    ours = kd_loss(logits.double(), round_trip(DenseCodec(dtype="bfloat16"), logits), 1.0).mean()
    rounded = round_trip(DenseCodec(dtype="float32"), logits.to(torch.bfloat16).float())
    raw = kd_loss(logits.double(), rounded, 1.0).mean()
    assert ours < 1e-4
    assert raw > 10 * ours


def test_bfloat16_travels_as_uint16():
    codec = DenseCodec(dtype="bfloat16")
    columns = codec.encode(torch.zeros(2, 3), torch.zeros(0))
    assert columns["values"].dtype == torch.uint16
    assert round_trip(codec, torch.zeros(2, 3)).values.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [66_000.0, 1e30])
def test_finite_logits_that_overflow_are_refused(scale):
    logits = torch.tensor([[0.0, 1.0, 2.0], [scale, 0.0, -INF]])
    with pytest.raises(DataError, match=r"do not fit into float16.*bfloat16 or float32"):
        round_trip(DenseCodec(dtype="float16"), logits)
    assert round_trip(DenseCodec(dtype="bfloat16"), logits).logits().isfinite().sum() == 5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_masks_come_back_exactly(dtype):
    logits = torch.tensor([[1.0, -INF, 0.5], [-INF, -INF, -3.0]])
    decoded = round_trip(DenseCodec(dtype=dtype), logits).logits()
    assert torch.equal(decoded == -INF, logits == -INF)
    torch.testing.assert_close(decoded, logits, rtol=0.01, atol=0)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.7])
def test_every_temperature_can_be_served(temperature):
    DenseCodec().check_temperature(temperature)
    loss = kd_loss(torch.zeros(1, 3), round_trip(DenseCodec(), torch.zeros(1, 3)), temperature)
    assert loss.sum == 0


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UsageError, match=r"no dtype 'float15'\. Did you mean 'float16'"):
        DenseCodec(dtype="float15")
