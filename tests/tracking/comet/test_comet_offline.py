"""Comet without a connection: the archive that is left holds the whole run."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import comet_ml
import pytest
import torch
from pytorch_lightning.callbacks import Callback

import kdcache
from kdcache.errors import TerminatedError, UsageError
from tests.tracking.comet.archives import archive_in, rows_in, values_in
from tests.train import small

SECRET = "SECRETSECRETSECRETSECRET"


def git(folder, *words):
    identity = ("-c", "user.name=n", "-c", "user.email=e@f")
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The current folder is a repository in which a tracked file has changed."""
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "model.py").write_text("width = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "model.py").write_text("width = 2\n")
    monkeypatch.chdir(folder)
    return folder


def test_the_archive_holds_the_run(comet, cache, repository, caplog):
    student = small.net(1)
    with caplog.at_level(logging.INFO):
        run = comet(
            student,
            comet={"project": "a project", "workspace": "me"},
            tracking={"parameters": {"note": "hello", "sizes": [1, 2]}},
            trainer={"max_epochs": 2},
            losses={"kd_loss": 1.0, "student_loss": 0.5},
        )
    archive = archive_in(run.output)
    assert archive.experiment["project_name"] == "a project"
    assert archive.experiment["workspace"] == "me"
    assert archive.others["Name"] == "first try"
    assert "failure" not in archive.others

    wanted = values_in(run.output)
    assert {name: archive.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert {name for name, _ in wanted} >= {
        *("lr-Adam", "grad_2.0_norm_total", "train_logit_diff", "train_prob_diff"),
        *("train_kd_loss_step", "train_kd_loss_epoch", "train_final_loss_step", "test_accuracy"),
    }
    assert [step for name, step in archive.metrics if name == "lr-Adam"] == list(range(12))

    commit = git(repository, "rev-parse", "HEAD")
    assert (
        archive.parameters.items()
        >= {
            "digest": cache["train"].digest,
            "kdcache": kdcache.__version__,
            "code/git_commit": commit,
            "code/git_dirty": True,
            "parameters/note": "hello",
            "parameters/sizes": "[1, 2]",
            "losses/student_loss": 0.5,
            "optimizer/settings/lr": 1e-3,
        }.items()
    )
    (metadata,) = archive.of("git_metadata")
    assert metadata["git_metadata"]["parent"] == commit
    assert "git-patch" in {one["upload_type"] for one in archive.of("file_upload")}

    names = {f"student.{name}" for name in student.state_dict()}
    assert set(archive.histograms) == {(name, step) for name in names for step in (6, 12)}
    histogram = archive.histograms["student.0.weight", 12]
    assert sum(count for _, count in histogram["index_values"]) == student[0].weight.numel()
    (packages,) = archive.of("installed_packages")
    assert f"torch=={torch.__version__}" in packages["installed_packages"]

    told = [one.getMessage() for one in caplog.records if one.name.startswith("kdcache.tracking")]
    assert told == [
        f"there is no Comet API key, so the experiment is kept offline, in {run.output / 'comet'}",
        f"Comet archive, for comet upload: {archive.path}",
    ]
    record = json.loads((run.output / "run.json").read_text())
    assert record["parameters"] == {"note": "hello", "sizes": [1, 2]}
    assert record["code"] == {"git_commit": commit, "git_dirty": True}
    assert record["name"] == "first try"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's, with a loss and a student."""
    text = (
        "from kdcache.losses import LossSum\nfrom tests.train import small\n"
        "def student():\n    return small.net(1)\n"
        "def my_loss(student_logits, targets, temperature):\n"
        "    return LossSum.over(student_logits.square().mean(-1))\n"
    )
    (tmp_path / "my_models.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("my_models")
    del sys.modules["my_models"]


def test_the_code_is_the_users(comet, module):
    """The experiment file, and what its class paths and those of the record name."""
    text = "student: {class_path: my_models.student}\nteacher: {class_path: not.imported.Here}\n"
    run = comet(module.student(), experiment=text)
    code = archive_in(run.output).code
    assert code.keys() == {"experiment.yaml", "my_models.py", "tests/train/small.py"}
    assert code["experiment.yaml"] == text
    assert code["my_models.py"] == Path(module.__file__).read_text()
    assert not any("comet" in name for name in code)


def test_code_without_an_experiment_file(comet, module):
    run = comet(losses={"my_models.my_loss": 1.0})
    assert archive_in(run.output).code.keys() == {"my_models.py", "tests/train/small.py"}


def test_who_keeps_code_away_from_comet_does_so(comet, module, monkeypatch):
    monkeypatch.setenv("COMET_AUTO_LOG_CODE", "false")
    run = comet(module.student(), experiment="student: {class_path: my_models.student}\n")
    assert archive_in(run.output).code == {}


def test_offline_on_purpose_is_no_warning(comet, tmp_path, caplog):
    """And the key is nowhere."""
    (tmp_path / "comet.txt").write_text(f"{SECRET}\r\nfrom the file\r\nus\r\n")
    settings = {"info": str(tmp_path / "comet.txt"), "online": False, "workspace": "me"}
    run = comet(comet=settings)
    archive = archive_in(run.output)
    assert archive.experiment["project_name"] == "from the file"
    assert archive.experiment["workspace"] == "me"
    ours = [one for one in caplog.records if one.name.startswith("kdcache")]
    assert [one for one in ours if one.levelno >= logging.WARNING] == []
    written = [path.read_bytes() for path in run.output.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in [*written, *archive.files.values()])


def test_two_runs_in_one_process(comet, tmp_path):
    first, second = comet(output=tmp_path / "one"), comet(output=tmp_path / "two")
    archives = [archive_in(run.output) for run in (first, second)]
    assert archives[0].path.name != archives[1].path.name
    for run, archive in zip((first, second), archives, strict=True):
        wanted = values_in(run.output)
        assert {name: archive.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert comet_ml.get_running_experiment().ended


def test_validation_after_the_last_step_is_in_it(comet):
    """Lightning has finalized its loggers by then."""
    run = comet(trainer={"max_epochs": 3, "check_val_every_n_epoch": 2})
    scores = [
        value
        for (name, _), value in archive_in(run.output).metrics.items()
        if name == "test_teacher_kl"
    ]
    assert len(scores) == 2
    assert scores[-1] == pytest.approx(run.metrics["test_teacher_kl"])


class At(Callback):
    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.act()


def fail():
    raise ValueError("out of paint")


@pytest.mark.parametrize(
    ("step", "act", "error", "says"),
    [
        (8, fail, ValueError, "ValueError: out of paint"),
        (3, fail, ValueError, "ValueError: out of paint"),
        (8, lambda: signal.raise_signal(signal.SIGTERM), TerminatedError, "TerminatedError: termi"),
    ],
)
def test_a_training_that_does_not_end_well(comet, tmp_path, step, act, error, says):
    """Before the first checkpoint, too, the archive stays and tells why."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(error):
            comet(trainer={"max_epochs": 2, "callbacks": [At(step, act)]})
    finally:
        signal.signal(signal.SIGTERM, before)
    archive = archive_in(tmp_path / "run")
    assert archive.others["failure"].startswith(says)
    steps = [number for name, number in archive.metrics if name == "train_kd_loss_step"]
    assert steps in (list(range(step)), list(range(step - 1)))
    wanted = values_in(tmp_path / "run")
    assert {name: archive.metrics[name] for name in wanted} == pytest.approx(wanted)


def test_where_nothing_was_measured_nothing_is_left(comet, tmp_path):
    with pytest.raises(UsageError, match="Lightning refuses to train like that"):
        comet(trainer={"val_check_interval": 100})
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_told_and_fails_no_training(comet, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("comet_ml.offline.create_experiment_archive", full)
    run = comet()
    assert run.student.exists()
    (told,) = [one.getMessage() for one in caplog.records if "not complete" in one.getMessage()]
    assert str(run.output / "comet") in told
    assert "No space left on device" in told


def test_a_folder_that_cannot_be_written(comet, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("comet_ml.offline.create_offline_archive", refuse)
    with pytest.raises(UsageError, match=r"archive cannot be begun in .*Permission denied"):
        comet()
    assert not (tmp_path / "run").exists()


def test_nothing_else_changes(comet, train, tmp_path):
    """Weights, random numbers, and what Comet could have left in this process."""
    plain = train(seed=3, output=tmp_path / "plain")
    after = random.random(), torch.rand(1)
    run = comet(seed=3, output=tmp_path / "logged")
    assert (random.random(), torch.rand(1)) == after
    assert run.student.read_bytes() == plain.student.read_bytes()
    assert run.metrics["test_teacher_kl"] == plain.metrics["test_teacher_kl"]
    checkpoints = [{p.name for p in one.output.glob("checkpoints/*")} for one in (plain, run)]
    assert checkpoints[0] == checkpoints[1]
    assert len(rows_in(run.output)) > 0
