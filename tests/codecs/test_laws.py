"""What holds for every codec: one suite, parametrised."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.codecs import Codec, DenseCodec, TopKCodec, codec_settings, make_codec, stored_codec
from kdcache.columns import NUM_POSITIONS, RESERVED, Column, check_columns
from kdcache.losses import kd_loss

INF = float("inf")
# Codec, and the KL at T = 1 and T = 4 that its own rounding may cost on logits of scale 3.
CODECS = [
    (DenseCodec(dtype="float32"), 1e-9),
    (DenseCodec(dtype="float16"), 1e-6),
    (DenseCodec(dtype="bfloat16"), 1e-4),
    (TopKCodec(k=1, dtype="float32", temperatures=(1.0, 4.0)), 1e-9),
    (TopKCodec(k=5, dtype="float32", temperatures=(0.5, 1.0, 4.0)), 1e-9),
    (TopKCodec(k=5, dtype="float16"), 1e-6),
    (TopKCodec(k=5, dtype="float16", offset=False), 1e-6),
    (TopKCodec(k=300, dtype="float16", temperatures=(1.0, 4.0)), 1e-6),
]
ids = [json.dumps(codec_settings(codec)) for codec, _ in CODECS]
every_codec = pytest.mark.parametrize("codec", [codec for codec, _ in CODECS], ids=ids)


def logits_of(num_positions, num_classes, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_positions, num_classes, generator=generator)


def draws_of(num_positions, first=0):
    keys = torch.arange(first, first + num_positions)
    return torch.stack([keys, torch.zeros_like(keys)], dim=-1)


def encode(codec, logits):
    return codec.encode(logits, draws_of(len(logits)))


def decode(codec, columns, num_classes, num_positions):
    counts = torch.ones(num_positions, dtype=torch.int64)
    return codec.decode(columns, counts, num_classes)


def round_trip(codec, logits):
    return decode(codec, encode(codec, logits), logits.shape[-1], len(logits))


def assert_same_rows(found, wanted, logits):
    """Columns that a top-k codec made of the same positions in other company, but for rounding.

    A sum of exponentials may end in other last digits where other numbers stand beside them in a
    vector register. So may what is stored of it: in its own type the next number; in float32 the
    exponentials that were squared three times, 8 of its steps, and the logarithms' own.
    """
    step = torch.finfo(torch.float32).eps
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert found[name].dtype == rows.dtype
        pair, own = (found[name].double(), rows.double()), step
        if name == "ids":  # of two classes that are equal but for rounding either may come first
            pair = tuple(logits.gather(-1, ids.long()).double() for ids in pair)
        else:
            own = torch.finfo(rows.dtype).eps
        torch.testing.assert_close(
            *pair, rtol=own, atol=16 * step, msg=lambda m, n=name: f"{n}: {m}"
        )


@every_codec
def test_is_a_codec_with_good_columns(codec):
    assert isinstance(codec, Codec)
    columns = codec.columns(10)
    assert not RESERVED & {column.name for column in columns}
    check_columns([*columns, Column(name=NUM_POSITIONS, per="sample", dtype="int32")])


@pytest.mark.parametrize("num_positions", [0, 1, 4])
@pytest.mark.parametrize("num_classes", [1, 2, 7, 256, 257, 70_000])
@every_codec
def test_columns_are_what_encode_makes(codec, num_classes, num_positions):
    encoded = encode(codec, logits_of(num_positions, num_classes))
    columns = codec.columns(num_classes)
    assert encoded.keys() == {column.name for column in columns}
    for column in columns:
        assert column.per == "position"
        column.check_rows(encoded[column.name].numpy(), num_positions)
    targets = decode(codec, encoded, num_classes, num_positions)
    assert targets.num_classes == num_classes
    assert len(targets.num_positions) == num_positions


@every_codec
def test_settings_make_an_equal_codec(codec):
    stored = json.loads(json.dumps(codec_settings(codec)))
    assert stored_codec(stored) == codec
    name = stored.pop("name")
    made = make_codec(name, stored)
    assert made == codec
    assert codec_settings(made) == codec_settings(codec)


@every_codec
def test_nothing_to_fit(codec):
    assert codec.fit(logits_of(8, 7)) == codec
    assert not codec.tables()
    assert codec.with_tables({}) == codec


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 60.0, -60.0, 4096.0])
@pytest.mark.parametrize(("codec", "bound"), CODECS, ids=ids)
def test_the_teacher_itself_is_the_best_student(codec, bound, offset, temperature):
    """KL(decoded || teacher) is the codec's own rounding, at any common offset of the logits."""
    logits = logits_of(64, 50)
    # The offset's own rounding is the teacher's, not the codec's: the student gets it as well.
    shifted = logits + offset
    targets = round_trip(codec, shifted)
    codec.check_temperature(temperature)
    loss = kd_loss(shifted.double(), targets, temperature).mean() / temperature**2
    assert abs(loss.item()) < bound + 1e-6


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    num_classes=st.sampled_from([1, 3, 20, 300]),
    seed=st.integers(0, 999),
)
@every_codec
def test_rows_are_independent(codec, lengths, num_classes, seed):
    """Batches may be cut anywhere: the encoding of a whole is that of its parts."""
    logits = logits_of(sum(lengths), num_classes, seed)
    whole = encode(codec, logits)
    parts, start = [], 0
    for length in lengths:
        part = logits[start : start + length]
        parts.append(codec.encode(part, draws_of(length, start)))
        start += length
    pieces = {name: torch.cat([part[name] for part in parts]) for name in whole}
    if isinstance(codec, TopKCodec):
        assert_same_rows(pieces, whole, logits)
        return
    for name, rows in whole.items():  # a largest logit and a difference, each rounded by itself
        assert rows.numpy().tobytes() == pieces[name].numpy().tobytes(), name


@every_codec
def test_input_is_left_alone_and_may_be_half_precision(codec):
    logits = logits_of(3, 20).to(torch.bfloat16)
    before = logits.clone()
    encoded = encode(codec, logits)
    assert torch.equal(logits, before)
    for name, rows in encode(codec, logits.float()).items():
        assert rows.numpy().tobytes() == encoded[name].numpy().tobytes()


@every_codec
def test_masked_classes_stay_masked(codec):
    """-inf is a legitimate class mask: no NaN, no mass, in a row with one class left as well."""
    logits = logits_of(3, 8)
    logits[0, 2], logits[1, :7] = -INF, -INF
    encoded = encode(codec, logits)
    assert not any(rows.isnan().any() for rows in encoded.values() if rows.is_floating_point())
    targets = round_trip(codec, logits)
    student = logits.clone().requires_grad_()
    for temperature in (1.0, 4.0):
        loss = kd_loss(student, targets, temperature).sum
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.abs() < 1e-2
        assert gradient.isfinite().all()
        assert not gradient[logits == -INF].any()
