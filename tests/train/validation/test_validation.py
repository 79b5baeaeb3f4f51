"""Validation: whole sets, each through its pipeline, without changing the student."""

from __future__ import annotations

import copy
import functools
import json

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_model
from torch import nn

import kdcache
from kdcache import DenseCodec, JoinedBatch, StudentModule, TopKCodec
from kdcache.errors import AlignmentError, DataError, UsageError
from kdcache.targets import DenseTargets
from kdcache.train import AccuracyPipeline
from tests.train import small

# What Lightning itself warns of where the Trainer is the user's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Keeping(nn.Module):
    """Keeps a tensor from its last call in eval mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(small.NUM_FEATURES, small.NUM_CLASSES)
        self.scale = None

    def forward(self, inputs):
        if self.scale is None or not self.training:
            self.scale = torch.ones(small.NUM_CLASSES)
        return self.linear(inputs) * self.scale


class Switching(nn.Module):
    """Says whether it is in train mode."""

    def __init__(self):
        super().__init__()
        self.net, self.modes = small.net(1), []

    def forward(self, inputs):
        self.modes.append(self.training)
        return self.net(inputs)


def float64_kl(student):
    inputs, _ = small.dataset(small.NUM_TEST, seed=1).tensors
    with torch.no_grad():
        log_p = small.Teacher()(inputs).double().log_softmax(-1)
        log_q = student(inputs).double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_cached_scores_are_the_definition_in_float64(train):
    student = small.net(1)
    run = train(student, losses={"kd_loss": 1.0})
    inputs, labels = small.dataset(small.NUM_TEST, seed=1).tensors
    with torch.no_grad():
        log_p = small.Teacher()(inputs).double().log_softmax(-1)
        log_q = student(inputs).double().log_softmax(-1)
    scores = run.scores["test"]
    assert scores["teacher_kl"] == pytest.approx(float64_kl(student), rel=1e-5)
    same = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean()
    assert scores["teacher_agreement"] == pytest.approx(float(same))
    right = (log_q.argmax(-1) == labels).double().mean()
    assert scores["accuracy"] == scores["inference_result"] == pytest.approx(float(right))
    assert run.metrics["test_teacher_kl"] == pytest.approx(scores["teacher_kl"])


def test_several_sets_each_with_its_own_pipeline(train):
    """The user's own pipeline gets the user's own batches, of sets in the cache and not."""
    cached, other = small.Pipeline(0.25), small.Pipeline({"inference_result": 1, "f1": 0.5})
    run = train(
        data=small.data(second=small.loader(24, seed=3), third=small.loader(8, seed=4)),
        pipelines={"test": cached, "second": other},
    )
    assert run.metrics["test_inference_result"] == 0.25
    assert run.scores["second"].keys() == {"inference_result", "f1"}
    assert run.metrics["second_f1"] == 0.5
    assert run.scores["third"].keys() == {"inference_result", "accuracy", "cross_entropy"}
    for pipeline, loader in (
        (cached, small.loader(small.NUM_TEST, seed=1)),
        (other, small.loader(24, seed=3)),
    ):
        ((batches, is_training, has_grad, kind),) = pipeline.seen
        assert not is_training
        assert not has_grad
        assert kind is type(loader)
        assert not any(isinstance(batch, JoinedBatch) for batch in batches)
        for found, expected in zip(batches, loader, strict=True):
            assert torch.equal(found[0], expected[0])


def test_the_student_is_back_in_train_mode_after_validation(train):
    student = Switching()
    train(student, trainer={"max_epochs": 2})
    steps, passes = 6, 3
    assert student.modes == 2 * ([True] * steps + [False] * passes)


class Rude:
    """Leaves the student in another mode than it found it."""

    def run_inference_pipeline(self, model, data_loader):
        model.eval()
        model.net.eval()
        return {"inference_result": 0.0}


def test_a_rude_pipeline_does_not_train_in_eval_mode(train):
    student = Switching()
    bare = small.Data(bare=small.loader(8, seed=3))
    train(student, bare, trainer={"max_epochs": 2}, pipelines={"bare": Rude()})
    assert all(student.modes)


@pytest.mark.parametrize(
    ("trainer", "number"),
    [
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, 2),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, 2 + 1),
        ({"max_epochs": 2, "check_val_every_n_epoch": 10}, 0 + 1),
        ({"max_epochs": 1, "val_check_interval": 4}, 1 + 1),
        ({"max_epochs": 9, "max_steps": 9, "check_val_every_n_epoch": 1}, 1 + 1),
        ({"max_epochs": 0}, 0 + 1),
    ],
)
def test_validation_runs_as_often_as_asked_and_at_the_end(train, trainer, number):
    pipeline = small.Pipeline(*range(1, number + 1))
    run = train(trainer=trainer, pipelines={"test": pipeline})
    assert len(pipeline.seen) == number
    assert run.scores["test"]["inference_result"] == number
    assert run.metrics["test_inference_result"] == number


class Restores(Callback):
    """Puts the weights of the first epoch back at the end, as a user's own best ones."""

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            self.state = copy.deepcopy(module.student.state_dict())

    def on_train_end(self, trainer, module):
        module.student.load_state_dict(self.state)


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 3, "check_val_every_n_epoch": 2},
        {"max_epochs": 1, "check_val_every_n_epoch": 10},
        {"max_epochs": 3, "callbacks": [Restores()]},
    ],
    ids=["older", "none", "restored"],
)
def test_scores_are_of_the_weights_in_the_file(train, trainer):
    run = train(trainer=trainer, optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    student = small.net()
    load_model(student, run.student)
    wanted = float64_kl(student)
    assert run.scores["test"]["teacher_kl"] == pytest.approx(wanted, rel=1e-5)
    record = json.loads((run.output / "run.json").read_text())
    assert record["scores"] == run.scores
    assert (record["epochs"], record["steps"]) == (run.epochs, run.steps)
    assert (run.epochs, run.steps) == (trainer["max_epochs"], 6 * trainer["max_epochs"])
    assert record["metrics"]["test_teacher_kl"] == pytest.approx(wanted, rel=1e-5)
    assert record["metrics"]["train_kd_loss"] > 0


@pytest.mark.parametrize("option", [{"fast_dev_run": True}, {"overfit_batches": 1}])
def test_settings_that_limit_batches_never_limit_sets(train, option):
    run = train(data=small.data(second=small.loader(8, seed=3)), trainer=option)
    assert run.scores.keys() == {"test", "second"}


def test_what_a_student_keeps_from_the_last_validation_can_be_trained_on(train, tmp_path):
    student = Keeping()
    for number in range(2):
        train(student, trainer={"check_val_every_n_epoch": 2}, output=tmp_path / str(number))


BOUNDS = tuple(
    f"{split}_{name}"
    for split in ("other", "test")
    for name in ("kd_loss", "teacher_cross_entropy", "teacher_kl")
)


@pytest.mark.parametrize(
    ("codec", "bounds"),
    [
        (TopKCodec(k=2), BOUNDS),
        (TopKCodec(k=small.NUM_CLASSES), ()),
        (DenseCodec(), ()),
    ],
)
def test_lower_bounds_are_named(tmp_path, codec, bounds):
    user = {"test": small.loader(small.NUM_TEST, seed=1), "other": small.loader(8, seed=2)}
    options = {"accelerator": "cpu", "progress": False}
    cache = kdcache.dump_teacher(
        small.Teacher(), {"train": small.loader(), **user}, tmp_path / "t", codec=codec, **options
    )
    run = kdcache.train_student(
        small.net(1),
        small.Data(**user, bare=small.loader(8, seed=3)),
        cache.path,
        progress=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
    assert sorted(run.lower_bounds) == list(bounds)
    assert set(bounds) <= run.metrics.keys()
    record = json.loads((run.output / "run.json").read_text())
    assert record["lower_bounds"] == list(run.lower_bounds)


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (None, "returned None"),
        ("good", "returned 'good'"),
        ({"accuracy": 0.5}, "number under 'inference_result'"),
        ({"inference_result": "0.5"}, "returned str under 'inference_result'"),
        ({"inference_result": True}, "returned bool"),
        ({"inference_result": 0.5, "matrix": torch.zeros(2, 2)}, "returned Tensor under 'matrix'"),
    ],
)
def test_what_a_pipeline_should_not_return(train, result, match):
    with pytest.raises(UsageError, match=match):
        train(pipelines={"test": small.Pipeline(result)})


