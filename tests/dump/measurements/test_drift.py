"""A teacher that depends on the rest of its batch, and teachers that do not."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch
from torch import nn

from kdcache.data.batch.mapping import BatchMapping
from kdcache.dump.measurements.drift import (
    MAX_MEAN_KL,
    NUM_SAMPLES,
    Drift,
    measure_drift,
    warning_text,
)
from kdcache.dump.preparation.teacher import TeacherForward
from tests.data import toys

LENGTHS = (5, 31, 12, 3, 25, 17, 8, 20)


def frames(lengths=LENGTHS):
    """One (L, WIDTH) sound a sample."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, toys.WIDTH, generator=generator) for length in lengths]


def padded(samples):
    """(B, L, WIDTH), and the mask (B, L)."""
    counts = torch.tensor([len(sample) for sample in samples])
    made = nn.utils.rnn.pad_sequence(samples, batch_first=True)
    return {"x": made, "mask": torch.arange(made.shape[1]) < counts[:, None]}


class Frames(nn.Module):
    """(B, L, C) logits; normalised over time, with or without the padding."""

    def __init__(self, *, masked):
        super().__init__()
        self.head, self.masked = toys.make_teacher(), masked

    def forward(self, x, mask):
        weight = mask.unsqueeze(-1).to(x) if self.masked else torch.ones_like(x)
        count = weight.sum(dim=1, keepdim=True)
        mean = (x * weight).sum(dim=1, keepdim=True) / count
        variance = ((x - mean).square() * weight).sum(dim=1, keepdim=True) / count
        return self.head((x - mean) / (variance + 1e-5).sqrt())


def drift_of(teacher, samples, collate, *, mapping=None, precision="32-true", numbers=None):
    given = mapping or BatchMapping(inputs={"x": "x", "mask": "mask"}, mask="mask")
    forward = TeacherForward(teacher, given, accelerator="cpu", precision=precision)
    return measure_drift(forward, collate, samples, numbers or range(len(samples)))


def test_a_norm_over_time_with_padding_in_it():
    drift = drift_of(Frames(masked=False), frames(), padded)
    assert (drift.samples, drift.positions, drift.changed_counts) == (8, sum(LENGTHS), 0)
    assert drift.max_kl > drift.mean_kl > MAX_MEAN_KL
    assert drift.worst_sample == 3, "the one with the most padding"
    text = warning_text(drift)
    assert (
        f"of 8 samples, run together and each alone, their targets differ by {drift.mean_kl:.3g}"
        in text
    )
    assert "most in sample 3" in text
    assert "batch.mask" in text


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_norm_over_time_without_it(precision):
    drift = drift_of(Frames(masked=True), frames(), padded, precision=precision)
    assert drift.mean_kl < (1e-9 if precision == "32-true" else 1e-3)
    assert warning_text(drift) is None


def test_samples_of_one_length_have_no_padding():
    drift = drift_of(Frames(masked=False), frames([7] * 4), padded)
    assert (drift.samples, drift.positions) == (4, 28)
    assert warning_text(drift) is None


def test_numbers_are_those_of_the_definition():
    """KL(together || alone), in nats, of a teacher that adds the batch's size to one logit."""

    class Counting(nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 2)
            logits[:, 0] = len(x) / 2
            return logits

    drift = drift_of(Counting(), list(torch.zeros(2, 3)), torch.stack, mapping=BatchMapping())
    p, q = (1 / (1 + math.exp(-size / 2)) for size in (2, 1))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert drift.mean_kl == drift.max_kl == pytest.approx(kl, rel=1e-6)
    assert drift.max_abs == pytest.approx(math.log((1 - q) / (1 - p)), rel=1e-6)


def test_classes_that_are_masked_out():
    """-inf on both sides is no difference; on one side it is a large and finite one."""

    class Masked(nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 3)
            logits[:, 0] = -torch.inf
            if len(x) == 1 and x[0, 0] == 1:
                logits[:, 1] = -torch.inf
            return logits

    samples = list(torch.eye(2))
    drift = drift_of(Masked(), samples, torch.stack, mapping=BatchMapping(), numbers=[40, 41])
    assert drift.worst_sample == 40
    assert 1 < drift.max_kl < 100
    assert drift.max_abs == pytest.approx(100, abs=1)
    assert json.loads(json.dumps(drift.to_json(), allow_nan=False))["worst_sample"] == 40


def test_batch_norm_in_eval_mode():
    teacher = nn.Sequential(nn.BatchNorm1d(toys.WIDTH), toys.make_teacher())
    teacher(toys.vectors(50))  # statistics of its own
    samples = toys.labelled(8)
    drift = drift_of(teacher, samples, toys.stack_pairs, mapping=BatchMapping())
    assert drift.positions == 8
    assert drift.mean_kl < 1e-9
    assert warning_text(drift) is None


@pytest.mark.parametrize("collate", [toys.pad_left, toys.pad_right])
def test_padding_that_counts_as_positions(collate):
    """No mask in the mapping: a short sample has more positions in a batch than alone."""
    samples = [toys.Tokens()[n] for n in range(8)]
    mapping = BatchMapping(inputs={name: name for name in ("input_ids", "attention_mask")})
    drift = drift_of(toys.TokenTeacher(), samples, collate, mapping=mapping)
    assert drift.changed_counts == 7
    assert drift.mean_kl < 1e-9, "the positions that both have are not aligned"
    assert "7 of them have another number of valid positions" in warning_text(drift)


def test_samples_without_any_position():
    samples = [{"input_ids": torch.zeros(0, dtype=torch.int64), "labels": torch.zeros(0)}] * 2
    mapping = BatchMapping()
    drift = drift_of(toys.TokenTeacher(), samples, toys.pad_right, mapping=mapping)
    assert (drift.positions, drift.mean_kl, drift.worst_sample) == (0, 0.0, None)
    assert warning_text(drift) is None


def test_at_most_eight_samples():
    samples = toys.labelled(NUM_SAMPLES + 3)
    drift = drift_of(toys.make_teacher(), samples, toys.stack_pairs, mapping=BatchMapping())
    assert drift.samples == NUM_SAMPLES


def test_a_teacher_that_takes_no_batch_of_one(caplog):
    class Pairs(nn.Module):
        def forward(self, x):
            if len(x) == 1:
                raise ValueError("expected more than 1 value per channel")
            return x

    with caplog.at_level(logging.INFO):
        samples = toys.labelled(3)
        assert drift_of(Pairs(), samples, toys.stack_pairs, mapping=BatchMapping()) is None
    assert "takes no batch of one (sample 0: expected more than 1 value" in caplog.text


def test_one_sample_has_nothing_beside_it():
    samples = toys.labelled(1)
    assert drift_of(toys.make_teacher(), samples, toys.stack_pairs) is None


def test_the_threshold():
    numbers = {"samples": 8, "positions": 8, "changed_counts": 0, "max_abs": 1.0}
    for mean_kl, warns in ((MAX_MEAN_KL, False), (1.01 * MAX_MEAN_KL, True)):
        drift = Drift(**numbers, mean_kl=mean_kl, max_kl=1.0, worst_sample=0)
        assert (warning_text(drift) is not None) is warns
