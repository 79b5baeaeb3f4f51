"""A complete cache, and trainings from it that need no teacher."""

from __future__ import annotations

import pytest

from kdcache import KnowledgeDistillationTraining
from tests.predecessor.its_code import ItsModel, arguments
from tests.tracking.conftest import _alone  # noqa: F401
from tests.train.conftest import _one_thread  # noqa: F401


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """A complete cache, for students that need no teacher."""
    path = tmp_path_factory.mktemp("kd") / "teacher.zarr"
    training = KnowledgeDistillationTraining(**arguments(path, teacher_model=ItsModel(7)))
    training.start_kd_training()
    return path


@pytest.fixture
def train(shared_cache):
    """A training from the shared cache: (its run, the student)."""

    def call(**given):
        training = KnowledgeDistillationTraining(**arguments(shared_cache, **given))
        return training.start_kd_training(), training.get_student_model()

    return call
