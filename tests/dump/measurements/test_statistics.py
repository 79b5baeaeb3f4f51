"""Sums that a commit records, against float64; above all what storing the targets has cost."""

from __future__ import annotations

import math

import pytest
import torch

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.dump.measurements import fidelity as measures
from kdcache.dump.measurements.fidelity import (
    clamped,
    distributions,
    kl_divergence,
    stored_distribution,
)
from kdcache.dump.measurements.statistics import NAMES, as_mapping, batch_statistics
from tests.dump.adaptive_codec import AdaptiveCodec

P, C = 300, 40


def logits_like_a_teachers(rows=P, classes=C, scale=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator) * scale


def stored(codec, logits):
    """What a student will read."""
    draws = torch.stack([torch.arange(len(logits)), torch.zeros(len(logits))], -1).long()
    counts = torch.ones(len(logits), dtype=torch.int64)
    return codec.decode(codec.encode(logits, draws), counts, logits.shape[-1])


def fidelity(logits, targets):
    """(P,) KL and (P,) mass that was kept."""
    log_p = clamped(logits)
    return measures.fidelity(logits, log_p, log_p.exp(), targets)


def exact_kl(log_p, log_q):
    """(P,) in float64, class after class."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)


def exact_buckets(log_p, ids):
    """(P, K + 1) float64 of the kept classes and all others."""
    kept = log_p.gather(-1, ids)
    others = torch.ones_like(log_p, dtype=torch.bool).scatter(-1, ids, False)
    tail = torch.where(others, log_p, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([kept, tail], -1)


class TestFidelityOfDenseTargets:
    def test_is_exactly_0_where_nothing_was_lost(self):
        logits = logits_like_a_teachers()
        kl, kept = fidelity(logits, stored(DenseCodec(dtype="float32"), logits))
        assert kl.eq(0).all()
        assert kept.eq(1).all()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    @pytest.mark.parametrize("scale", [0.1, 4.0, 60.0])
    def test_is_the_kl_over_all_classes(self, dtype, scale):
        logits = logits_like_a_teachers(scale=scale)
        targets = stored(DenseCodec(dtype=dtype), logits)
        kl, _ = fidelity(logits, targets)
        expected = exact_kl(
            logits.double().log_softmax(-1), targets.logits().double().log_softmax(-1)
        )
        assert expected.max() > 1e-9
        torch.testing.assert_close(kl.double(), expected, rtol=1e-2, atol=1e-12)

    def test_masked_classes_cost_nothing(self):
        logits = logits_like_a_teachers()
        logits[:, ::3] = -torch.inf
        kl, _ = fidelity(logits, stored(DenseCodec(), logits))
        assert kl.isfinite().all()
        assert kl.max() < 1e-5

    def test_a_common_offset_counts_as_a_student_reads_it(self):
        """At an offset of 1e5 float32 itself has lost digits, on both sides alike."""
        logits = logits_like_a_teachers() + 1e5
        kl, _ = fidelity(logits, stored(DenseCodec(dtype="float32"), logits))
        assert kl.eq(0).all()
        assert fidelity(logits, stored(DenseCodec(), logits))[0].max() < 1e-3


class TestFidelityOfTopK:
    @pytest.mark.parametrize("k", [1, 5, C - 1, C])
    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_is_the_kl_over_buckets(self, k, dtype):
        logits = logits_like_a_teachers()
        targets = stored(TopKCodec(k=k, dtype=dtype), logits)
        kl, kept = fidelity(logits, targets)
        log_p, ids = logits.double().log_softmax(-1), targets.ids.long()
        read = targets.bucket_log_p(1.0).double().log_softmax(-1)
        expected = exact_kl(exact_buckets(log_p, ids), read)
        torch.testing.assert_close(kl.double(), expected, rtol=2e-2, atol=1e-12)
        torch.testing.assert_close(
            kept.double(), log_p.gather(-1, ids).exp().sum(-1), rtol=1e-6, atol=1e-6
        )
        assert (kl.max() > 1e-9) == (dtype == "float16")

    def test_without_temperature_1_the_lowest_is_read(self):
        logits = logits_like_a_teachers()
        targets = stored(TopKCodec(k=4, temperatures=(4.0, 2.0)), logits)
        kl, kept = fidelity(logits, targets)
        log_p = (logits.double() / 2).log_softmax(-1)
        read = targets.bucket_log_p(2.0).double().log_softmax(-1)
        expected = exact_kl(exact_buckets(log_p, targets.ids.long()), read)
        torch.testing.assert_close(kl.double(), expected, rtol=2e-2, atol=1e-12)
        at_one = logits.double().log_softmax(-1).gather(-1, targets.ids.long()).exp().sum(-1)
        torch.testing.assert_close(kept.double(), at_one, rtol=1e-6, atol=1e-6)

    def test_tells_a_tail_that_is_wrong(self):
        """What a codec's mistake would look like: the KL is measured, not assumed."""
        logits = logits_like_a_teachers(scale=1.0)
        targets = stored(TopKCodec(k=4, dtype="float32"), logits)
        targets.tail_log_sums.sub_(0.5)
        assert fidelity(logits, targets)[0].min() > 1e-2


