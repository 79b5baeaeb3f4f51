"""The teacher is dumped where the cache is not complete, and then gone."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

import kdcache
from kdcache import KnowledgeDistillationTraining
from kdcache.errors import CacheIncompleteError, MismatchError
from tests.predecessor.its_code import STEPS, ItsModel, ItsPipeline, arguments, train_loader


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
