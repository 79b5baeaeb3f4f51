"""Optimisers and schedules by name: settings, rates epoch by epoch, and what is refused."""

from __future__ import annotations

import functools
import itertools
import json
import math

import pytest
import torch
from pytorch_lightning.callbacks import BatchSizeFinder, LearningRateFinder
from pytorch_lightning.tuner import Tuner
from torch import nn

from kdcache import StudentModule
from kdcache.errors import UsageError
from kdcache.train.optimization.optimizers import OPTIMIZERS, optimizer_maker
from kdcache.train.optimization.schedules import (
    SCHEDULES,
    Schedule,
    cosine_anneal,
    linear_decay_with_warm_up,
)
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


OTHER = small.net(5)


def two(parameters):
    first, *rest = parameters
    return [torch.optim.Adam([first]), torch.optim.Adam(rest)]


def with_schedule(parameters):
    optimizer = torch.optim.Adam(parameters)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (two, r"returned 2 objects \(Adam, Adam\).*one optimizer with parameter groups"),
        (with_schedule, r"returned 2 objects \(Adam, StepLR\).*is the scheduler"),
        (lambda parameters: [torch.optim.Adam(parameters)], r"returned 1 objects \(Adam\)"),
        (lambda parameters: {"optimizer": torch.optim.Adam(parameters)}, "returned a dict"),
        (lambda parameters: None, "returned None: perhaps its return is missing"),
        (lambda _: torch.optim.SGD(OTHER.parameters(), lr=1.0), "none of which is one of the stu"),
        (torch.optim.Adam(OTHER.parameters()), "optimizer is Adam itself, made before"),
        (3, "a name, or a function from parameters to an optimizer, not 3"),
        (
            lambda parameters: torch.optim.Adam(parameters, lr=-1.0),
            "cannot be made: ValueError at .*test_optimizers.py:.*: Invalid learning rate: -1",
        ),
        (
            torch.optim.Optimizer,
            "the optimizer Optimizer cannot be made: TypeError: .*missing 1 required",
        ),
        (torch.optim.SparseAdam, "the optimizer SparseAdam refuses.*does not support dense grad"),
    ],
)
def test_what_is_not_one_optimizer_of_the_student_is_refused(make, says, train, tmp_path):
    with pytest.raises(UsageError, match=says):
        train(optimizer=make)
    assert not (tmp_path / "run").exists()


class Likeness:
    """Is no torch.optim.Optimizer, and trains like one."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.step, self.zero_grad = optimizer.step, optimizer.zero_grad
        self.state, self.defaults = optimizer.state, optimizer.defaults
        self.state_dict, self.load_state_dict = optimizer.state_dict, optimizer.load_state_dict


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        lambda parameters: torch.optim.Adam(list(parameters)[:2]),  # the rest stays as it is
        lambda parameters: torch.optim.Adam(
            [{"params": [p], "lr": 10.0**-n} for n, p in enumerate(parameters)]
        ),
        lambda p: torch.optim.Adam([*p, nn.Parameter(torch.zeros(1))]),
        lambda parameters: Likeness(torch.optim.Adam(parameters)),
    ],
)
def test_other_optimizers_of_the_student_train(make, train):
    student = small.net(1)
    before = small.weights(student)
    train(student, optimizer=make)
    assert not torch.equal(small.weights(student), before)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda optimizer: None, "returned no schedule, but a NoneType"),
        (
            torch.optim.lr_scheduler.ExponentialLR,
            "the scheduler ExponentialLR cannot be made: TypeError: .*argument: 'gamma'.*lambda",
        ),
        (
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1),
            "the scheduler cannot be made: ValueError at .*total_steps",
        ),
        (
            functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda="0.9 ** epoch"),
            "the scheduler LambdaLR cannot be made: TypeError: 'str' object is not callable",
        ),
        (lambda o: [torch.optim.lr_scheduler.StepLR(o, 1)], "but a list of 1; SequentialLR or"),
        (torch.optim.lr_scheduler.StepLR(torch.optim.Adam(OTHER.parameters()), 1), "StepLR itself"),
    ],
)
def test_what_is_no_schedule_is_refused(make, says, train):
    with pytest.raises(UsageError, match=says):
        train(scheduler=make)


def finder(**options):
    return LearningRateFinder(num_training_steps=40, early_stop_threshold=None, **options)


def drawing(seed):
    """A student whose training draws random numbers."""
    return nn.Sequential(small.net(seed), nn.Dropout(0.5))


SETTINGS = {
    "default": {},
    "by epoch": {"scheduler": "cosine_anneal"},
    "by step": {"scheduler": Schedule(make=linear_decay_with_warm_up, interval="step")},
    "own": {"optimizer": torch.optim.Adam},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_a_found_learning_rate_is_as_one_that_was_given(setting, train, tmp_path, capfd):
    """Weights are those of a training that begins with it: nothing of the search is left."""
    options = {"seed": 3, **SETTINGS[setting]}
    found, given = drawing(1), drawing(1)
    callback = finder(min_lr=1e-4, max_lr=0.1)
    trainer = {"max_epochs": 3, "callbacks": [callback]}
    run = train(found, output=tmp_path / "found", trainer=trainer, **options)
    rate = callback.optimal_lr.suggestion()
    assert rate not in (None, 1e-3)
    if "optimizer" in options:
        options["optimizer"] = lambda parameters: torch.optim.Adam(parameters, lr=rate)
    train(
        given,
        output=tmp_path / "given",
        trainer={"max_epochs": 3},
        learning_rate=rate,
        **options,
    )
    assert torch.equal(small.weights(found), small.weights(given))
    record = json.loads((run.output / "run.json").read_text())
    assert record["found_learning_rate"] == rate
    # The training can be gone on with, without the finder; its rate stays.
    with pytest.raises(UsageError, match="LearningRateFinder cannot be used in a training that is"):
        train(drawing(1), resume=run.output, trainer=trainer, output=tmp_path / "no", **options)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_tuner_sets_the_learning_rate_of_a_module(cache, tmp_path, capfd):
    module = StudentModule(small.net(1))
    trainer = small.trainer(max_epochs=8, default_root_dir=tmp_path)
    loader = module.windowed(small.joined_loader(cache))
    found = Tuner(trainer).lr_find(
        module, train_dataloaders=loader, num_training=40, early_stop_threshold=None
    )
    assert module.learning_rate == found.suggestion() != 1e-3
    trainer.fit(module, module.windowed(small.joined_loader(cache)))
    assert trainer.optimizers[0].param_groups[0]["lr"] == found.suggestion()


def test_a_batch_size_finder_is_refused(train):
    with pytest.raises(UsageError, match=r"BatchSizeFinder cannot be used.*Set batch_size there"):
        train(trainer={"callbacks": [BatchSizeFinder()]})
