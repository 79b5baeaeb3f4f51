"""StudentModule in a plain Trainer: what is trained, on what, and what is refused first."""

from __future__ import annotations

import functools

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import kdcache
from kdcache import StudentModule
from kdcache.errors import AlignmentError, DataError, UsageError
from kdcache.train.step.windows import check_sampler
from tests.train import small

# What Lightning itself warns of where the Trainer is the user's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

BOTH = {"kd_loss": 0.9, "student_loss": 0.1}


class Returning(nn.Module):
    """A student that returns losses of its own beside its logits."""

    def __init__(self, **losses):
        super().__init__()
        self.net, self.losses = small.net(1), losses

    def forward(self, inputs):
        logits = self.net(inputs)
        own = {name: factor * logits.square().mean() for name, factor in self.losses.items()}
        return {"logits": logits, "loss": own}


def fit(module, loader, **options):
    """Train in a plain Trainer; its trace."""
    trace = small.Trace()
    small.trainer(callbacks=[trace], **options).fit(module, loader)
    return trace.steps


class Detached(Returning):
    """Whose logits, or losses, have no graph."""

    def __init__(self, what, **losses):
        super().__init__(**losses)
        self.what = what

    def forward(self, inputs):
        returned = super().forward(inputs)
        if self.what == "logits":
            return {**returned, "logits": returned["logits"].detach()}
        return {**returned, "loss": {k: v.detach() for k, v in returned["loss"].items()}}


def test_trains_and_logs_every_loss_and_the_total(cache):
    student = small.net(1)
    before = small.weights(student)
    steps = fit(StudentModule(student, losses=BOTH), small.joined_loader(cache), max_epochs=3)
    assert not torch.equal(before, small.weights(student))
    assert {"train_kd_loss", "train_student_loss", "train_final_loss"} <= steps[0].keys()
    assert steps[-1]["train_final_loss"] < steps[0]["train_final_loss"]


