"""What is logged of a step beside its losses."""

from __future__ import annotations

import csv

import pytest
import torch
import torch.nn.functional as F

from kdcache.data.batch.forward import forward
from kdcache.data.batch.mapping import BatchMapping
from kdcache.errors import UsageError
from kdcache.targets import DenseTargets, TopKTargets
from kdcache.train.step import diagnostics
from tests.train import small


def pair(num=12):
    batch = small.dataset(num).tensors
    output = forward(small.net(1), BatchMapping(), batch)
    teacher = small.net(7)(batch[0]).detach()
    return output, teacher


def dense(values):
    return DenseTargets(
        num_positions=torch.ones(len(values), dtype=torch.int64),
        num_classes=values.shape[-1],
        values=values,
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("numbers", [1, 20, 1 << 22])
def test_differences_are_means_over_everything(monkeypatch, temperature, numbers):
    monkeypatch.setattr(diagnostics, "_CHUNK_NUMBERS", numbers)
    output, teacher = pair()
    found = diagnostics.differences(output, dense(teacher), temperature)
    s, t = output.logits / temperature, teacher / temperature
    assert found.keys() == set(diagnostics.DIFFERENCES)
    torch.testing.assert_close(found["logit_diff"], F.mse_loss(s, t).detach())
    torch.testing.assert_close(found["prob_diff"], F.l1_loss(s.softmax(-1), t.softmax(-1)).detach())


def test_classes_that_the_teacher_masks_have_no_logit():
    output, teacher = pair()
    teacher[:, 2] = -torch.inf
    found = diagnostics.differences(output, dense(teacher), 1.0)
    kept = [0, 1, 3]
    wanted = F.mse_loss(output.logits[:, kept], teacher[:, kept]).detach()
    torch.testing.assert_close(found["logit_diff"], wanted)


def test_top_k_targets_do_not_tell():
    output, teacher = pair()
    log_p, ids = teacher.log_softmax(-1).topk(2)
    targets = TopKTargets(
        num_positions=torch.ones(len(teacher), dtype=torch.int64),
        num_classes=4,
        ids=ids,
        log_p=log_p,
        tail_log_sums=torch.zeros(len(teacher), 1),
        temperatures=(1.0,),
    )
    assert diagnostics.differences(output, targets, 1.0) == {}
    assert diagnostics.differences(output, None, 1.0) == {}


@pytest.mark.parametrize("order", [1.0, 2.0, float("inf")])
def test_the_gradients_norm(order):
    net = small.net(1)
    net(torch.ones(3, small.NUM_FEATURES)).square().sum().backward()
    net[0].bias.grad = None
    whole = torch.cat([p.grad.reshape(-1) for p in net.parameters() if p.grad is not None])
    found = diagnostics.gradient_norm(net.parameters(), order)
    torch.testing.assert_close(found, torch.linalg.vector_norm(whole, order))


@pytest.mark.parametrize("order", [0, -1, "two", float("nan")])
def test_a_norm_that_is_none_is_refused(order):
    with pytest.raises(UsageError, match="the norm of a gradient is a number above 0"):
        diagnostics.check_norm(order)


def rows(run):
    with (run.output / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_they_are_logged_at_the_steps_that_are_logged(train):
    """Before the gradient is clipped; and computed at no other step."""
    calls = []
    trainer = {"log_every_n_steps": 4, "max_epochs": 2, "gradient_clip_val": 1e-6}
    whole = diagnostics.differences
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdcache.train.module.differences", lambda *a: calls.append(1) or whole(*a))
        run = train(trainer=trainer)
    found = [row for row in rows(run) if row["grad_2.0_norm_total"]]
    assert [int(row["step"]) for row in found] == [3, 7, 11]
    assert all(float(row["grad_2.0_norm_total"]) > 1e-3 for row in found)
    assert all(float(row["train_logit_diff"]) > 0 for row in found)
    assert len(calls) == 3


@pytest.mark.parametrize("name", diagnostics.DIFFERENCES)
def test_a_student_cannot_return_a_loss_of_such_a_name(train, name):
    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small.net(1)

        def forward(self, inputs):
            return {"logits": self.net(inputs), "loss": {name: torch.zeros(())}}

    with pytest.raises(UsageError, match=f"returned a loss called '{name}'"):
        train(Student())
