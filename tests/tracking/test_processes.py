"""Runs in processes of their own: what they import and print, SIGTERM, and two ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.command_line.conftest import dumped  # noqa: F401
from tests.hang import HANG_S
from tests.tracking.comet.archives import Archive, archive_in, rows_in, values_in
from tests.tracking.conftest import NOBODY

ROOT = Path(__file__).resolve().parents[2]
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture
def folder(dumped, tmp_path):  # noqa: F811
    return shutil.copytree(dumped, tmp_path / "user")


def started(folder, *words, **options):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("COMET_")},
        **{"PYTHONPATH": str(ROOT), "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
        **{"COMET_URL_OVERRIDE": NOBODY, "HOME": str(folder)},
    }
    command = [sys.executable, "-W", "error", "-m", "kdcache", *words]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **options
    )


def train(folder, *words):
    """A run into ``out``; what it said."""
    given = ("train-student", "-c", "experiment.yaml", "--output", "out", *words)
    process = started(folder, *given, stdout=subprocess.PIPE)
    _, said = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, said
    return said


RECORDING = ("--student.class_path", "user_module.student")


@pytest.mark.parametrize(
    ("loggers", "imported"),
    [("[csv]", set()), ("[tensorboard]", {"tensorboard"}), ("[comet]", {"comet_ml"})],
)
def test_only_what_was_asked_for_is_imported(folder, loggers, imported):
    program = (
        "import json, sys; from kdcache.cli import main; "
        "assert main(sys.argv[1:]) == 0; "
        "open('modules.json', 'w').write(json.dumps(sorted(sys.modules)))"
    )
    words = ["train-student", "-c", "experiment.yaml", "--tracking.loggers", loggers]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMET_URL_OVERRIDE": NOBODY}
    subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment,
        check=True,
        timeout=HANG_S,
    )
    modules = json.loads((folder / "modules.json").read_text())
    assert {"comet_ml", "tensorboard"} & set(modules) == imported


def test_help_and_configuration_import_no_logger(folder):
    program = (
        "import sys; from kdcache.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('torch', 'pytorch_lightning', 'comet_ml') if m in sys.modules])"
    )
    for last in ("--help", "--print_config"):
        words = ["train-student", "-c", "experiment.yaml", last]
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.endswith("\n[]\n")


def test_what_a_person_sees(folder):
    """One line at the start, one at the end; and what the file said is kept with the run."""
    words = ("--tracking.loggers", "[csv, comet]", "--tracking.comet.project", "a project")
    said = train(folder, *words, "--tracking.parameters.note", "hello")
    archive = archive_in(folder / "out")
    assert said.splitlines() == [
        "there is no Comet API key, so the experiment is kept offline, in out/comet",
        f"Comet archive, for comet upload: out/comet/{archive.path.name}",
    ]
    assert archive.parameters["parameters/note"] == "hello"
    kept = yaml.safe_load((folder / "out" / "experiment.yaml").read_text())["tracking"]
    assert kept["loggers"] == ["csv", "comet"]
    assert kept["comet"]["project"] == "a project"


def test_a_logger_by_class_path(folder):
    words = "{class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: own}}"
    train(folder, "--tracking.loggers", f"[{words}]")
    (file,) = (folder / "own").rglob("metrics.csv")
    assert "train_kd_loss_epoch" in file.read_text()
    assert not (folder / "out" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "{class_path: lightning.pytorch.loggers.CSVLogger}",
            "Write pytorch_lightning.loggers.CSVL",
        ),
        ("{class_path: pytorch_lightning.loggers.CSVLoger}", "Did you mean 'CSVLogger'"),
        ("{class_path: pytorch_lightning.loggers.WandbLogger}", "not installed"),
    ],
)
def test_a_class_path_that_cannot_be_used(folder, words, says):
    given = ("train-student", "-c", "experiment.yaml", "--tracking.loggers", f"[{words}]")
    process = started(folder, *given, stdout=subprocess.DEVNULL)
    said = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 2
    assert says in said


def test_two_ranks_are_one_experiment(folder):
    said = train(folder, *TWO, "--tracking.loggers", "[csv, tensorboard, comet]")
    out = folder / "out"
    wanted = values_in(out)
    metrics = archive_in(out).metrics
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted)
    assert len(list((out / "tensorboard").glob("events.*"))) == 1
    assert len(list(folder.rglob("metrics.csv"))) == 1
    assert len(list(folder.rglob("*.zip"))) == 1
    steps = [row["step"] for row in rows_in(out) if "train_kd_loss_step" in row]
    assert len(steps) == len(set(steps))
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("devices", [(), TWO])
def test_sigterm_leaves_a_whole_archive(folder, devices):
    words = ("--tracking.loggers", "[comet]", "--trainer.max_epochs", "100000", *devices)
    given = ("train-student", "-c", "experiment.yaml", "--output", "out", *words)
    process = started(folder, *given, stdout=subprocess.DEVNULL)
    last = folder / "out" / "checkpoints" / "last.ckpt"
    limit = time.monotonic() + HANG_S
    while not last.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=HANG_S)[1]
    assert process.returncode == 143, said
    (path,) = (folder / "out" / "comet").glob("*.zip")
    archive = Archive(path)
    assert archive.others["failure"].startswith("TerminatedError: terminated by SIGTERM")
    assert "train_kd_loss_epoch" in {name for name, _ in archive.metrics}