def test_total_of_a_batch_is_the_definition(cache):
    """float64, from the teacher's logits and the formula, without any of our losses."""
    student, teacher, temperature = small.net(1), small.Teacher(), 3.0
    inputs, labels = next(iter(small.loader()))
    with torch.no_grad():
        p = (teacher(inputs).double() / temperature).softmax(-1)
        logits = student(inputs).double()
        log_q = (logits / temperature).log_softmax(-1)
        kd = (p * (p.log() - log_q)).sum(-1).mean() * temperature**2
        expected = 0.7 * kd + 0.3 * F.cross_entropy(logits, labels)
    module = StudentModule(
        student, losses={"kd_loss": 0.7, "student_loss": 0.3}, temperature=temperature
    )
    steps = fit(module, small.joined_loader(cache), max_steps=1)
    assert steps[0]["train_final_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert steps[0]["train_kd_loss"] == pytest.approx(float(kd), rel=1e-5)


def test_returned_losses_are_weighted(cache):
    student = Returning(size=2.0, extra=1.0)
    steps = fit(
        StudentModule(student, losses={"kd_loss": 1.0, "size": 0.5}),
        small.joined_loader(cache),
        max_steps=1,
    )
    (step,) = steps
    total = step["train_kd_loss"] + 0.5 * step["train_size"]
    assert step["train_final_loss"] == pytest.approx(total, rel=1e-6)
    assert step["train_extra"] == pytest.approx(step["train_size"] / 2)  # logged, not weighted


def test_a_returned_student_loss_replaces_the_built_in(cache):
    module = StudentModule(Returning(student_loss=1.0), losses=BOTH)
    (step,) = fit(module, small.joined_loader(cache), max_steps=1)
    built_in = StudentModule(small.net(1), losses=BOTH)
    (other,) = fit(built_in, small.joined_loader(cache), max_steps=1)
    assert step["train_kd_loss"] == pytest.approx(other["train_kd_loss"])
    assert step["train_student_loss"] != pytest.approx(other["train_student_loss"])
    with torch.no_grad():
        own = small.net(1)(next(iter(small.loader()))[0]).square().mean()
    assert step["train_student_loss"] == pytest.approx(float(own))


@pytest.mark.parametrize(
    ("student", "losses", "match"),
    [
        (Returning(kd_loss=1.0), {"kd_loss": 1.0}, "'kd_loss'.*neither is overwritten"),
        (Returning(final_loss=1.0), {"kd_loss": 1.0}, "'final_loss'"),
        (Returning(size=1.0), {"kd_loss": 1.0, "sise": 1.0}, "'sise'.*Did you mean 'size'"),
        (small.net(1), {"kd_los": 1.0}, "'kd_los'.*Did you mean 'kd_loss'"),
        (small.net(1, num_classes=5), {"kd_loss": 1.0}, "5 classes, the teacher's targets 4"),
        (Detached("logits"), {"kd_loss": 1.0}, "student's output has no graph"),
        (Detached("logits", size=1.0), {"kd_loss": 0.0, "student_loss": 1.0}, "has no graph"),
        (Detached("loss", size=1.0), {"size": 1.0}, "a coefficient, size, are those that the stu"),
    ],
)
def test_refused_before_any_weight_changed(cache, student, losses, match):
    before = small.weights(student)
    with pytest.raises((UsageError, DataError), match=match):
        fit(StudentModule(student, losses=losses), small.joined_loader(cache))
    assert torch.equal(before, small.weights(student))


def test_parameters_that_are_frozen_meanwhile_are_said(cache):
    class Freezes(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.student.requires_grad_(batch_idx == 0)

    module = StudentModule(small.net(1))
    with pytest.raises(DataError, match="its parameters were frozen"):
        small.trainer(callbacks=[Freezes()]).fit(module, small.joined_loader(cache))


def test_a_detached_loss_beside_others_is_only_added(cache):
    module = StudentModule(Detached("loss", size=1.0), losses={"kd_loss": 1.0, "size": 1.0})
    (step,) = fit(module, small.joined_loader(cache), max_steps=1)
    assert step["train_final_loss"] == pytest.approx(step["train_kd_loss"] + step["train_size"])


def test_labels_only_with_a_plain_loader():
    student = small.net(1)
    steps = fit(StudentModule(student, losses={"student_loss": 1.0}), small.loader())
    assert steps[0].keys() >= {"train_student_loss", "train_final_loss"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: y.float(), r"torch\.float32 of shape \(16,\); wanted .*\(labels\.long\(\)\)"),
        (lambda y: y[:, None], r"int64 of shape \(16, 1\); wanted .*\(labels\.reshape\(\(16,\)\)"),
        (lambda y: F.one_hot(y, 4), r"of shape \(16, 4\); wanted .*\(labels\.argmax\(-1\), "),
        (lambda y: y[:, None].expand(-1, 3), r"of shape \(16, 3\); wanted "),
    ],
)
def test_labels_that_cannot_be_used_are_described(change, match):
    inputs, labels = small.dataset(small.NUM_TRAIN).tensors
    user = DataLoader(TensorDataset(inputs, change(labels).contiguous()), batch_size=16)
    with pytest.raises(UsageError, match=f"those of the batch cannot be used: they are .*{match}"):
        fit(StudentModule(small.net(1), losses={"student_loss": 1.0}), user)


def test_a_plain_loader_has_no_targets():
    with pytest.raises(UsageError, match="'kd_loss' needs soft targets"):
        fit(StudentModule(small.net(1)), small.loader())