def test_targets_of_another_kind_are_not_compared():
    logits = logits_like_a_teachers()
    codec = AdaptiveCodec().fit(logits)
    assert fidelity(logits, stored(codec, logits)) is None
    sums = as_mapping(batch_statistics(logits, None, stored(codec, logits)))
    assert (sums["positions"], sums["compared"], sums["divergence"]) == (P, 0, 0)


def test_kl_of_what_is_absent():
    """A class that one side masks: at most 80 nats, never infinite or NaN."""
    log_p = torch.tensor([[0.5, 0.5, 0.0]]).log().clamp(min=-80)
    log_q = torch.tensor([[0.5, 0.0, 0.5]]).log().clamp(min=-80)
    expected = 0.5 * (math.log(0.5) + 80)
    assert kl_divergence(log_p, log_q).item() == pytest.approx(expected, rel=1e-5)


class TestStoredDistribution:
    @pytest.mark.parametrize("codec", [DenseCodec(), TopKCodec(k=5), TopKCodec(k=C)], ids=str)
    def test_sums_to_1_and_agrees_with_what_a_student_reads(self, codec):
        logits = logits_like_a_teachers()
        targets = stored(codec, logits)
        whole = stored_distribution(targets)
        torch.testing.assert_close(whole.exp().sum(-1), torch.ones(P), rtol=1e-5, atol=1e-5)
        read = distributions(logits, targets)[1]
        if isinstance(codec, TopKCodec):
            ids = targets.ids.long()
            assert torch.equal(whole.gather(-1, ids), read[:, :-1])
            tail = whole.exp().scatter(-1, ids, 0.0).sum(-1)
            torch.testing.assert_close(tail, read[:, -1].exp(), rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(whole, read)

    def test_top_k_of_equal_ids_are_as_far_apart_as_their_buckets(self):
        logits = logits_like_a_teachers()
        near = logits + 1e-2 * torch.randn(P, C, generator=torch.Generator().manual_seed(1))
        a, b = (stored(TopKCodec(k=3), each) for each in (logits, near))
        same = (a.ids == b.ids).all(-1)
        assert same.sum() > P / 2
        whole = kl_divergence(stored_distribution(a), stored_distribution(b))
        buckets = kl_divergence(*(t.bucket_log_p(1.0).clamp(min=-80) for t in (a, b)))
        torch.testing.assert_close(whole[same], buckets[same], rtol=1e-3, atol=1e-8)

    def test_of_another_kind(self):
        logits = logits_like_a_teachers()
        assert stored_distribution(stored(AdaptiveCodec().fit(logits), logits)) is None


class TestSums:
    @pytest.mark.parametrize("codec", [DenseCodec(), TopKCodec(k=5)], ids=["dense", "topk"])
    @pytest.mark.parametrize("numbers_in_a_block", [1, 7 * C, P * C])
    def test_do_not_depend_on_the_blocks(self, codec, numbers_in_a_block, monkeypatch):
        logits = logits_like_a_teachers()
        labels = logits.argmax(-1).where(torch.arange(P) % 3 > 0, -100)
        targets = stored(codec, logits)
        whole = batch_statistics(logits, labels, targets)
        monkeypatch.setitem(measures._BLOCK_NUMBERS, "cpu", numbers_in_a_block)
        # Summed in float64, of numbers in float32.
        near = dict.fromkeys(("rtol", "atol"), 4 * torch.finfo(torch.float32).eps)
        torch.testing.assert_close(batch_statistics(logits, labels, targets), whole, **near)
        sums = as_mapping(whole)
        assert (sums["positions"], sums["labelled"], sums["correct"]) == (P, P * 2 // 3, P * 2 // 3)

    @pytest.mark.parametrize("codec", [DenseCodec(), TopKCodec(k=5)], ids=["dense", "topk"])
    def test_are_those_of_each_position(self, codec):
        logits = logits_like_a_teachers()
        targets = stored(codec, logits)
        sums = as_mapping(batch_statistics(logits, None, targets))
        kl, kept = fidelity(logits, targets)
        log_p = logits.double().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        expected = {
            "positions": P,
            "entropy": entropy.sum(),
            "entropy_squared": entropy.square().sum(),
            "compared": P,
            "divergence": kl.double().sum(),
            "divergence_squared": kl.double().square().sum(),
            "kept_mass": kept.double().sum(),
        }
        for name, value in expected.items():
            assert sums[name] == pytest.approx(float(value), rel=1e-5), name
        assert set(sums.values()) - {sums[name] for name in expected} == {0.0}
        assert tuple(sums) == NAMES

    def test_of_no_position(self):
        logits = logits_like_a_teachers(rows=0)
        found = batch_statistics(logits, torch.zeros(0).long(), stored(DenseCodec(), logits))
        assert found.tolist() == [0.0] * len(NAMES)

    def test_more_classes_than_a_block_has_room_for(self, monkeypatch):
        monkeypatch.setitem(measures._BLOCK_NUMBERS, "cpu", 8)
        logits = logits_like_a_teachers(rows=3, classes=100)
        targets = stored(DenseCodec(), logits)
        assert as_mapping(batch_statistics(logits, None, targets))["positions"] == 3