@pytest.mark.parametrize(
    "number", [1, 0.5, torch.tensor(0.5), torch.tensor([0.5]), np.float32(0.5)]
)
def test_numbers_of_all_kinds(train, number):
    run = train(pipelines={"test": small.Pipeline({"inference_result": number})})
    assert run.metrics["test_inference_result"] == float(number)


class Odd:
    mode = "largest"

    def run_inference_pipeline(self, model, data_loader):
        raise AssertionError


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.zeros(8), r"they are torch\.float32 of shape \(8,\); wanted .*labels\.long\(\)"),
        (torch.zeros(8, 1).long(), r"int64 of shape \(8, 1\); wanted .*reshape\(\(8,\)\)"),
    ],
)
def test_a_set_whose_labels_cannot_be_used_says_what_they_are(train, labels, match):
    inputs = small.dataset(8).tensors[0]
    user = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=8)
    with pytest.raises(DataError, match=f"no cached targets, and labels .*{match}"):
        train(data=small.data(bare=user))


@pytest.mark.parametrize(
    ("pipelines", "match"),
    [
        ({"tset": small.Pipeline(1.0)}, "'tset'.*the sets are test"),
        ({"test": object()}, "object, has no method run_inference_pipeline"),
        ({"test": Odd()}, "mode 'largest'"),
    ],
)
def test_pipelines_refused_before_anything_is_written(train, tmp_path, pipelines, match):
    with pytest.raises(UsageError, match=match):
        train(pipelines=pipelines)
    assert not (tmp_path / "run").exists()


