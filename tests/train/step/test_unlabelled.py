"""Labels that are none, or of no use, are told: in training, in validation, at the dump."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from kdcache.errors import DataError
from tests.train import small

ALONE, BOTH = {"student_loss": 1.0}, {"kd_loss": 0.5, "student_loss": 0.5}


def data(labels, **validation):
    inputs = small.dataset(small.NUM_TRAIN).tensors[0]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=16)
    return small.Data(loader, **validation)


def labels(value=-100):
    return torch.full((small.NUM_TRAIN,), value)


def one_label():
    found = labels()
    found[20] = 1
    return found


def test_nothing_to_train_is_an_error(train, tmp_path):
    with pytest.raises(DataError, match=r"met no label in epoch 0.*Nothing was trained"):
        train(data=data(labels()), losses=ALONE, trainer={"max_epochs": 3})
    assert not (tmp_path / "run" / "student.safetensors").exists()


def test_labels_that_the_mapping_leaves_out(train):
    batch = {"ignore_index": 255}
    with pytest.raises(DataError, match="met no label in epoch 0"):
        train(data=data(labels(255)), losses={"student_loss": 1, "kd_loss": 0}, batch=batch)


def test_beside_another_loss_it_is_said_once(train, caplog):
    run = train(data=data(labels()), losses=BOTH, trainer={"max_epochs": 3})
    assert caplog.text.count("met no label in epoch") == 1
    assert "only the other losses train the student" in caplog.text
    assert run.student.exists()


@pytest.mark.parametrize("losses", [ALONE, BOTH, {"kd_loss": 1.0}], ids=str)
def test_one_label_in_an_epoch_is_enough(train, losses, caplog):
    found = labels() if losses == {"kd_loss": 1.0} else one_label()
    train(data=data(found), losses=losses)
    assert "met no label" not in caplog.text


USELESS = {
    "float": (torch.rand(small.NUM_TRAIN), r"torch.float32 of shape \(16,\)"),
    "a column": (torch.ones(small.NUM_TRAIN, 1).long(), r"shape \(16, 1\).*reshape"),
    "one-hot": (torch.eye(4).repeat(24, 1).long(), r"shape \(16, 4\).*argmax"),
}


@pytest.mark.parametrize("kind", USELESS)
def test_labels_of_no_use_are_told(train, tmp_path, caplog, kind):
    found, match = USELESS[kind]
    user = data(found)
    kdcache.dump_teacher(
        small.Teacher(), user.train, tmp_path / "t.zarr", accelerator="cpu", progress=False
    )
    assert "split 'train': labels are not used, and no accuracy is measured" in caplog.text
    caplog.clear()
    train(data=user, losses={"kd_loss": 1.0})
    (training,) = [
        r.message for r in caplog.records if "labels are not used in training" in r.message
    ]
    assert re.search(match, training)


def test_an_accuracy_that_becomes_an_agreement_is_told(train, cache, caplog):
    """The cached validation set, with labels that are no class numbers."""
    inputs, _ = small.dataset(small.NUM_TEST, seed=1).tensors
    useless = DataLoader(TensorDataset(inputs, torch.rand(small.NUM_TEST)), batch_size=16)
    data = small.Data(test=useless)
    run = train(data=data, losses={"kd_loss": 1.0}, trainer={"max_epochs": 2})
    assert run.scores["test"]["inference_result"] == run.scores["test"]["teacher_agreement"]
    told = [r.message for r in caplog.records if "there is no accuracy" in r.message]
    assert len(told) == 1
    assert "The result is teacher_agreement" in told[0]
