"""The commands in processes of their own: what they import, print, and how they end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]


DEVICES = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
RECORDING = ("--student.class_path", "user_module.student")


def call(folder, *words, check=True):
    """``python -m kdcache`` with every warning an error, as a user's process would run it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "kdcache", *words],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(dumped, tmp_path_factory):
    """A copy of the user's folder for the tests that look at one run."""
    return shutil.copytree(dumped, tmp_path_factory.mktemp("trained") / "user")


@pytest.fixture(scope="module")
def trained(folder):
    return call(folder, "train-student", "-c", "experiment.yaml", *RECORDING)


def test_the_teacher_is_never_imported(folder, trained):
    assert not (folder / "imported-by").exists()
    modules = json.loads((folder / "modules-0.json").read_text())
    assert "user_module" in modules
    assert "kdcache.train.run" in modules
    forbidden = ("user_teacher", "kdcache.dump", "comet_ml", "zarr", "lightning.pytorch")
    assert [name for name in modules if name.startswith(forbidden)] == []


def test_a_run_says_nothing_but_its_summary(folder, trained):
    assert trained.stderr == ""
    lines = trained.stdout.splitlines()
    columns = ["accuracy", "cross-entropy", "KL to teacher", "agreement", "kd_loss"]
    assert re.split(r"  +", lines[0]) == ["set", *columns]
    assert lines[1].startswith("test")
    assert lines[2].startswith("  its teacher")
    assert "inference_result" not in trained.stdout
    record = json.loads((folder / "runs/students/run-0001/run.json").read_text())
    assert f"cache digest  {record['digest']}" in lines
    assert "student       runs/students/run-0001/student.safetensors" in lines
    assert len(lines) <= 13
    assert max(map(len, lines)) <= 80


HEAVY = ("torch", "pytorch_lightning", "lightning_fabric", "comet_ml", "zarr")


@pytest.mark.parametrize(
    ("words", "forbidden"),
    [
        (["--help"], (*HEAVY, "jsonargparse", "yaml", "numpy", "rich")),
        (["inspect", "runs/teacher.zarr"], (*HEAVY, "jsonargparse", "yaml")),
        (["verify", "runs/teacher.zarr"], (*HEAVY, "jsonargparse", "yaml")),
        (["train-student", "--help"], HEAVY),
        (["dump-teacher", "-c", "experiment.yaml", "--print_config"], HEAVY),
    ],
)
def test_light_commands_import_nothing_heavy(here, words, forbidden):
    script = (
        "import sys; from kdcache.cli import main; code = main(sys.argv[1:]); "
        f"found = [name for name in {forbidden} if name in sys.modules]; "
        "sys.exit(f'imported {found}' if found else code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *words],
        check=False,
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_an_error_in_a_worker_is_one_paragraph(here):
    done = call(
        here,
        "train-student",
        "-c",
        "experiment.yaml",
        "--data",
        "{class_path: user_module.Data, init_args: {num_workers: 1, scale: 2}}",
        "--distill.losses.student_loss",
        "0.1",
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("FingerprintMismatchError: sample 17 of split 'train' is not")
    assert "Traceback" not in done.stderr
    assert not (here / "runs/students/run-0002").exists()


def test_two_devices_share_one_run(here):
    """Both score the last weights once more, which the epoch's end did not."""
    words = [*DEVICES, "--trainer.check_val_every_n_epoch", "2"]
    done = call(here, "train-student", "-c", "experiment.yaml", *RECORDING, *words)
    assert done.stdout.count("cache digest") == 1
    (output,) = (here / "runs/students").iterdir()
    expected = {"checkpoints", "experiment.yaml", "hparams.yaml", "metrics.csv", "run.json"}
    expected |= {"student.safetensors"}
    assert {path.name for path in output.iterdir()} == expected
    metrics = json.loads((output / "run.json").read_text())["metrics"]
    assert metrics.keys() >= {"test_accuracy", "test_teacher_kl", "train_final_loss"}
    wait_for(here / "modules-1.json")  # the second process ends a moment later
    assert not (here / "imported-by").exists()


def test_two_devices_end_together(here):
    """SIGTERM comes to the first process only, in the middle of a step of both."""
    words = [*DEVICES, "--student.class_path", "user_module.Terminated", "--trainer.max_epochs=9"]
    done = call(here, "train-student", "-c", "experiment.yaml", *words, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.startswith("TerminatedError: terminated by SIGTERM in epoch 2 (from 0), af")
    assert done.stderr.count("\n") == 1
    assert list(here.glob("runs/students/*/checkpoints/last.ckpt"))


def wait_for(path, seconds=HANG_S):
    stop = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < stop, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
@pytest.mark.parametrize("words", [["--help"], ["inspect", "runs/teacher.zarr", "--json"]])
def test_a_reader_that_leaves_is_no_traceback(here, words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "kdcache", *words],
        check=False,
        cwd=here,
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        restore_signals=True,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
