"""TensorBoard's event file, read back by TensorBoard."""

from __future__ import annotations

import importlib.util

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

import kdcache
from kdcache.errors import UsageError
from kdcache.tracking.callbacks import WeightHistograms
from kdcache.tracking.tensorboard import EventFiles
from tests.tracking.comet.archives import values_in
from tests.train import small

HPARAMS = "_hparams_/session_start_info"


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return found


def test_metrics_hyper_parameters_and_histograms(train, cache):
    student = small.net(1)
    run = train(
        student,
        tracking={"loggers": ["csv", "tensorboard"], "parameters": {"note": "hello"}},
        trainer={"max_epochs": 2, "log_every_n_steps": 1},
    )
    found = events(run.output)
    scalars = {
        (name, event.step): event.value
        for name in found.Tags()["scalars"]
        if name != "epoch"
        for event in found.Scalars(name)
    }
    assert scalars == pytest.approx(values_in(run.output))
    content = found.SummaryMetadata(HPARAMS).plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    assert values["digest"].string_value == cache["train"].digest
    assert values["parameters/note"].string_value == "hello"
    assert values["losses/kd_loss"].number_value == 1.0
    assert set(found.Tags()["histograms"]) == {f"student.{n}" for n in student.state_dict()}
    last = found.Histograms("student.0.weight")[-1]
    weight = student[0].weight
    assert last.step == 12
    assert last.histogram_value.num == weight.numel()
    assert last.histogram_value.min == pytest.approx(float(weight.detach().min()))


@pytest.mark.parametrize("tracking", [{"histograms": False}, {}])
def test_histograms_can_be_left_out(train, tracking):
    run = train(tracking={"loggers": ["tensorboard"], **tracking})
    assert bool(events(run.output).Tags()["histograms"]) is tracking.get("histograms", True)
    assert not (run.output / "metrics.csv").exists()


def test_weights_that_are_frozen_or_not_finite(tmp_path):
    """They have no histogram; what is finite of a weight has."""
    module = kdcache.StudentModule(small.net(1))
    with torch.no_grad():
        module.student[0].bias.fill_(torch.nan)
        module.student[2].bias[0] = -torch.inf
    module.student[0].weight.requires_grad_(False)
    logger = EventFiles(tmp_path)
    trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)
    WeightHistograms().on_train_epoch_end(trainer, module)
    logger.finalize("success")
    found = events(tmp_path)
    assert set(found.Tags()["histograms"]) == {"student.2.weight", "student.2.bias"}
    assert found.Histograms("student.2.bias")[0].histogram_value.num == small.NUM_CLASSES - 1


def test_what_is_logged_after_a_checkpoint_is_forgotten_on_resuming(train):
    options = {"max_epochs": 2, "log_every_n_steps": 1}
    run = train(tracking={"loggers": ["tensorboard"]}, trainer=options)
    (run.output / "run.json").unlink()
    train(
        tracking={"loggers": ["tensorboard"]},
        trainer={**options, "max_epochs": 3},
        resume=run.output / "checkpoints" / "best-epoch-000-step-6.ckpt",
        output=None,
    )
    steps = [event.step for event in events(run.output).Scalars("train_kd_loss_step")]
    assert steps == list(range(18))


def test_the_extra_is_named_where_it_is_missing(train, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorboard" else find(name),
    )
    with pytest.raises(UsageError, match=r"pip install 'kdcache\[tensorboard\]'"):
        train(tracking={"loggers": ["tensorboard"]})
    assert not (tmp_path / "run").exists()
