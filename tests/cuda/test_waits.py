"""Losses and encoding never wait for the device."""

import numpy as np
import pytest
import torch

import kdcache
from kdcache.dump.shards.encoding import encode
from kdcache.dump.shards.keyed import KeyedBatch
from kdcache.losses import fused_losses, kd_loss, student_loss
from tests.losses.fused.fused_cases import case, encoded, plain, relative_error


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fused_losses(k, dtype, device, no_waits):
    given = case(rows=True, dtype=dtype)
    targets = encoded(given.teacher, k)
    wanted_logits = given.logits.clone().float().requires_grad_()
    weights = {"kd_loss": 0.5, "student_loss": 0.25}
    wanted, _ = plain(wanted_logits, targets, given.labels, weights, 2.0, given.rows)
    logits, rows = given.logits.to(device).requires_grad_(), given.rows.to(device)
    labels, targets = given.labels.to(device), targets.to(device)
    weights = {name: torch.tensor(weight, device=device) for name, weight in weights.items()}
    with no_waits:
        total, _ = fused_losses(
            logits, targets, labels, weights=weights, temperature=2.0, rows=rows
        )
        (gradient,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(total.cpu(), wanted)
    (wanted_gradient,) = torch.autograd.grad(wanted, wanted_logits)
    assert relative_error(gradient.cpu(), wanted_gradient) < torch.finfo(dtype).eps * 8


@pytest.mark.parametrize("k", [None, 3])
def test_plain_losses(k, device, no_waits):
    given = case(dtype=torch.float32)
    targets = encoded(given.teacher, k)
    wanted = kd_loss(given.logits, targets, 2.0).mean(), student_loss(given.logits, given.labels)
    logits, labels = given.logits.to(device).requires_grad_(), given.labels.to(device)
    targets = targets.to(device)
    with no_waits:
        distance = kd_loss(logits, targets, 2.0).mean()
        entropy = student_loss(logits, labels)
        (distance + entropy.mean()).backward()
    torch.testing.assert_close(distance.cpu(), wanted[0])
    torch.testing.assert_close(entropy.mean().cpu(), wanted[1].mean())


def test_encoding_into_a_top_k_cache(device, no_waits):
    """Of a teacher's batch, with statistics; the dense codec looks whether its type can hold it."""
    samples, positions, num_classes = 4, 3, 1000
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, positions, num_classes, generator=generator).to(device)
    labels = torch.randint(num_classes, (samples, positions), generator=generator).to(device)
    batch = {"logits": logits, "labels": labels}
    mapping = kdcache.BatchMapping(inputs=["logits"], labels="labels")
    output = kdcache.forward(torch.nn.Identity(), mapping, batch).widened()
    identity = {"fingerprint": np.arange(samples, dtype=np.uint64)}
    keyed = KeyedBatch(samples=tuple(range(samples)), identity=identity, batch=batch)
    codec = kdcache.TopKCodec(k=5)
    with no_waits:
        found = encode(codec, 0, keyed, output, key="index", ends_shard=True)
    wanted = codec.encode(logits.reshape(-1, num_classes).cpu(), torch.zeros(12, 2))
    assert torch.equal(found.tensors["ids"].cpu(), wanted["ids"])
    torch.testing.assert_close(found.tensors["tail_log_sums"].cpu(), wanted["tail_log_sums"])
    assert found.statistics[0] == 12
