"""What a run was: plain values, valid JSON."""

from __future__ import annotations

import enum
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.train.results.record import (
    describe_data,
    describe_optimizer,
    describe_scheduler,
    describe_student,
    plain,
    write_record,
)
from tests.train import small


class Kind(enum.Enum):
    A = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.float64("nan"), "nan"),
        (torch.tensor(2), 2),
        (torch.zeros(2, 2), "torch.Tensor"),
        (Path("a") / "b", str(Path("a") / "b")),
        ((1, {2}), [1, [2]]),
        ({1: True, "a": None}, {"1": True, "a": None}),
        (nn.ReLU(), "torch.nn.modules.activation.ReLU"),
        (nn.ReLU, "torch.nn.modules.activation.ReLU"),
        (write_record, "kdcache.train.results.record.write_record"),
        (Kind.A, f"{__name__}.Kind"),
    ],
)
def test_a_record_holds_plain_values(tmp_path, value, expected):
    assert plain(value) == expected
    write_record(tmp_path, {"value": value, "other": 1})
    assert json.loads((tmp_path / "run.json").read_text())["value"] == expected


def test_a_student_is_told_by_class_and_size():
    student = small.net()
    student[0].requires_grad_(False)
    assert describe_student(student) == {
        "student": "torch.nn.modules.container.Sequential",
        "num_parameters": 8 * 16 + 16 + 16 * 4 + 4,
        "num_trainable": 16 * 4 + 4,
    }


def test_data_are_told_by_class_and_batch():
    assert describe_data(small.data(), small.loader()) == {
        "data": f"{small.Data.__module__}.Data",
        "dataset": "torch.utils.data.dataset.TensorDataset",
        "batch_size": 16,
    }


def test_optimisers_and_schedules_are_told_with_their_settings():
    optimizer = torch.optim.SGD(small.net().parameters(), lr=torch.tensor(0.5), momentum=0.9)
    described = describe_optimizer(optimizer)
    assert described["class"] == "torch.optim.sgd.SGD"
    assert (described["settings"]["lr"], described["settings"]["momentum"]) == (0.5, 0.9)
    described = describe_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7))
    assert described["class"] == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert described["settings"]["T_max"] == 7
    json.dumps(described, allow_nan=False)
    assert describe_scheduler(object()) == {"class": "builtins.object", "settings": {}}