def test_a_validation_set_of_the_trainers_is_refused(cache):
    module = StudentModule(small.net(1))
    with pytest.raises(UsageError, match=r"StudentModule\(validation="):
        small.trainer().fit(module, small.joined_loader(cache), small.loader(small.NUM_TEST))


def test_top_k_targets_without_temperature_1_give_no_kl_at_it(train, tmp_path):
    loaders = {"train": small.loader(), "test": small.loader(small.NUM_TEST, seed=1)}
    codec = kdcache.TopKCodec(k=2, temperatures=(2.0,))
    cache = kdcache.dump_teacher(
        small.Teacher(),
        loaders,
        tmp_path / "t2.zarr",
        codec=codec,
        accelerator="cpu",
        progress=False,
    )
    run = kdcache.train_student(
        small.net(1),
        small.data(),
        cache.path,
        temperature=2.0,
        output=tmp_path / "out",
        progress=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
    assert run.scores["test"].keys() == {
        "inference_result",
        "accuracy",
        "cross_entropy",
        "teacher_agreement",
        "teacher_accuracy",
        "kd_loss",
    }
    assert run.lower_bounds == ("test_kd_loss",)


def test_a_set_with_neither_labels_nor_targets_is_refused(train):
    inputs = small.dataset(8).tensors[0]
    unlabelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs))
    with pytest.raises(DataError, match="neither labels nor cached targets"):
        train(data=small.data(bare=unlabelled))


def test_a_set_that_differs_from_the_cached_one_is_refused(train, tmp_path):
    with pytest.raises(Exception, match="sample 0 of split 'test' is not what the teacher saw"):
        train(data=small.Data(test=small.loader(small.NUM_TEST, seed=2)))
    assert not (tmp_path / "run").exists()


def test_counts_that_only_add_up_are_no_alignment():
    """Two samples of 2 and 4 positions are not two of 3, although both have 6 in all."""
    logits = torch.randn(2, 3, 4)
    targets = DenseTargets(
        values=logits.reshape(6, 4), num_positions=torch.tensor([2, 4]), num_classes=4
    )
    batch = JoinedBatch((logits,), targets)
    with pytest.raises(AlignmentError, match="share them differently"):
        AccuracyPipeline().run_inference_pipeline(nn.Linear(4, 4), [batch])


def test_the_built_in_pipeline_restores_the_mode_it_found():
    model = small.net(1).train()
    AccuracyPipeline().run_inference_pipeline(model, small.loader(8))
    assert model.training
    with pytest.raises(RuntimeError):
        AccuracyPipeline().run_inference_pipeline(model, [(torch.zeros(2, 3), torch.zeros(2))])
    assert model.training


def test_tensors_kept_from_validation_can_meet_gradients():
    model = Keeping()
    AccuracyPipeline().run_inference_pipeline(model, small.loader(8))
    model(torch.randn(2, small.NUM_FEATURES)).sum().backward()
