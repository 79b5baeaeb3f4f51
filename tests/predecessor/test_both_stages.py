"""The teacher is dumped where the cache is not complete, and then gone."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

import kdcache
from kdcache import KnowledgeDistillationTraining
from kdcache.errors import CacheIncompleteError, MismatchError, UsageError
from tests.predecessor.its_code import (
    STEPS,
    ItsModel,
    ItsPipeline,
    arguments,
    train_loader,
    weights,
)


def test_the_teacher_is_dumped_once_and_gone_in_the_students_phase(tmp_path):
    teacher = ItsModel(7)
    reference = weakref.ref(teacher)

    class Pipeline(ItsPipeline):
        def run_inference_pipeline(self, model, data_loader):
            gc.collect()
            self.alive.append(reference() is not None)
            return super().run_inference_pipeline(model, data_loader)

    pipeline = Pipeline()
    training = KnowledgeDistillationTraining(
        **arguments(tmp_path / "t.zarr", teacher_model=teacher, inference_pipeline=pipeline)
    )
    del teacher
    run = training.start_kd_training()
    assert pipeline.alive == [False]
    cache = kdcache.open_cache(tmp_path / "t.zarr")
    assert cache["train"].is_complete
    assert cache["mnist_test"].is_complete
    assert run.digest == cache["train"].digest


def test_a_teacher_stays_usable_for_who_made_it(tmp_path):
    teacher = ItsModel(7)
    KnowledgeDistillationTraining(
        **arguments(tmp_path / "t.zarr", teacher_model=teacher)
    ).start_kd_training()
    assert {p.device.type for p in teacher.parameters()} == {"cpu"}
    assert set(teacher.temperatures) == {1}


def test_a_factory_is_not_called_for_a_complete_cache(train, tmp_path):
    def never():
        raise AssertionError("the teacher was made")

    run, _ = train(teacher_model=never)
    assert run.steps == STEPS
    calls = []

    def make():
        calls.append(1)
        return ItsModel(7)

    KnowledgeDistillationTraining(
        **arguments(tmp_path / "t.zarr", teacher_model=make)
    ).start_kd_training()
    assert calls == [1]


def test_an_incomplete_cache_is_completed(tmp_path):
    path = tmp_path / "t.zarr"
    kdcache.dump_teacher(
        ItsModel(7),
        {"train": train_loader()},
        path,
        part="0/2",
        samples_per_shard=16,
        accelerator="cpu",
        progress=False,
    )
    assert not kdcache.open_cache(path)["train"].is_complete
    KnowledgeDistillationTraining(**arguments(path, teacher_model=ItsModel(7))).start_kd_training()
    assert kdcache.open_cache(path)["train"].is_complete


def test_without_a_teacher_the_cache_has_to_be_complete(tmp_path):
    training = KnowledgeDistillationTraining(**arguments(tmp_path / "t.zarr"))
    with pytest.raises(CacheIncompleteError, match="there is no teacher_model to dump"):
        training.start_kd_training()


def test_another_teacher_is_noticed(train):
    with pytest.raises(MismatchError, match=r"teacher\.weights"):
        train(teacher_model=ItsModel(8))


def test_the_cache_has_a_default_so_that_one_import_is_all_that_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = arguments(None, teacher_model=ItsModel(7))
    del given["cache"]
    run = KnowledgeDistillationTraining(**given).start_kd_training()
    assert Path("teacher_cache.zarr").is_dir()
    assert run.output.resolve().is_relative_to(tmp_path)


def test_what_teacher_and_student_share_is_trained(tmp_path):
    """The dump freezes the teacher; the student is as it was before."""
    teacher, student = ItsModel(7), ItsModel(1)
    student.net[0] = teacher.net[0]
    student.net[2].bias.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    KnowledgeDistillationTraining(
        **arguments(tmp_path / "t.zarr", teacher_model=teacher, student_model=student)
    ).start_kd_training()
    now = list(student.parameters())
    moved = [not torch.equal(a, b) for a, b in zip(before, now, strict=True)]
    assert moved == [True, True, True, False]


def test_a_student_learns_from_what_it_was(tmp_path):
    student = ItsModel(1)
    before = weights(student)
    training = KnowledgeDistillationTraining(
        **arguments(
            tmp_path / "t.zarr",
            teacher_model=student,
            student_model=student,
            final_loss_coeff_dict={"student_loss": 1},
            train_data_loader=train_loader(collate_fn=None),
        )
    )
    training.start_kd_training()
    assert not torch.equal(weights(student), before)


def test_after_a_dump_that_failed_the_teacher_is_still_there(tmp_path):
    class Failing(ItsModel):
        fails = True

        def forward(self, batch, temperature=1):
            if self.fails:
                raise RuntimeError("out of paint")
            return super().forward(batch, temperature)

    teacher = Failing(7)
    training = KnowledgeDistillationTraining(
        **arguments(tmp_path / "t.zarr", teacher_model=teacher)
    )
    with pytest.raises(RuntimeError, match="out of paint"):
        training.start_kd_training()
    teacher.fails = False
    assert training.start_kd_training().steps == STEPS


class AtFive(ItsModel):
    def forward(self, batch, temperature=5):
        return super().forward(batch, temperature)


def test_a_factory_whose_model_is_called_otherwise_is_refused(tmp_path):
    """It would have been asked at its own temperature, which targets are not kept at."""
    path = tmp_path / "t.zarr"
    training = KnowledgeDistillationTraining(**arguments(path, teacher_model=lambda: AtFive(7)))
    with pytest.raises(UsageError, match=r"teacher_model made a AtFive.*another default temp"):
        training.start_kd_training()
    assert not path.exists()


def test_a_misspelt_setting_is_told_before_the_teacher_is_asked(tmp_path):
    for wrong in (
        {"optimize_method": "adma"},
        {"scheduler_method": "cosine"},
        {"temperature": 0},
        {"resume_from_checkpoint": str(tmp_path / "nowhere.ckpt")},
    ):
        with pytest.raises(UsageError):
            KnowledgeDistillationTraining(
                **arguments(tmp_path / "t.zarr", teacher_model=ItsModel(7), **wrong)
            )
    assert not (tmp_path / "t.zarr").exists()
