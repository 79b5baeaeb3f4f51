"""Wrong calls and wrong data on the command line: one paragraph, the right exit code, no loss."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from kdcache.cli import main

MODULE = "experiment_module"
EXPERIMENT = f"""
cache: runs/teacher.zarr
data: {{class_path: {MODULE}.Data}}
teacher: {{class_path: {MODULE}.teacher}}
targets: {{codec: dense, dtype: float16}}
student: {{class_path: {MODULE}.Net, init_args: {{width: 8}}}}
distill: {{temperature: 4.0, losses: {{kd_loss: 0.9, student_loss: 0.1}}}}
trainer: {{max_epochs: 1, accelerator: cpu}}
progress: false
"""


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """A folder with a user's module, an experiment and a complete cache."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(Path(__file__).parent / f"{MODULE}.py", folder)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, folder)
        assert main(["dump-teacher", "-c", "experiment.yaml"]) == 0
    return folder


def enter(patch, folder):
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    sys.modules.pop(MODULE, None)


@pytest.fixture
def here(dumped, tmp_path, monkeypatch):
    """A copy of that folder for one test, as the current one."""
    folder = tmp_path / "user"
    shutil.copytree(dumped, folder)
    enter(monkeypatch, folder)
    return folder


def snapshot(folder):
    """Every file of the cache and its content."""
    cache = folder / "runs" / "teacher.zarr"
    return {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def call(capsys, *words):
    """(exit code, standard error) of one command."""
    code = main([words[0], "-c", "experiment.yaml", *words[1:]])
    return code, capsys.readouterr().err


USAGE = {
    "unknown section": (["train-student", "--distil.temperature", "2"], ["distil", "'distill'"]),
    "unknown key in a section": (
        ["train-student", "--distill.temprature", "2"],
        ["distill.temprature", "'temperature'"],
    ),
    "unknown argument of a component": (
        ["train-student", "--student.widht", "3"],
        ["widht", "'width'"],
    ),
    "unknown trainer key": (["train-student", "--trainer.max_epoch", "3"], ["'max_epochs'"]),
    "unknown loss": (
        ["train-student", "--distill.losses.kd_los", "1"],
        ["kd_los", "'kd_loss'"],
    ),
    "unknown codec": (
        ["dump-teacher", "--cache", "runs/x.zarr", "--targets.codec", "topq"],
        ["topq", "'topk'"],
    ),
    "unknown codec setting": (
        ["dump-teacher", "--cache", "runs/x.zarr", "--targets.dtpe", "float32"],
        ["dtpe", "'dtype'"],
    ),
    "unknown class": (
        ["train-student", "--student.class_path", f"{MODULE}.Nett"],
        ["Nett", "'Net'"],
    ),
    "unknown module": (
        ["train-student", "--student.class_path", "experiment_modul.Net"],
        ["experiment_modul", f"'{MODULE}'"],
    ),
    "a value of another type": (
        ["train-student", "--distill.temperature", "warm"],
        ["distill.temperature", "warm"],
    ),
    "a temperature of 0": (["train-student", "--distill.temperature", "0"], ["temperature"]),
    "an argument of another type": (
        ["train-student", "--student.width", "wide"],
        ["width", "wide"],
    ),
    "no value": (["train-student", "--output"], ["--output", "needs a value"]),
    "a stray word": (["train-student", "fast"], ["'fast'"]),
    "samples per shard of 0": (
        ["dump-teacher", "--cache", "runs/x.zarr", "--dump.samples_per_shard", "0"],
        ["samples_per_shard"],
    ),
    "a split of work that is none": (
        ["dump-teacher", "--cache", "runs/x.zarr", "--dump.part", "3/3"],
        ["3/3"],
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_call_ends_with_2_and_says_what_is_near(here, capsys, case):
    words, expected = USAGE[case]
    before = snapshot(here)
    code, text = call(capsys, *words)
    assert code == 2
    assert_one_paragraph(text, expected)
    assert snapshot(here) == before
    assert not (here / "runs" / "x.zarr").exists()


DATA = {
    "cache missing": (["train-student", "--cache", "nowhere.zarr"], ["nowhere.zarr"]),
    "dataset longer": (["train-student", "--data.extra", "10"], ["650", "640", "sample 640"]),
    "dataset shorter": (["train-student", "--data.extra", "-3"], ["637", "640", "shorter"]),
    "dataset reordered": (["train-student", "--data.shift", "1"], ["sample 0 ", "reordered"]),
    "a sample edited": (["train-student", "--data.scale", "0.5"], ["sample 17 ", "not what"]),
    "dataset random": (["train-student", "--data.noise", "true"], ["random"]),
    "collate reorders": (["train-student", "--data.collate", "sorted"], ["reorders"]),
    "another class count": (
        ["train-student", "--student.init_args.num_classes", "11"],
        ["11", "10"],
    ),
    "other class names": (["train-student", "--data.swap_names", "true"], ["class 0", "'1'"]),
    "other labels": (["train-student", "--data.label_offset", "1"], ["cross-entropy"]),
    "a label out of range": (
        ["train-student", "--data.bad_label", "true"],
        ["sample 5 ", "label 10"],
    ),
    "a label out of range at the dump": (
        ["dump-teacher", "--cache", "runs/y.zarr", "--data.bad_label", "true"],
        ["sample 5 ", "label 10"],
    ),
    "random at the dump": (
        ["dump-teacher", "--cache", "runs/y.zarr", "--data.noise", "true"],
        ["random", "sample"],
    ),
    "collate reorders at the dump": (
        ["dump-teacher", "--cache", "runs/y.zarr", "--data.collate", "sorted"],
        ["reorders"],
    ),
    "logits with NaN": (
        ["dump-teacher", "--cache", "runs/y.zarr", "--teacher.class_path", f"{MODULE}.Broken"],
        ["sample 70 ", "NaN"],
    ),
    "a path that is no cache": (
        ["dump-teacher", "--cache", "experiment.yaml"],
        ["experiment.yaml", "no teacher cache"],
    ),
    "another teacher into the same cache": (
        ["dump-teacher", "--teacher.seed", "1"],
        ["teacher.weights", "Nothing was written"],
    ),
    "another codec into the same cache": (
        ["dump-teacher", "--targets.dtype", "float32"],
        ["codec.dtype", "float16", "float32"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_wrong_data_ends_with_1_and_names_it(here, capsys, case):
    words, expected = DATA[case]
    before = snapshot(here)
    code, text = call(capsys, *words)
    assert code == 1
    assert_one_paragraph(text, expected)
    assert snapshot(here) == before
    assert not list(here.glob("runs/students/*/student.safetensors"))


def assert_one_paragraph(text, expected):
    assert "Traceback" not in text
    assert len(text) < 1500
    for part in expected:
        assert part in text


def test_finished_shards_survive_a_teacher_that_fails_later(here, capsys):
    words = ["--cache", "runs/y.zarr", "--dump.samples_per_shard", "64"]
    broken = ["--teacher.class_path", f"{MODULE}.Broken"]
    assert call(capsys, "dump-teacher", *words, *broken)[0] == 1
    commits = list((here / "runs" / "y.zarr" / "train").rglob("commits/*.json"))
    assert [path.name for path in commits] == ["shard-000000.json"]


def test_an_incomplete_cache_is_refused_and_the_same_command_completes_it(here, capsys):
    commit = next((here / "runs" / "teacher.zarr" / "train").rglob("commits/shard-*.json"))
    commit.unlink()
    next((here / "runs" / "teacher.zarr" / "train").rglob("index.json")).unlink()
    code, text = call(capsys, "train-student")
    assert code == 1
    assert_one_paragraph(text, ["not complete", "dump-teacher"])
    assert call(capsys, "dump-teacher")[0] == 0
    assert main(["verify", "runs/teacher.zarr"]) == 0


def test_a_flipped_byte_is_found_by_training_and_by_verify(here, capsys, monkeypatch):
    monkeypatch.setenv("KDCACHE_LOCAL", str(here / "local"))
    values = next((here / "runs" / "teacher.zarr" / "train").rglob("values/c/0/0"))
    content = bytearray(values.read_bytes())
    content[len(content) // 2] ^= 1
    values.write_bytes(content)
    code, text = call(capsys, "train-student")
    assert code == 1
    assert_one_paragraph(text, ["values", "damaged"])
    assert main(["verify", "runs/teacher.zarr"]) == 1
    assert "train: shard" in capsys.readouterr().out


def test_a_run_never_overwrites_another(here, capsys):
    assert call(capsys, "train-student", "--output", "runs/one")[0] == 0
    before = (here / "runs" / "one" / "run.json").read_bytes()
    code, text = call(capsys, "train-student", "--output", "runs/one")
    assert code == 2
    assert_one_paragraph(text, ["runs/one", "not empty"])
    assert (here / "runs" / "one" / "run.json").read_bytes() == before


def test_debug_shows_the_traceback(here, capsys):
    assert main(["inspect", "nowhere.zarr", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["inspect"], ["inspekt"], [], ["verify", "--jsn"]])
def test_other_wrong_words_end_with_2(words, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err


def test_an_error_of_the_users_own_code_says_where(here, capsys):
    (here / "users_own.py").write_text("def make():\n    raise RuntimeError('out of paint')\n")
    code, text = call(capsys, "train-student", "--student", "{class_path: users_own.make}")
    assert code == 1
    assert_one_paragraph(text, ["out of paint", "users_own.py:2", "--debug"])
