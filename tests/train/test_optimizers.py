"""Optimisers and schedules by name: settings, rates epoch by epoch, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from kdcache.errors import UsageError
from kdcache.train.optimizers import OPTIMIZERS, optimizer_maker
from kdcache.train.schedules import SCHEDULES, Schedule, cosine_anneal, linear_decay_with_warm_up
from tests.train import small

PRESETS = {
    "adam": (torch.optim.Adam, (0.9, 0.999), 1e-8),
    "sgd": (torch.optim.SGD, None, None),
    "adam_wav2vec2.0": (torch.optim.Adam, (0.9, 0.98), 1e-6),
    "adam_distilBert": (torch.optim.Adam, (0.9, 0.999), 1e-6),
    "adamW_distilBert": (torch.optim.AdamW, (0.9, 0.98), 1e-6),
}


@pytest.mark.parametrize(("name", "kind", "betas", "eps"), [(k, *v) for k, v in PRESETS.items()])
def test_a_name_is_an_optimizer_with_its_settings(name, kind, betas, eps):
    made = optimizer_maker(name, 0.02)([nn.Parameter(torch.zeros(1))])
    assert type(made) is kind
    assert made.defaults["lr"] == 0.02
    assert (made.defaults.get("betas"), made.defaults.get("eps")) == (betas, eps)


def test_all_names_are_tested_here():
    assert OPTIMIZERS.keys() == PRESETS.keys()
    assert SCHEDULES.keys() == {"linear_decay_with_warm_up", "cosine_anneal"}


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match=r"no optimizer 'adamw_distilbert'\. Did you mean 'adam"):
        optimizer_maker("adamw_distilbert", 0.1)
    with pytest.raises(UsageError, match=r"no schedule 'cosine'\. Did you mean 'cosine_anneal'"):
        Schedule.of("cosine")
    with pytest.raises(UsageError, match="interval is epoch or step, not 'batch'"):
        Schedule(make=cosine_anneal, interval="batch")


def rates(make, num, *arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, *arguments)
    found = []
    for _ in range(num):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("total", "warm_up", "expected"),
    [
        (4, 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        (5, 2, [1 / 2, 1, 1, 2 / 3, 1 / 3]),
        (3, 2, [1 / 2, 1, 1]),
        (1, 0, [1]),
    ],
)
def test_linear_decay_is_never_0_in_an_epoch(total, warm_up, expected):
    found = rates(linear_decay_with_warm_up, total, total, warm_up)
    assert found == pytest.approx(expected)
    assert min(found) > 0


@pytest.mark.parametrize(("total", "warm_up"), [(3, 3), (3, -1), (-1, 0)])
def test_a_warm_up_fits_into_the_training(total, warm_up):
    with pytest.raises(UsageError, match=r"does not fit|has no end"):
        rates(linear_decay_with_warm_up, 1, total, warm_up)


def test_cosine_annealing_restarts_every_nine_epochs():
    found = rates(cosine_anneal, 19, 19)
    assert found[0] == found[9] == found[18] == 1
    falling = itertools.pairwise(found[:9])
    assert all(later < earlier for earlier, later in falling)
    fourth = 1e-6 + (1 - 1e-6) * (1 + math.cos(math.pi * 4 / 9)) / 2
    assert found[4] == pytest.approx(fourth)


def logged_rates(train, **options):
    seen = []

    class Watch(small.Trace):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = {"max_epochs": 3, "callbacks": [Watch()], **options.pop("trainer", {})}
    train(trainer=trainer, learning_rate=0.5, optimizer="sgd", **options)
    return seen


def test_a_schedule_is_stepped_once_an_epoch_of_the_trainer(train):
    found = logged_rates(train, scheduler="linear_decay_with_warm_up")
    assert found == pytest.approx([0.5] * 6 + [0.5 * 2 / 3] * 6 + [0.5 / 3] * 6)


def test_or_at_every_step(train):
    schedule = Schedule(make=SCHEDULES["linear_decay_with_warm_up"], interval="step")
    found = logged_rates(train, scheduler=schedule)
    assert found == pytest.approx([0.5 * (18 - step) / 18 for step in range(18)])


def test_steps_are_of_the_optimizer(train):
    schedule = Schedule(make=SCHEDULES["linear_decay_with_warm_up"], interval="step")
    found = logged_rates(train, scheduler=schedule, trainer={"accumulate_grad_batches": 3})
    assert found == pytest.approx([0.5 * (6 - step // 3) / 6 for step in range(18)])


def test_a_plateau_is_looked_at_once_an_epoch(train):
    schedule = Schedule(
        make=lambda optimizer, _: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max"),
        interval="step",
    )
    with pytest.raises(UsageError, match=r"once an epoch: leave out scheduler\.interval"):
        train(scheduler=schedule)


def test_a_training_without_an_end_has_no_linear_decay(train):
    with pytest.raises(UsageError, match=r"has no end. Set trainer\.max_epochs"):
        train(scheduler="linear_decay_with_warm_up", trainer={"max_epochs": -1, "max_steps": 3})
