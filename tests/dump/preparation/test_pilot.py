"""What a codec costs, measured on a few samples before the first shard."""

from __future__ import annotations

import json

import pytest
import torch

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.data.batch.forward import FlatOutput
from kdcache.data.batch.mapping import BatchMapping
from kdcache.dump.preparation.pilot import measure_pilot
from kdcache.errors import DataError
from tests.data import toys
from tests.dump.adaptive_codec import AdaptiveCodec
from tests.dump.measurements.test_statistics import fidelity, logits_like_a_teachers, stored


def output(logits, counts, labels=None):
    return FlatOutput(
        all_logits=logits,
        rows=None,
        labels=labels,
        num_positions=torch.tensor(counts),
        losses={},
        mapping=BatchMapping(),
    )


def test_are_means_over_all_positions_of_all_batches():
    logits = logits_like_a_teachers(rows=9, classes=6)
    labels = torch.tensor([*logits.argmax(-1)[:6].tolist(), *logits.argmin(-1)[6:].tolist()])
    parts = [
        output(logits[:5], [2, 0, 3], labels[:5]),
        output(logits[5:5], [0], labels[5:5]),
        output(logits[5:], [4], labels[5:]),
    ]
    found = measure_pilot(TopKCodec(k=2), parts)
    kl, kept = fidelity(logits, stored(TopKCodec(k=2), logits))
    log_p = logits.double().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    nats = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert found == {
        "samples": 5,
        "positions": 9,
        "entropy": pytest.approx(entropy.mean().item(), rel=1e-5),
        "entropy_deviation": pytest.approx(entropy.std(correction=0).item(), rel=1e-4),
        "divergence": pytest.approx(kl.double().mean().item(), rel=1e-5),
        "divergence_deviation": pytest.approx(kl.double().std(correction=0).item(), rel=1e-4),
        "kept_mass": pytest.approx(kept.double().mean().item(), rel=1e-5),
        "accuracy": pytest.approx(6 / 9),
        "cross_entropy": pytest.approx(nats.item(), rel=1e-5),
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_lossless_codec_costs_nothing_and_labels_may_be_absent():
    found = measure_pilot(toys.LOSSLESS, [output(logits_like_a_teachers(rows=4), [1, 1, 1, 1])])
    assert (found["divergence"], found["divergence_deviation"], found["kept_mass"]) == (0, 0, 1)
    assert "accuracy" not in found


def test_without_a_position_there_is_nothing_but_counts():
    found = measure_pilot(DenseCodec(), [output(logits_like_a_teachers(rows=0), [0, 0])])
    assert found == {"samples": 2, "positions": 0}


def test_of_a_codec_of_a_users_own_only_the_teacher_is_told():
    logits = logits_like_a_teachers(rows=4)
    found = measure_pilot(AdaptiveCodec().fit(logits), [output(logits, [4])])
    assert "divergence" not in found
    assert found["entropy"] > 0


def test_what_the_codec_cannot_hold_is_an_error():
    logits = torch.tensor([[0.0, -1e5]])
    with pytest.raises(DataError, match="float16"):
        measure_pilot(DenseCodec(), [output(logits, [1])])
