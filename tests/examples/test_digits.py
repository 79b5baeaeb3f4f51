"""The digits demo on a tiny setting: what it prints, writes and reuses."""

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from examples.digits import data as digits
from examples.digits import demo, models
from examples.reports.results import count_parameters
from tests.hang import HANG_S

EXAMPLE = Path(digits.__file__).parent
TINY = ["--seeds", "1", "--epochs", "1", "--teacher-epochs", "1"]


@pytest.fixture(autouse=True)
def _threads():
    """The demo runs on one thread; the tests after it keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Folder and words of a run from nothing."""
    out = tmp_path_factory.mktemp("digits") / "runs"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demo, "WIDTHS", (4,))
        demo.main(["--out", str(out), *TINY])
    return out, printed.getvalue()


def cache_files(out):
    return {
        path: path.stat().st_mtime_ns
        for path in sorted((out / "teacher.zarr").rglob("*"))
        if path.is_file()
    }


def test_a_run_from_nothing(first_run):
    out, printed = first_run
    assert "teacher   trained in" in printed
    assert "cache     dumped in" in printed
    assert len(re.findall(r"^  (train|test) +\d+\.\d, of which", printed, re.M)) == 2

    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"teacher", "students", "cache", "settings"}
    assert 0 <= results["teacher"]["accuracy"] <= 1
    assert [row["temperature"] for row in results["students"]] == [None, 2.0, 4.0]
    for row in results["students"]:
        (score,) = row["scores"]
        assert row["accuracy_mean"] == score["accuracy"]
        assert row["accuracy_standard_deviation"] is None
        assert 0 <= score["accuracy"] <= 1
        assert 0 <= score["teacher_agreement"] <= 1
        assert score["teacher_kl"] > 0
        assert Path(score["weights"]).is_file()

    splits = results["cache"]["splits"]
    samples = {name: split["samples"] for name, split in splits.items()}
    assert samples == {"train": 1297, "test": 500}
    for split in splits.values():
        assert split["bytes_per_sample"] * split["samples"] == pytest.approx(split["bytes"])
        assert split["bytes_per_sample"] > 8  # fingerprints alone, which do not compress
    picture = (out / "accuracy.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_a_second_run_reuses_teacher_and_cache(first_run, tmp_path, capfd, monkeypatch):
    out = tmp_path / "runs"
    shutil.copytree(first_run[0], out)
    files = cache_files(out)
    students = len(list(out.glob("students/*/*/student.safetensors")))
    monkeypatch.setattr(demo, "train_teacher", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(demo, "WIDTHS", (4,))
    monkeypatch.setattr(demo, "OBJECTIVES", demo.OBJECTIVES[:1])
    demo.main(["--out", str(out), *TINY])
    printed, errors = capfd.readouterr()
    assert "teacher   reused" in printed
    assert "cache     reused" in printed
    assert errors == ""
    assert cache_files(out) == files
    assert len(list(out.glob("students/*/*/student.safetensors"))) == students + 1


def test_another_teacher_is_refused(first_run, tmp_path):
    """Weights that are not the cached teacher's are not passed off as its."""
    out = tmp_path / "runs"
    shutil.copytree(first_run[0] / "teacher.zarr", out / "teacher.zarr")
    files = cache_files(out)
    with pytest.raises(SystemExit, match=r"(?s)error: .*teacher\.weights"):
        demo.main(["--out", str(out), "--teacher-epochs", "2"])
    assert cache_files(out) == files


def test_script_finds_its_modules():
    result = subprocess.run(
        [sys.executable, "examples/digits/demo.py", "--help"],
        cwd=EXAMPLE.parents[1],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "--teacher-epochs" in result.stdout


def test_package_runs_the_demo(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("examples.digits", run_name="__main__")
    assert ended.value.code == 0
    assert "--teacher-epochs" in capsys.readouterr().out


def test_known_labels_are_seeded_and_leave_the_images_alone():
    whole, few = digits.DigitsData().splits[0], digits.DigitsData(labels_per_class=5).splits[0]
    known = few.labels != digits.IGNORE_INDEX
    assert torch.equal(few.images, whole.images)
    assert torch.equal(few.labels[known], whole.labels[known])
    assert torch.bincount(few.labels[known]).tolist() == [5] * 10
    assert torch.equal(few.labels, digits.DigitsData(labels_per_class=5).splits[0].labels)
    other = digits.DigitsData(labels_per_class=5, seed=1).splits[0].labels
    assert not torch.equal(few.labels, other)


@pytest.mark.parametrize("per_class", [0, 10_000])
def test_impossible_numbers_of_labels_are_refused(per_class):
    with pytest.raises(ValueError, match="Give a number from 1 to"):
        digits.DigitsData(labels_per_class=per_class).train_dataloader()


def test_experiment_file_says_what_the_demo_does():
    config = yaml.safe_load((EXAMPLE / "experiment.yaml").read_text())
    for section in ("data", "teacher", "student", "optimizer", "scheduler"):
        module, _, attribute = config[section]["class_path"].rpartition(".")
        assert callable(getattr(import_module(module), attribute))
    objective = next(one for one in demo.OBJECTIVES if one.temperature == 2)
    assert config["distill"] == {"temperature": 2.0, "losses": objective.losses}
    assert config["optimizer"]["init_args"]["lr"] == demo.LEARNING_RATE
    assert config["data"]["init_args"]["labels_per_class"] == demo.LABELS_PER_CLASS
    epochs = demo.parse_arguments([]).epochs
    assert config["trainer"]["max_epochs"] == epochs
    assert config["scheduler"]["init_args"]["T_max"] == epochs
    assert count_parameters(models.Student(**config["student"]["init_args"])) == 1898
