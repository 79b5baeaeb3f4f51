"""What a run was: plain values, valid JSON."""

from __future__ import annotations

import enum
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.train.record import (
    plain,
    write_record,
)


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
        (write_record, "kdcache.train.record.write_record"),
        (Kind.A, f"{__name__}.Kind"),
    ],
)
def test_a_record_holds_plain_values(tmp_path, value, expected):
    assert plain(value) == expected
    write_record(tmp_path, {"value": value, "other": 1})
    assert json.loads((tmp_path / "run.json").read_text())["value"] == expected
