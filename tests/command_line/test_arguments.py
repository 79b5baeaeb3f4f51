"""Words on the command line: files, overrides, help, what is printed back."""

from __future__ import annotations

import re

import pytest

from kdcache.cli import main
from kdcache.commands.terminal.arguments import experiment_from, help_text
from kdcache.errors import UsageError
from kdcache.experiment import DumpExperiment, StudentExperiment

BASE = """
cache: t.zarr
data: {class_path: m.Data}
student: {class_path: m.Net, init_args: {width: 8}}
teacher: {class_path: m.Teacher}
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "over.yaml").write_text("cache: other.zarr\nstudent: {init_args: {depth: 2}}\n")


def experiment(*words):
    return experiment_from(words, StudentExperiment, "train-student")


def test_later_words_win(files):
    found = experiment("-c", "base.yaml", "--cache", "x", "-c=over.yaml", "--student.width=9")
    assert found.cache == "other.zarr"
    assert found.student == {"class_path": "m.Net", "init_args": {"width": 9, "depth": 2}}
    assert experiment("--config", "over.yaml", "-c", "base.yaml").cache == "t.zarr"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--student.width=1e-3", 1e-3),
        ("--student.width=", None),
        ("--student.width=null", None),
        ("--student.width=[1, a=b]", [1, "a=b"]),
        ("--student.width=-3", -3),
        ("--student.width=--x", "--x"),
        ("--student.width='5'", "5"),
    ],
)
def test_a_value_behind_an_equals_sign(files, word, value):
    assert experiment("-c", "base.yaml", word).student["init_args"]["width"] == value


def test_a_negative_number_is_a_value(files):
    assert experiment("-c", "base.yaml", "--student.width", "-3").student["init_args"] == {
        "width": -3
    }


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--seed", "--cache", "3"], "--seed needs a value"),
        (["--seed"], "--seed needs a value"),
        (["-c"], "-c needs a value"),
        (["fast"], "'fast' is not understood"),
        (["-x", "1"], "'-x' is not understood"),
        (["--"], "'--' is not understood"),
        (["--student..width", "1"], "unknown key|takes no"),
    ],
)
def test_words_that_are_not_understood(files, words, match):
    if ".." in words[0]:  # a key with an empty part is a key below init_args like any other
        assert "" in experiment("-c", "base.yaml", *words).student["init_args"]
        return
    with pytest.raises(UsageError, match=match):
        experiment("-c", "base.yaml", *words)


def test_a_misspelt_flag_is_never_an_abbreviation(files):
    with pytest.raises(UsageError, match="unknown key 'prog'"):
        experiment("-c", "base.yaml", "--prog", "true")


def test_the_printed_configuration_is_the_experiment(files, capsys, tmp_path):
    words = ["-c", "base.yaml", "--distill.losses.kd_loss", "1e-5", "--student.name", "'1e-3'"]
    assert experiment(*words, "--print_config") is None
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert experiment("-c", "printed.yaml") == experiment(*words)


@pytest.mark.parametrize("kind", [DumpExperiment, StudentExperiment])
@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_help_fits_and_lists_every_key(monkeypatch, kind, columns):
    monkeypatch.setenv("COLUMNS", columns)
    lines = help_text(kind, "command").splitlines()
    assert max(map(len, lines[2:])) <= min(100, int(columns))
    listed = [found[1] for line in lines if (found := re.match(r"  --([\w.]+) ", line))]
    fields = set(kind.__dataclass_fields__)
    assert {name.split(".")[0] for name in listed} == fields
    assert len(listed) == len(set(listed))


def test_help_says_what_is_needed_and_the_defaults():
    text = " ".join(help_text(StudentExperiment, "train-student").split())
    assert "--cache folder of the teacher cache (required)" in text
    assert "--distill.losses loss name -> coefficient (default {kd_loss: 1.0})" in text
    assert "--progress show a bar on a terminal (default true)" in text
    assert "configuration file" not in text
    assert "SUPPRESS" not in text
    assert "``" not in text


@pytest.mark.parametrize("command", ["dump-teacher", "train-student"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_needs_no_experiment(capsys, command, flag):
    assert main([command, flag]) == 0
    assert capsys.readouterr().out.startswith(f"usage: kdcache {command} ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--extend"], True),
        (["--extend", "--devices", "2"], True),
        (["--extend", "-c", "base.yaml"], True),
        (["--extend", "false"], False),
        (["--extend=false"], False),
        (["--dump.extend", "true"], True),
        ([], False),
    ],
)
def test_a_flag_needs_no_value(files, words, expected):
    found = experiment_from(["-c", "base.yaml", *words], DumpExperiment, "dump-teacher")
    assert found.dump.extend is expected


@pytest.mark.parametrize(
    ("kind", "command", "word", "match"),
    [
        (DumpExperiment, "dump-teacher", "--student.foo=3", "train-student does"),
        (DumpExperiment, "dump-teacher", "--distill.tmperature=3", "reads nothing of 'distill'"),
        (DumpExperiment, "dump-teacher", "--seed=3", "reads nothing of 'seed'"),
        (DumpExperiment, "verify", "--trainer={max_epochs: 1}", "kdcache verify reads nothing of"),
        (StudentExperiment, "train-student", "--teacher.depth=3", "kdcache dump-teacher does"),
        (StudentExperiment, "train-student", "--dump.part=1/2", r"--dump\.part: .*'fingerprint'"),
        (StudentExperiment, "train-student", "--dump={part: 1/2}", r"--dump\.part: "),
        (StudentExperiment, "train-student", "--targets.k=3", r"--targets\.k: .*than 'codec'"),
    ],
)
def test_an_override_that_would_change_nothing_is_refused(files, kind, command, word, match):
    with pytest.raises(UsageError, match=match):
        experiment_from(["-c", "base.yaml", word], kind, command)


@pytest.mark.parametrize(
    "words",
    [
        ["--dump.fingerprint", "m.f", "--targets.codec", "m.C"],
        ["--dump", "{fingerprint: m.f}", "--targets={codec: m.C}"],
        ["-c", "both.yaml"],
    ],
)
def test_what_stage_two_reads_of_stage_one_may_be_given(files, tmp_path, words):
    (tmp_path / "both.yaml").write_text(
        "dump: {fingerprint: m.f, devices: 4}\ntargets: {codec: m.C, k: 3}\n"
    )
    found = experiment("-c", "base.yaml", *words)
    assert (found.dump.fingerprint, found.targets["codec"]) == ("m.f", "m.C")


def test_settings_of_stage_one_have_short_names(files):
    words = ["-c", "base.yaml", "--devices", "2", "--part=1/3", "--key", "content"]
    dump = experiment_from(words, DumpExperiment, "dump-teacher").dump
    assert (dump.devices, dump.part, dump.key) == (2, "1/3", "content")
    with pytest.raises(UsageError, match="unknown key 'devices'"):
        experiment("-c", "base.yaml", "--devices", "2")