def test_a_batch_without_a_label_is_finite(tmp_path):
    inputs, labels = small.dataset(small.NUM_TRAIN).tensors
    labels = torch.where(torch.arange(len(labels)) < 16, -100, labels)
    user = DataLoader(TensorDataset(inputs, labels), batch_size=16)
    cache = kdcache.dump_teacher(
        small.Teacher(), user, tmp_path / "t.zarr", accelerator="cpu", progress=False
    )
    student = small.net(1)
    steps = fit(StudentModule(student, losses=BOTH), small.joined_loader(cache, user=user))
    assert steps[0]["train_student_loss"] == 0
    assert torch.isfinite(small.weights(student)).all()
    assert steps[0]["train_final_loss"] == pytest.approx(0.9 * steps[0]["train_kd_loss"])


class Pixels(nn.Module):
    """(B, 3, H, W) to (B, C, H, W), or fewer positions, or fewer rows."""

    def __init__(self, stride=1, drop=0):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 5, 1, stride=stride), drop

    def forward(self, images):
        return self.conv(images)[self.drop :]


@pytest.fixture(scope="module")
def pixel_cache(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 4, 4, generator=generator)
    labels = torch.randint(5, (12, 4, 4), generator=generator)
    user = DataLoader(TensorDataset(images, labels), batch_size=4)
    folder = tmp_path_factory.mktemp("pixels")
    mapping = {"inputs": [0], "labels": 1, "class_dim": 1}
    cache = kdcache.dump_teacher(
        Pixels(), user, folder / "t.zarr", batch=mapping, accelerator="cpu", progress=False
    )
    return cache, user, mapping


def test_a_segmentation_student(pixel_cache):
    cache, user, mapping = pixel_cache
    module = StudentModule(Pixels(), losses=BOTH, batch=mapping, learning_rate=0.05)
    steps = fit(module, small.joined_loader(cache, user=user, batch=mapping), max_epochs=4)
    assert steps[-1]["train_kd_loss"] < steps[0]["train_kd_loss"]


@pytest.mark.parametrize(
    ("student", "match"),
    [
        (Pixels(drop=1), "3 rows of a batch of 4 samples"),
        (Pixels(stride=2), "16 valid positions in this batch, the teacher had 64"),
    ],
)
def test_other_positions_are_refused_before_any_weight_changed(pixel_cache, student, match):
    cache, user, mapping = pixel_cache
    before = small.weights(student)
    with pytest.raises(AlignmentError, match=match):
        fit(
            StudentModule(student, batch=mapping),
            small.joined_loader(cache, user=user, batch=mapping),
        )
    assert torch.equal(before, small.weights(student))


def test_gradient_accumulation_is_one_large_batch(cache):
    """Equal batches: the mean of means is the mean."""
    found = []
    for batch_size, accumulate in ((16, 2), (32, 1)):
        student = small.net(1)
        module = StudentModule(student, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
        user = small.loader(batch_size=batch_size)
        fit(
            module,
            module.windowed(small.joined_loader(cache, user=user)),
            accumulate_grad_batches=accumulate,
        )
        found.append(small.weights(student))
    torch.testing.assert_close(found[0], found[1])


def test_bf16_mixed_runs_and_the_losses_stay_float32(cache, monkeypatch):
    seen = []
    original = StudentModule._log_step

    def look(module, terms, *others):
        seen.extend(term.sum.dtype for term in terms.values())
        original(module, terms, *others)

    monkeypatch.setattr(StudentModule, "_log_step", look)

    class Half(nn.Module):
        """Autocast is on around it."""

        def __init__(self):
            super().__init__()
            self.net = small.net(1)

        def forward(self, inputs):
            logits = self.net(inputs)
            assert logits.dtype == torch.bfloat16
            return logits

    steps = fit(
        StudentModule(Half(), losses=BOTH), small.joined_loader(cache), precision="bf16-mixed"
    )
    assert set(seen) == {torch.float32}
    # In bfloat16 a loss has 8 bits: its float32 value would be one of few.
    assert any(
        step["train_kd_loss"] != float(torch.tensor(step["train_kd_loss"]).bfloat16())
        for step in steps
    )


def optimizer_of(module, cache, **options):
    trainer = small.trainer(**options)
    trainer.fit(module, small.joined_loader(cache))
    return trainer.optimizers[0]


def test_only_trainable_parameters_are_optimised(cache):
    student = small.net(1)
    student[0].requires_grad_(False)
    before = student[0].weight.clone()
    optimizer = optimizer_of(StudentModule(student), cache)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in student[2].parameters()}
    assert torch.equal(before, student[0].weight)


