"""train_student: one call from a cache to a trained student."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from torch import nn

import kdcache
from kdcache.errors import CacheMissingError, UnsupportedTargetsError, UsageError
from tests.train import small


def test_no_teacher_is_alive_in_stage_two(tmp_path):
    """The live objects of the whole process are looked through, after a dump in it."""
    teacher = small.Teacher()
    kdcache.dump_teacher(
        teacher, small.loader(), tmp_path / "t.zarr", accelerator="cpu", progress=False
    )
    del teacher
    seen = []

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small.net(1)

        def forward(self, inputs):
            seen.append(teachers())
            return self.net(inputs)

    kdcache.train_student(
        Student(),
        small.loader(),
        tmp_path / "t.zarr",
        progress=False,
        trainer={"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 1},
    )
    assert seen == [0]
    assert teachers() == 0


def teachers():
    gc.collect()
    return sum(type(one) is small.Teacher for one in gc.get_objects())


def test_a_seed_makes_a_run_repeatable(train, tmp_path):
    shuffled = torch.utils.data.DataLoader(
        small.dataset(small.NUM_TRAIN), batch_size=16, shuffle=True
    )
    found = []
    for number, seed in enumerate((3, 3, 4)):
        student = small.net(1)
        train(student, data=shuffled, seed=seed, output=tmp_path / str(number))
        found.append(small.weights(student))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_runs_are_numbered_beside_the_cache(tmp_path):
    path = tmp_path / "teacher.zarr"
    kdcache.dump_teacher(small.Teacher(), small.loader(), path, accelerator="cpu", progress=False)
    outputs = [
        kdcache.train_student(
            small.net(1),
            small.loader(),
            path,
            progress=False,
            trainer={"max_epochs": 1, "accelerator": "cpu"},
        ).output
        for _ in range(2)
    ]
    assert outputs == [tmp_path / "students" / "run-0001", tmp_path / "students" / "run-0002"]


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small.net(1)

    def forward(self, inputs):
        raise RuntimeError("out of paint")


@pytest.mark.parametrize(
    ("student", "options", "match"),
    [
        (Failing(), {}, "out of paint"),
        (None, {"losses": {"kd_los": 1.0}}, "kd_los"),
        (None, {"losses": {}}, "at least one entry"),
        (None, {"trainer": {"precision": "17-mixed"}}, "17-mixed"),
        (small.net(1, num_classes=5), {}, "5 classes"),
        (small.net(1).requires_grad_(False), {}, "no parameter"),
        (None, {"class_names": ("a", "b", "c", "d")}, None),
    ],
)
def test_a_failed_run_leaves_nothing(train, tmp_path, student, options, match):
    if match is None:  # the cache knows no names, so any are right
        train(student, **options)
        return
    with pytest.raises(Exception, match=match):
        train(student, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"allow_mismatch": "no"}, "allow_mismatch is True or False, not 'no'"),
        ({"progress": "no"}, "progress is True or False, not 'no'"),
        ({"verbose": 1}, "verbose is True or False, not 1"),
        ({"pipelines": "accuracy"}, "such as {'test': 'accuracy'}, not 'accuracy'"),
        ({"class_names": "abcd"}, "class_names is a list of texts"),
        ({"class_names": [0, 1, 2, 3]}, "one of them is 0. Make them texts"),
        ({"fingerprint": "inputs"}, "fingerprint is your own function of a sample"),
        ({"seed": 1.0}, "the seed is a number from 0"),
        ({"seed": True}, "the seed is a number from 0"),
    ],
)
def test_arguments_of_another_type(train, tmp_path, options, match):
    with pytest.raises(UsageError, match=match):
        train(**options)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_as_good_as_pythons(train, tmp_path):
    def run(output, whole, real):
        options = {"max_epochs": whole(1), "accumulate_grad_batches": whole(2)}
        return train(
            output=tmp_path / output,
            seed=whole(3),
            temperature=real(2),
            learning_rate=real(0.5),
            losses={"kd_loss": real(0.25), "student_loss": whole(1)},
            trainer={**options, "limit_train_batches": whole(3)},
        )

    python, numpy = run("python", int, float), run("numpy", np.int64, np.float32)
    assert numpy.metrics == python.metrics
    resumed = {"resume": numpy.output, "output": tmp_path / "more", "temperature": 2.0}
    losses = {"kd_loss": 0.25, "student_loss": 1.0}
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "limit_train_batches": 3}
    more = train(**resumed, seed=3, losses=losses, learning_rate=0.5, trainer=options)
    assert more.epochs == 2


def test_a_missing_cache_is_said(tmp_path):
    with pytest.raises(CacheMissingError, match="does not exist"):
        kdcache.train_student(small.net(), small.loader(), tmp_path / "t.zarr")


def test_a_temperature_that_the_cache_cannot_serve_is_refused_first(tmp_path):
    path = tmp_path / "t.zarr"
    kdcache.dump_teacher(
        small.Teacher(),
        small.loader(),
        path,
        codec=kdcache.TopKCodec(k=2, temperatures=(1.0,)),
        accelerator="cpu",
        progress=False,
    )
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 3"):
        kdcache.train_student(small.net(), small.loader(), path, temperature=3.0)
    assert not (tmp_path / "students").exists()


def test_a_wrong_temperature_is_refused_before_the_data_is_looked_at(tmp_path):
    with pytest.raises(UsageError, match="temperature"):
        kdcache.train_student(small.net(), object(), tmp_path, temperature=-1.0)
