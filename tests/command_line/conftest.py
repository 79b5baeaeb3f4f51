"""A user's folder for the command line: a module of their own, an experiment, a complete cache."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from kdcache.cli import main

EXPERIMENT = """
cache: runs/teacher.zarr
data: {class_path: user_module.Data}
teacher: {class_path: user_teacher.teacher}
targets: {codec: topk, k: 2, temperatures: [1, 2]}
student: {class_path: user_module.Net}
distill: {temperature: 2, losses: {kd_loss: 1}}
trainer: {max_epochs: 1, accelerator: cpu}
progress: false
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dumped(tmp_path_factory):
    """The folder; the teacher's module has left no mark in it."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("user_module.py", "user_teacher.py"):
        shutil.copy(Path(__file__).parent / name, folder)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, folder)
        assert main(["dump-teacher", "-c", "experiment.yaml"]) == 0
    (folder / "imported-by").unlink()
    return folder


def enter(patch, folder):
    """Make a folder the current one, with its modules importable and none of another's loaded."""
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    for name in ("user_module", "user_teacher"):
        sys.modules.pop(name, None)


@pytest.fixture
def here(dumped, tmp_path, monkeypatch):
    """A copy of the folder for one test, as the current one."""
    folder = tmp_path / "user"
    shutil.copytree(dumped, folder)
    enter(monkeypatch, folder)
    return folder
