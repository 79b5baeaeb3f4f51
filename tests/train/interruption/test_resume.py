"""An interrupted training that goes on ends where an uninterrupted one does."""

from __future__ import annotations

import csv
import logging
import signal

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

import kdcache
from kdcache.errors import MismatchError, TerminatedError, UsageError
from tests.train import small

EPOCHS = 3
STEPS_AN_EPOCH = 6


class BrokenError(Exception):
    pass


class Interrupt(Callback):
    """Ends a training before a step, counted from 0, as a failing machine would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise BrokenError


class Terminate(Callback):
    """SIGTERM to this process, before a batch, counted from 0."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            signal.raise_signal(signal.SIGTERM)


def student():
    """Dropout draws from the global generator at every step."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))


class RandomPipeline:
    """Draws random numbers, as a pipeline that samples would."""

    def run_inference_pipeline(self, model, data_loader):
        torch.rand(7), np.random.rand(3)
        return {"inference_result": 0.5}


def shuffled(**options):
    return DataLoader(
        small.dataset(small.NUM_TRAIN), **{"batch_size": 16, "shuffle": True, **options}
    )


def settings(folder, **trainer):
    return {
        "seed": 3,
        "losses": {"kd_loss": 0.7, "student_loss": 0.3},
        "temperature": 2.0,
        "optimizer": "adamW_distilBert",
        "scheduler": "linear_decay_with_warm_up",
        "learning_rate": 0.01,
        "output": folder,
        "trainer": {"max_epochs": EPOCHS, "accelerator": "cpu", **trainer},
        "pipelines": {"test": RandomPipeline()},
        "progress": False,
    }


def every_step(folder):
    return ModelCheckpoint(
        folder,
        filename="step-{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=1,
        save_top_k=-1,
    )


def uninterrupted(cache, folder, data=None, **trainer):
    net = student()
    kdcache.train_student(
        net,
        data or small.Data(shuffled(), test=small.loader(40, 1)),
        cache.path,
        **settings(folder / "whole", **trainer),
    )
    return small.weights(net)


@pytest.mark.parametrize("step", [1, 6, 8, 12, 17])
@pytest.mark.parametrize("options", [{}, {"drop_last": True, "batch_size": 20}, {"shuffle": False}])
def test_a_resumed_training_ends_with_the_same_weights(cache, tmp_path, step, options):
    data = small.Data(shuffled(**options), test=small.loader(40, 1))
    whole = uninterrupted(cache, tmp_path, data)
    calls = [every_step(tmp_path / "kept"), Interrupt(step)]
    steps = EPOCHS * (4 if "drop_last" in options else STEPS_AN_EPOCH)
    if step >= steps:
        pytest.skip("the training has ended by then")
    with pytest.raises(BrokenError):
        kdcache.train_student(
            student(), data, cache.path, **settings(tmp_path / "cut", callbacks=calls)
        )
    net = student()
    run = kdcache.train_student(
        net,
        data,
        cache.path,
        resume=tmp_path / "kept" / f"step-{step}.ckpt",
        **settings(tmp_path / "rest", callbacks=[every_step(tmp_path / "again")]),
    )
    assert torch.equal(small.weights(net), whole)
    assert (run.epochs, run.steps) == (EPOCHS, steps)


def test_a_terminated_training_goes_on_in_its_own_folder(cache, tmp_path):
    """Between two micro-batches of a step the step is finished first, and then saved."""
    whole = uninterrupted(cache, tmp_path, accumulate_grad_batches=2)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    data = small.Data(shuffled(), test=small.loader(40, 1))
    options = settings(tmp_path / "run", accumulate_grad_batches=2)
    try:
        options["trainer"]["callbacks"] = [Terminate(batch=6)]
        with pytest.raises(TerminatedError, match=r"after 4 steps.*Go on with resume="):
            kdcache.train_student(student(), data, cache.path, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    del options["trainer"]["callbacks"], options["output"]
    net = student()
    run = kdcache.train_student(net, data, cache.path, resume=tmp_path / "run", **options)
    assert run.output == tmp_path / "run"
    assert torch.equal(small.weights(net), whole)
    with (run.output / "metrics.csv").open() as file:
        epochs = {row["epoch"] for row in csv.DictReader(file)}
    assert epochs >= {"0", "1", "2"}


class TerminateInValidation(Callback):
    """SIGTERM while sets are scored, in an epoch counted from 0."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_validation_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch and trainer.state.fn == "fit":
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("epoch", range(EPOCHS))
@pytest.mark.parametrize("trainer", [{}, {"val_check_interval": 0.5}], ids=["epoch", "half"])
def test_a_training_terminated_in_a_validation_loses_nothing(cache, tmp_path, epoch, trainer):
    data = small.Data(shuffled(), test=small.loader(40, 1), second=small.loader(8, 3))
    options = settings(tmp_path / "run", **trainer) | {"pipelines": {}}
    whole = student()
    kdcache.train_student(whole, data, cache.path, **(options | {"output": tmp_path / "whole"}))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    options["trainer"]["callbacks"] = [TerminateInValidation(epoch)]
    try:
        with pytest.raises(TerminatedError, match=r"Go on with resume="):
            kdcache.train_student(student(), data, cache.path, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    del options["trainer"]["callbacks"], options["output"]
    net = student()
    run = kdcache.train_student(net, data, cache.path, resume=tmp_path / "run", **options)
    assert torch.equal(small.weights(net), small.weights(whole))
    assert run.scores.keys() == {"test", "second"}
    assert (run.epochs, run.steps) == (EPOCHS, EPOCHS * STEPS_AN_EPOCH)


def test_a_checkpoint_within_a_step_goes_through_it_again(cache, tmp_path):
    """Gradients are in no checkpoint."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.fit_loop.total_batch_idx == 8:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    data = small.Data(shuffled())
    options = settings(tmp_path / "whole", accumulate_grad_batches=2, callbacks=[Save()])
    del options["pipelines"]
    net, again = small.net(1), small.net(1)
    kdcache.train_student(net, data, cache.path, **options)
    options["trainer"]["callbacks"] = []
    options["output"] = tmp_path / "rest"
    kdcache.train_student(again, data, cache.path, resume=tmp_path / "within.ckpt", **options)
    assert torch.equal(small.weights(net), small.weights(again))


def test_a_training_that_ended_is_prolonged_in_a_new_folder(cache, tmp_path):
    options = settings(tmp_path / "run", max_epochs=2) | {"scheduler": None}
    data = small.Data(shuffled(), test=small.loader(40, 1))
    kdcache.train_student(student(), data, cache.path, **options)
    net = student()
    options |= {"trainer": {"max_epochs": EPOCHS, "accelerator": "cpu"}, "output": None}
    run = kdcache.train_student(net, data, cache.path, resume=tmp_path / "run", **options)
    assert run.output != tmp_path / "run"
    assert run.epochs == EPOCHS
    whole = student()
    options["output"] = tmp_path / "whole"
    kdcache.train_student(whole, data, cache.path, **options)
    assert torch.equal(small.weights(net), small.weights(whole))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(small.dataset(small.NUM_TRAIN))


def weighted():
    data = small.dataset(small.NUM_TRAIN)
    sampler = WeightedRandomSampler(torch.ones(len(data)), len(data))
    return DataLoader(data, batch_size=16, sampler=sampler)


@pytest.mark.parametrize("kind", ["sampler", "stream"])
def test_with_a_foreign_order_the_epoch_is_begun_again(cache, tmp_path, kind, caplog):
    path = cache.path
    if kind == "stream":
        path = tmp_path / "teacher.zarr"
        kdcache.dump_teacher(
            small.Teacher(),
            DataLoader(Stream(), batch_size=16),
            path,
            key="content",
            accelerator="cpu",
            progress=False,
            pilot=False,
        )
    data = weighted() if kind == "sampler" else DataLoader(Stream(), batch_size=16)
    calls = [every_step(tmp_path / "kept"), Interrupt(9)]
    options = settings(tmp_path / "cut", callbacks=calls) | {"scheduler": None}
    del options["pipelines"]
    with pytest.raises(BrokenError):
        kdcache.train_student(student(), data, path, **options)
    options["trainer"]["callbacks"] = [every_step(tmp_path / "again")]
    options["output"] = tmp_path / "rest"
    with caplog.at_level(logging.WARNING):
        run = kdcache.train_student(
            student(), data, path, resume=tmp_path / "kept" / "step-9.ckpt", **options
        )
    assert "from within epoch 1 (from 0), after 3 batches" in caplog.text
    assert "the epoch is begun again" in caplog.text
    assert (run.epochs, run.steps) == (EPOCHS, 9 + 2 * STEPS_AN_EPOCH)


def test_another_run_is_not_gone_on_with(cache, tmp_path):
    options = settings(tmp_path / "run", max_epochs=1) | {"scheduler": None}
    data = small.Data(shuffled(), test=small.loader(40, 1))
    kdcache.train_student(student(), data, cache.path, **options)
    options |= {"output": tmp_path / "next", "temperature": 3.0, "losses": {"kd_loss": 1.0}}
    with pytest.raises(MismatchError, match="2 of 10 fields differ") as caught:
        kdcache.train_student(student(), data, cache.path, resume=tmp_path / "run", **options)
    assert "temperature     checkpoint 2.0   this run 3.0" in str(caught.value)
    assert not (tmp_path / "next").exists()


def test_what_is_no_checkpoint_is_said(cache, tmp_path):
    options = settings(tmp_path / "next")
    with pytest.raises(UsageError, match=r"there is no checkpoint .*last\.ckpt to resume from"):
        kdcache.train_student(student(), small.data(), cache.path, resume=tmp_path, **options)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "weights.ckpt")
    alone = {"kdcache": {}, "global_step": 3, "state_dict": {}}
    torch.save(alone, tmp_path / "alone.ckpt")  # as ModelCheckpoint(save_weights_only=True) does
    said = "is no checkpoint of a student run"
    refusals = {
        "text.ckpt": ": it is damaged",
        "weights.ckpt": f" {said}",
        "alone.ckpt": f" {said}",
    }
    for name, says in refusals.items():
        with pytest.raises(UsageError, match=f"{name}{says}"):
            kdcache.train_student(
                student(), small.data(), cache.path, resume=tmp_path / name, **options
            )


def test_other_steps_begin_the_epoch_again(cache, tmp_path, caplog):
    """How many samples are done, and which, is no longer a number of batches."""
    data = small.Data(shuffled(), test=small.loader(40, 1))
    options = settings(tmp_path / "cut", callbacks=[every_step(tmp_path / "kept"), Interrupt(9)])
    with pytest.raises(BrokenError):
        kdcache.train_student(student(), data, cache.path, **options)
    with caplog.at_level(logging.WARNING):
        run = kdcache.train_student(
            student(),
            data,
            cache.path,
            resume=tmp_path / "kept" / "step-9.ckpt",
            **settings(
                tmp_path / "rest",
                accumulate_grad_batches=2,
                callbacks=[every_step(tmp_path / "again")],
            ),
        )
    assert "of 1 batches on each of 1 ranks, those of this run are of 2 on each" in caplog.text
    assert "the epoch is begun again" in caplog.text
    assert run.steps == 9 + 2 * (STEPS_AN_EPOCH // 2)


def test_another_learning_rate_is_not_ignored(cache, tmp_path):
    """An optimiser's state brings its own."""
    data = small.Data(shuffled(), test=small.loader(40, 1))
    options = settings(tmp_path / "run", max_epochs=2)
    kdcache.train_student(student(), data, cache.path, **options)
    options |= {"output": tmp_path / "next", "trainer": {"max_epochs": 3, "accelerator": "cpu"}}
    for change in (
        {"learning_rate": 0.5},
        {"optimizer": "sgd"},
        {"scheduler": None},
        {"scheduler": "cosine_anneal"},
    ):
        with pytest.raises(
            MismatchError, match=r"cannot resume with another (optimizer|scheduler)"
        ):
            kdcache.train_student(
                student(), data, cache.path, resume=tmp_path / "run", **(options | change)
            )


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")


def test_a_plateau_is_said_not_to_be_exact(cache, tmp_path, caplog):
    data = small.Data(shuffled(), test=small.loader(40, 1))
    options = settings(tmp_path / "run", max_epochs=2) | {"scheduler": plateau}
    kdcache.train_student(student(), data, cache.path, **options)
    assert "ReduceLROnPlateau is gone on with" not in caplog.text
    options |= {"output": tmp_path / "next", "trainer": {"max_epochs": 3, "accelerator": "cpu"}}
    kdcache.train_student(student(), data, cache.path, resume=tmp_path / "run", **options)
    assert "ReduceLROnPlateau is gone on with" in caplog.text


def test_a_linear_decay_of_another_length_is_refused(cache, tmp_path):
    """Its first new epoch would have had the learning rate 0."""
    data = small.Data(shuffled(), test=small.loader(40, 1))
    options = settings(tmp_path / "run", max_epochs=2)
    kdcache.train_student(student(), data, cache.path, **options)
    options |= {"output": tmp_path / "next", "trainer": {"max_epochs": 4, "accelerator": "cpu"}}
    with pytest.raises(MismatchError, match="cannot resume with another scheduler"):
        kdcache.train_student(student(), data, cache.path, resume=tmp_path / "run", **options)


def test_steps_of_another_size_are_said_between_epochs_too(cache, tmp_path, caplog):
    data = small.Data(shuffled(), test=small.loader(40, 1))
    options = settings(tmp_path / "run", max_epochs=2) | {"scheduler": None}
    kdcache.train_student(student(), data, cache.path, **options)
    options["output"] = tmp_path / "next"
    options["trainer"] = {"max_epochs": 3, "accelerator": "cpu", "accumulate_grad_batches": 2}
    run = kdcache.train_student(student(), data, cache.path, resume=tmp_path / "run", **options)
    assert "steps are of another size: steps were of 1 batches on each of 1 ranks" in caplog.text
    assert run.steps == 2 * STEPS_AN_EPOCH + STEPS_AN_EPOCH // 2
