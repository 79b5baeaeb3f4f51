"""Validation: whole sets, each through its pipeline, without changing the student."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdcache import JoinedBatch, StudentModule
from kdcache.errors import AlignmentError, DataError, UsageError
from kdcache.targets import DenseTargets
from kdcache.train import AccuracyPipeline
from tests.train import small

# What Lightning itself warns of where the Trainer is the user's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Switching(nn.Module):
    """Says whether it is in train mode."""

    def __init__(self):
        super().__init__()
        self.net, self.modes = small.net(1), []

    def forward(self, inputs):
        self.modes.append(self.training)
        return self.net(inputs)


def test_cached_scores_are_the_definition_in_float64(train):
    student = small.net(1)
    run = train(student, losses={"kd_loss": 1.0})
    inputs, labels = small.dataset(small.NUM_TEST, seed=1).tensors
    with torch.no_grad():
        log_p = small.Teacher()(inputs).double().log_softmax(-1)
        log_q = student(inputs).double().log_softmax(-1)
    scores = run.scores["test"]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    assert scores["teacher_kl"] == pytest.approx(float(kl), rel=1e-5)
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
    assert run.metrics["second_f1"] == 0.5
    assert run.scores["third"].keys() == {"inference_result", "accuracy"}
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
    train(student, trainer={"max_epochs": 2}, pipelines={"test": Rude()})
    assert all(student.modes)


def test_validation_runs_as_often_as_asked(train):
    pipeline = small.Pipeline(0.5)
    train(trainer={"max_epochs": 5, "check_val_every_n_epoch": 2}, pipelines={"test": pipeline})
    assert len(pipeline.seen) == 2


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
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(small.NUM_FEATURES, small.NUM_CLASSES), None

        def forward(self, inputs):
            if self.scale is None:
                self.scale = torch.ones(small.NUM_CLASSES)
            return self.linear(inputs) * self.scale

    model = Keeping()
    AccuracyPipeline().run_inference_pipeline(model, small.loader(8))
    model(torch.randn(2, small.NUM_FEATURES)).sum().backward()
