"""A lossless cache is the live teacher: the same gradients, the same training, step for step."""

from __future__ import annotations

import copy
import itertools

import digits
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from kdcache import CachedDataset
from kdcache.losses import kd_loss

NUM_BATCHES = 100


def live_kd(student_logits, teacher_logits, temperature):
    """Forward KL times T**2 per position, from the definition, with the teacher in memory."""
    log_q = (student_logits / temperature).log_softmax(-1)
    log_p = (teacher_logits / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean() * temperature**2


def gradient(student, loss):
    parameters = list(student.parameters())
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_gradient_equals_the_live_teachers_on_100_batches(lossless_cache, temperature):
    teacher = digits.trained_teacher()
    student = digits.net(16, seed=1)
    joined = CachedDataset(digits.train_set(), lossless_cache["train"])
    loader = DataLoader(joined, batch_size=32, shuffle=True, collate_fn=joined.collate_fn)
    batches = itertools.islice(itertools.chain(loader, loader, loader), NUM_BATCHES)
    seen = 0
    for (images, _), targets in batches:
        student_logits = student(images)
        with torch.no_grad():
            teacher_logits = teacher(images)
        cached = gradient(student, kd_loss(student_logits, targets, temperature).mean())
        live = gradient(student, live_kd(student(images), teacher_logits, temperature))
        assert (cached - live).norm() <= 1e-6 * live.norm()
        seen += 1
    assert seen == NUM_BATCHES


def test_the_whole_loss_trace_is_the_live_teachers(lossless_cache):
    """Two epochs of Adam on shuffled batches; the teacher sees batches formed as at the dump."""
    teacher = digits.trained_teacher()
    train = digits.train_set()
    with torch.no_grad():
        live_logits = torch.cat([teacher(images) for images, _ in digits.loader(train)])
    traces = []
    for is_live in (True, False):
        student = digits.net(16, seed=1)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
        joined = CachedDataset(train, lossless_cache["train"])
        order = torch.Generator().manual_seed(3)
        trace = []
        for _ in range(2):
            for indices in torch.randperm(len(train), generator=order).split(64):
                batch = joined.collate_fn(joined.__getitems__(indices.tolist()))
                targets = batch.targets
                if is_live:
                    targets = copy.copy(targets)
                    object.__setattr__(targets, "values", live_logits[indices])
                loss = 0.9 * kd_loss(student(batch.batch[0]), targets, 4.0).mean()
                loss = loss + 0.1 * nn.functional.cross_entropy(
                    student(batch.batch[0]), batch.batch[1]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                trace.append(loss.item())
        traces.append(trace)
    assert traces[0] == traces[1]
    assert traces[0][-1] < traces[0][0] / 2
