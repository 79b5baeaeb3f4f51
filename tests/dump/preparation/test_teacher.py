"""The teacher's identity and placement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcache.data.batch.mapping import BatchMapping
from kdcache.dump.preparation.teacher import TeacherForward, class_path, weights_digest
from tests.data import toys


class OfAScript(nn.Module):
    pass


@pytest.mark.parametrize("module", ["__main__", "__mp_main__"])
def test_a_scripts_own_class_has_one_name(monkeypatch, module):
    """Though a process that devices=2 spawns knows the script under another."""
    monkeypatch.setattr(OfAScript, "__module__", module)
    assert class_path(OfAScript) == class_path(OfAScript()) == "__main__.OfAScript"


class OnTwoDevices(nn.Module):
    """As device_map leaves it: its parts are where they are, and it must not be moved."""

    def __init__(self):
        super().__init__()
        self.here, self.there = nn.Linear(3, 3), nn.Linear(3, 3, device="meta")

    def to(self, *args, **kwargs):
        raise AssertionError("it was moved")


def test_a_teacher_on_several_devices_stays_there():
    teacher = OnTwoDevices().train()
    forward = TeacherForward(teacher, BatchMapping(), accelerator="cpu")
    assert forward.module is teacher
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_digest_is_of_names_shapes_dtypes_and_values():
    teacher = toys.make_teacher()
    others = {
        "value": toys.make_teacher(),
        "dtype": toys.make_teacher().double(),
        "shape": toys.make_teacher(),
        "name": nn.Sequential(toys.make_teacher()),
    }
    with torch.no_grad():
        others["value"].weight[0, 0] += 1e-6
        others["shape"].weight = nn.Parameter(teacher.weight.reshape(toys.WIDTH, -1))
    found = {name: weights_digest(one) for name, one in others.items()}
    assert len({weights_digest(teacher), *found.values()}) == 5
    assert weights_digest(toys.make_teacher()) == weights_digest(teacher)


def part_compiled(teacher):
    teacher[0] = torch.compile(teacher[0], backend="eager")
    return teacher


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda model: torch.compile(model, backend="eager"), part_compiled],
)
def test_a_wrapped_teacher_is_the_same_teacher(wrap):
    """A dump goes on with or without torch.compile."""
    wrapped = wrap(nn.Sequential(toys.make_teacher()))
    plain = nn.Sequential(toys.make_teacher())
    assert weights_digest(wrapped) == weights_digest(plain)
    assert class_path(wrapped) == class_path(plain)