def test_a_frozen_student_is_refused(cache):
    with pytest.raises(UsageError, match="no parameter that requires a gradient"):
        fit(StudentModule(small.net(1).requires_grad_(False)), small.joined_loader(cache))


def test_the_schedule_steps_once_an_epoch(cache):
    scheduler = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    module = StudentModule(small.net(1), scheduler=scheduler, learning_rate=0.8)
    assert optimizer_of(module, cache, max_epochs=3).param_groups[0]["lr"] == pytest.approx(0.1)


PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau


@pytest.mark.parametrize(
    ("result", "every", "epochs", "expected"),
    [(0.5, 1, 4, 0.8 * 0.5**3), (0.5, 2, 4, 0.8 * 0.5), (None, 1, 3, 0.8)],
)
def test_a_plateau_is_seen_in_the_monitored_value(cache, result, every, epochs, expected):
    """A constant score is a plateau after every validation; a falling training loss is none."""
    mode = "min" if result is None else "max"
    sets = {} if result is None else {"test": small.loader(small.NUM_TEST, seed=1)}
    module = StudentModule(
        small.net(1),
        scheduler=lambda o: PLATEAU(o, mode=mode, factor=0.5, patience=0, threshold=0.0),
        learning_rate=0.8 if result else 1e-3,
        validation=sets,
        pipelines={name: small.Pipeline(result) for name in sets},
    )
    optimizer = optimizer_of(module, cache, max_epochs=epochs, check_val_every_n_epoch=every)
    scale = 1 if result else 0.8 / 1e-3
    assert optimizer.param_groups[0]["lr"] * scale == pytest.approx(expected)


def test_a_plateau_the_wrong_way_round_is_refused(cache):
    module = StudentModule(
        small.net(1), scheduler=PLATEAU, validation={"test": small.loader(small.NUM_TEST, seed=1)}
    )
    with pytest.raises(
        UsageError, match=r"test_inference_result.*mode 'min'.*scheduler\.mode to max"
    ):
        fit(module, small.joined_loader(cache))


@pytest.mark.parametrize(
    ("monitor", "says"),
    [
        ("test_accuracy", r"monitor 'test_accuracy' is no training loss.*Known: train_final_loss"),
        ("train_kdloss", r"monitor: no loss 'kdloss'\. Did you mean 'kd_loss'"),
    ],
)
def test_what_is_monitored_exists(cache, monitor, says):
    """Said before the first step, not after the first epoch."""
    with pytest.raises(UsageError, match=says):
        fit(StudentModule(small.net(1), monitor=monitor), small.joined_loader(cache))
    module = StudentModule(small.net(1), monitor="train_kd_loss")
    assert module.monitor == ("train_kd_loss", "min")


@pytest.mark.parametrize(
    ("sampler", "is_fine"),
    [
        (RandomSampler(range(96), num_samples=20), False),
        (SequentialSampler(range(20)), False),
        (RandomSampler(range(96), replacement=True), False),
        (WeightedRandomSampler(torch.ones(96), 20), True),
    ],
)
def test_a_sampler_that_several_ranks_would_lose_is_refused(cache, sampler, is_fine):
    loader = DataLoader(small.dataset(96), batch_size=16, sampler=sampler)
    windowed = StudentModule(small.net(1)).windowed(loader)
    if is_fine:
        check_sampler(windowed)
        return
    with pytest.raises(UsageError, match="draws a part of the samples, or some of them twice"):
        check_sampler(windowed)
