"""A student that is lost is an error, not a result: objective, weights, logits."""

from __future__ import annotations

import functools

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from kdcache.errors import DataError
from kdcache.train import AccuracyPipeline
from kdcache.train.step.finite import FiniteObjective, Note, non_finite_error
from tests.train import small

STEPS = 6  # in an epoch of the small data


class LostAt(nn.Module):
    """A student whose logits, or a loss of its own, are NaN from one training step on."""

    def __init__(self, step, own=False):
        super().__init__()
        self.net, self.step, self.own, self.calls = small.net(1), step, own, 0

    def forward(self, inputs):
        logits = self.net(inputs)
        is_lost = self.training and self.calls >= self.step
        self.calls += self.training
        own = logits.square().mean() * (float("nan") if is_lost and self.own else 1.0)
        if is_lost and not self.own:
            logits = logits * float("inf")
        return {"logits": logits, "loss": {"size": own}}


LOSSES = {"kd_loss": 1.0, "size": 0.5}


def test_a_lost_objective_names_its_step_and_every_loss(train, tmp_path):
    student = LostAt(3, own=True)
    with pytest.raises(DataError) as caught:
        train(student, losses=LOSSES)
    text = str(caught.value)
    assert text.startswith("the objective is nan in step 3 of epoch 0 (both from 0): size nan, kd_")
    assert "kd_loss nan" not in text
    assert "lower learning rate" in text
    assert student.calls == 4
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_earlier_epochs_stay(train, tmp_path):
    with pytest.raises(DataError, match="in step 8 of epoch 1"):
        train(LostAt(8), losses=LOSSES, trainer={"max_epochs": 3})
    run = tmp_path / "run"
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == STEPS
    assert not (run / "student.safetensors").exists()
    assert not (run / "run.json").exists()


@pytest.mark.parametrize("sets", [{}, {"test": small.loader(small.NUM_TEST, seed=1)}])
def test_where_reading_would_wait_it_is_read_before_the_epoch_counts(
    train, tmp_path, monkeypatch, sets
):
    """As on an accelerator, where nothing is logged in an epoch of 6 steps."""
    is_due = FiniteObjective.is_due
    monkeypatch.setattr(
        FiniteObjective, "is_due", lambda self, **given: is_due(self, **{**given, "waits": True})
    )
    student = LostAt(2)
    with pytest.raises(DataError, match="in step 2 of epoch 0"):
        train(student, data=small.Data(**sets), losses=LOSSES, trainer={"log_every_n_steps": 50})
    assert student.calls == STEPS
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_only_logged_may_be_anything(train):
    assert train(LostAt(0, own=True), losses={"kd_loss": 1.0}).student.exists()


def test_a_step_that_ends_far_away_is_found(train):
    with pytest.raises(DataError, match="in step 1 of epoch 0"):
        train(optimizer=functools.partial(torch.optim.SGD, lr=1e30))


class Spoils(Callback):
    """The last step of a run makes a weight NaN: no loss sees it."""

    def on_train_end(self, trainer, module):
        with torch.no_grad():
            module.student[0].bias[0] = float("nan")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (small.loader(), r"1 of the student's parameters are NaN or infinite \(0\.bias\)"),
        (small.data(), "logits are NaN or .inf at 40 of 40 positions"),
    ],
)
def test_weights_that_no_loss_has_seen(train, tmp_path, data, match):
    with pytest.raises(DataError, match=match):
        train(data=data, trainer={"callbacks": [Spoils()]})
    assert not (tmp_path / "run" / "student.safetensors").exists()


class Answers(nn.Module):
    """Zero logits but for one value."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))

    def forward(self, inputs):
        logits = torch.zeros(len(inputs), small.NUM_CLASSES)
        return logits.index_put((torch.tensor(0), torch.tensor(1)), self.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_score_is_made_of_logits_that_are_no_answer(value):
    with pytest.raises(DataError, match="at 3 of 40 positions"):  # one in each of 3 batches
        AccuracyPipeline().run_inference_pipeline(Answers(value), small.loader(40))


def test_a_class_that_the_student_masks_is_an_answer():
    scores = AccuracyPipeline().run_inference_pipeline(Answers(-float("inf")), small.loader(40))
    assert 0 <= scores["accuracy"] <= 1


def note(step, total=1.0):
    return Note(epoch=0, step=step, total=torch.tensor(total), losses={})


def test_notes_are_read_together_and_once():
    objective = FiniteObjective()
    for step, total in enumerate([1.0, float("inf"), 0.5, float("nan")]):
        objective.note(note(step, total))
    assert objective.read().step == 1
    assert objective.read() is None
    objective.note(note(4))
    assert objective.read() is None


@pytest.mark.parametrize(
    ("step", "log_every", "waits", "expected"),
    [
        (7, 50, False, True),
        (7, 50, True, False),
        (50, 50, True, True),
        (50, 0, True, False),
    ],
)
def test_when_notes_are_read(step, log_every, waits, expected):
    objective = FiniteObjective()
    objective.note(note(step))
    assert objective.is_due(step=step, log_every=log_every, waits=waits) is expected


def test_notes_do_not_pile_up():
    objective = FiniteObjective()
    for step in range(100):
        assert not objective.is_due(step=step, log_every=0, waits=True)
        objective.note(note(step))
    assert objective.is_due(step=100, log_every=0, waits=True)


@pytest.mark.parametrize(("precision", "is_said"), [("16-mixed", True), ("32-true", False)])
def test_half_precision_is_named_where_it_is_used(precision, is_said):
    assert ("gradient scaler" in str(non_finite_error(note(0), precision))) is is_said
    assert "another process" in str(non_finite_error(None, precision))
