"""What a later word or file does to what was said before: kept, replaced as said, or refused.

Nothing that an experiment says may be dropped in silence: an untrained teacher was dumped when
another class path took its weights away.
"""

from __future__ import annotations

import logging

import pytest

from kdcache.commands.terminal.arguments import experiment_from
from kdcache.config import build, dropped
from kdcache.errors import UsageError
from kdcache.experiment import DumpExperiment, StudentExperiment

FILE = """
cache: a.zarr
data:
  class_path: torch.nn.Linear
  init_args:
    in_features: 2
    out_features: 3
    device: {class_path: torch.device, init_args: {type: cpu}}
teacher:
  class_path: torch.nn.Linear
  init_args: {in_features: 4, out_features: 5}
  weights: teacher.pt
student:
  class_path: torch.nn.Linear
  init_args: {in_features: 4, out_features: 5}
  weights: student.safetensors
targets: {codec: dense, dtype: float16}
batch: {inputs: [0], labels: 1}
distill: {temperature: 4.0, losses: {kd_loss: 0.9, student_loss: 0.1}}
optimizer: {class_path: adam, init_args: {lr: 1e-3}}
scheduler: {class_path: cosine_anneal, interval: step, init_args: {num_warm_up: 2}}
pipelines: {test: {class_path: top_5}, held: {class_path: perplexity}}
trainer: {max_epochs: 10, devices: 1, callbacks: [1, 2]}
tracking: {loggers: [csv, comet], comet: {project: p}}
"""
ARGS = {"in_features": 4, "out_features": 5}
MODEL = {"class_path": "torch.nn.Linear", "init_args": ARGS}
TEACHER = {**MODEL, "weights": "teacher.pt"}
STUDENT = {**MODEL, "weights": "student.safetensors"}
COSINE = {"class_path": "cosine_anneal", "interval": "step", "init_args": {"num_warm_up": 2}}
LAZY = {"class_path": "torch.nn.LazyLinear"}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(FILE)
    return str(path)


def experiment(file, *words, kind=StudentExperiment):
    command = "train-student" if kind is StudentExperiment else "dump-teacher"
    return experiment_from(["-c", file, *words], kind, command)


def at(found, path):
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


SAID = [
    # What stands beside a class path is kept.
    ("--student.class_path m.X", "student", {**STUDENT, "class_path": "m.X"}),
    ("--student m.X", "student", {**STUDENT, "class_path": "m.X"}),
    (
        "--student.class_path m.X --student.width 8",
        "student",
        {**STUDENT, "class_path": "m.X", "init_args": {**ARGS, "width": 8}},
    ),
    (
        "--student.width 8 --student.class_path m.X",
        "student",
        {**STUDENT, "class_path": "m.X", "init_args": {**ARGS, "width": 8}},
    ),
    ("--optimizer sgd", "optimizer", {"class_path": "sgd", "init_args": {"lr": 1e-3}}),
    ("--optimizer.class_path m.Adam", "optimizer.init_args", {"lr": 1e-3}),
    ("--scheduler m.S", "scheduler", {**COSINE, "class_path": "m.S"}),
    ("--scheduler.class_path m.S", "scheduler.interval", "step"),
    (
        "--data.device.class_path m.D",
        "data.init_args.device",
        {"class_path": "m.D", "init_args": {"type": "cpu"}},
    ),
    ("--pipelines.test accuracy", "pipelines.held", {"class_path": "perplexity"}),
    ("--trainer.max_epochs 3", "trainer", {"max_epochs": 3, "devices": 1, "callbacks": [1, 2]}),
    ("--distill.temperature 2", "distill.losses", {"kd_loss": 0.9, "student_loss": 0.1}),
    ("--batch.labels 2", "batch", {"inputs": [0], "labels": 2}),
    # One entry is changed or added.
    ("--student.in_features 9", "student.init_args", {**ARGS, "in_features": 9}),
    ("--student.init_args.in_features=9", "student.init_args", {**ARGS, "in_features": 9}),
    ("--student.bias false", "student.init_args", {**ARGS, "bias": False}),
    ("--optimizer.lr 0.1", "optimizer", {"class_path": "adam", "init_args": {"lr": 0.1}}),
    ("--scheduler.interval epoch", "scheduler", {**COSINE, "interval": "epoch"}),
    (
        "--distill.losses.kd_loss 0.5",
        "distill.losses",
        {"kd_loss": 0.5, "student_loss": 0.1},
    ),
    ("--pipelines.test accuracy", "pipelines.test", {"class_path": "accuracy"}),
    ("--tracking.comet.project q", "tracking.loggers", ["csv", "comet"]),
    ("--student.weights other.pt", "student", {**STUDENT, "weights": "other.pt"}),
    # What is replaced is what the word names.
    ("--student.weights null", "student", {**MODEL, "weights": None}),
    ("--student.init_args {}", "student", {**STUDENT, "init_args": {}}),
    ("--student {class_path: m.X}", "student", {"class_path": "m.X"}),
    ("--distill.losses {kd_loss: 1}", "distill.losses", {"kd_loss": 1.0}),
    ("--trainer.callbacks [3]", "trainer.callbacks", [3]),
    ("--trainer {max_epochs: 1}", "trainer", {"max_epochs": 1}),
    ("--pipelines {test: accuracy}", "pipelines", {"test": {"class_path": "accuracy"}}),
    ("--optimizer null", "optimizer", None),
    ("--batch null", "batch", None),
    ("--cache b.zarr --cache c.zarr", "cache", "c.zarr"),
    ("--batch.inputs [0,1]", "batch.inputs", [0, 1]),
]


@pytest.mark.parametrize(("words", "path", "expected"), SAID, ids=[row[0] for row in SAID])
def test_an_override_says_what_is_used(file, words, path, expected):
    merged = []
    for word in words.split(" "):  # {class_path: m.X} is one word
        if merged and not word.startswith("--") and not merged[-1].startswith("--"):
            merged[-1] += f" {word}"
        else:
            merged.append(word)
    assert at(experiment(file, *merged), path) == expected


def test_the_teacher_keeps_its_weights(file):
    found = experiment(file, "--teacher.class_path", "m.X", kind=DumpExperiment)
    assert found.teacher == {**TEACHER, "class_path": "m.X"}


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("student: m.X", "student", {**STUDENT, "class_path": "m.X"}),
        (
            "student: {class_path: m.X, init_args: {width: 8}}",
            "student",
            {**STUDENT, "class_path": "m.X", "init_args": {**ARGS, "width": 8}},
        ),
        ("student: {weights: null}", "student.weights", None),
        ("scheduler: {class_path: m.S}", "scheduler", {**COSINE, "class_path": "m.S"}),
        ("pipelines: {test: accuracy}", "pipelines.held", {"class_path": "perplexity"}),
        ("distill: {losses: {mse_logits: 1}}", "distill.losses.kd_loss", 0.9),
    ],
)
def test_a_later_file_is_laid_over(file, tmp_path, text, path, expected):
    later = tmp_path / "later.yaml"
    later.write_text(text)
    assert at(experiment(file, "-c", str(later)), path) == expected


REFUSED = [
    ("student", ["--student", "torch.nn.LazyLinear"], "takes no 'in_features'.*init_args '{}'"),
    (
        "student",
        ["--student", "torch.nn.Conv1d", "--student.kernel_size", "1"],
        "takes no 'in_features', 'out_features'.*Known",
    ),
    ("student", ["--student.in_featurs", "8"], "takes no 'in_featurs'. Did you mean 'in_features'"),
    ("student", ["--student.in_features.x", "8"], "student.init_args.in_features is 4, which has"),
    (
        "student",
        ["--trainer.callbacks.0", "8"],
        r"trainer.callbacks is \[1, 2\], which has no keys",
    ),
    ("student", ["--distill.temperature.x", "2"], "distill.temperature is 4.0, which has no keys"),
    ("student", ["--student.weight", "w.pt"], "takes no 'weight'"),
    (
        "student",
        ["--scheduler.intervall", "step", "--scheduler.interval", "often"],
        "epoch or step",
    ),
    ("student", ["--teacher.class_path", "m.X"], "train-student reads nothing of 'teacher'"),
    ("student", ["--targets.k", "8"], "reads no more of 'targets'"),
    ("student", ["--distill.loss", "{kd_loss: 1}"], "unknown key 'distill.loss'"),
    ("student", ["--studnt.width", "8"], "unknown key 'studnt'"),
    ("student", ["--student", "[1]"], "student should be"),
    ("student", ["--student", "null"], "no 'student'"),
    ("student", ["--distill.temperature", "2 # as before"], "a comment begins with #"),
    ("student", ["--student.weights", "#3"], "a comment begins with #"),
    ("student", ["--distill.losses", "{kd_loss: 1} # alone"], "a comment begins with #"),
    (
        "student",
        ["--distill.losses", "{kd_loss: 1 #, mse_logits: 2}"],
        "In YAML # begins a comment",
    ),
    ("student", ["--optimizer.class_path", "null"], "optimizer needs a class_path"),
]


@pytest.mark.parametrize(
    ("section", "words", "match"), REFUSED, ids=[" ".join(row[1]) for row in REFUSED]
)
def test_what_would_be_dropped_or_misread_is_refused(file, section, words, match):
    with pytest.raises(UsageError, match=match):
        build(getattr(experiment(file, *words), section), section)


def test_a_setting_that_another_codec_does_not_take_is_refused(file):
    from kdcache.codecs import make_codec

    words = ("--targets.k", "4", "--targets.codec")
    targets = dict(experiment(file, *words, "topk", kind=DumpExperiment).targets)
    assert targets == {"codec": "topk", "dtype": "float16", "k": 4}  # both have a dtype
    targets = dict(experiment(file, *words, "dense", kind=DumpExperiment).targets)
    with pytest.raises(UsageError, match="'k'"):
        make_codec(targets.pop("codec"), targets)


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["--student", "{class_path: m.X}"], ["student.init_args", "student.weights: 'student."]),
        (["--distill.losses", "{kd_loss: 1}"], ["distill.losses.student_loss: 0.1"]),
        (["--trainer", "{max_epochs: 1}"], ["trainer.devices: 1", "trainer.callbacks"]),
        (["--optimizer", "null"], ["optimizer: {'class_path': 'adam'"]),
    ],
)
def test_a_section_that_is_replaced_whole_is_said(file, caplog, words, gone):
    caplog.set_level(logging.INFO, "kdcache")
    experiment(file, *words)
    for text in gone:
        assert text in caplog.text


def test_an_empty_section_of_a_later_file_is_said(file, tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcache")
    later = tmp_path / "later.yaml"
    later.write_text("distill:\n#  temperature: 2\n")
    assert experiment(file, "-c", str(later)).distill.temperature == 1.0
    assert "later.yaml" in caplog.text
    assert "distill: {'temperature': 4.0" in caplog.text


def test_nothing_is_said_where_nothing_is_gone(file, caplog):
    caplog.set_level(logging.INFO, "kdcache")
    experiment(file, "--student.class_path", "m.X", "--trainer.max_epochs", "3", "--batch.labels=2")
    assert not caplog.text


def test_print_config_shows_what_will_be_used(file, capsys):
    assert experiment(file, "--student.class_path", "m.X", "--print_config") is None
    assert "class_path: m.X\n  init_args:\n    in_features: 4" in capsys.readouterr().out


def test_dropped_names_the_smallest_section():
    before = {"a": {"b": {"c": 1, "d": 2}}, "e": 3, "f": {"g": 4}, "h": 5}
    after = {"a": {"b": {"c": 9}}, "f": None, "h": None}
    assert dropped(before, after) == {"a.b.d": 2, "e": 3, "f": {"g": 4}}


@pytest.mark.parametrize("new", ["m.B", 3, [1], None])
def test_dropped_names_a_mapping_that_became_a_value(new):
    inner = {"class_path": "m.A", "init_args": {"k": 3}}
    assert dropped({"backbone": inner}, {"backbone": new}) == {"backbone": inner}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run #3", "run #3"),
        ("teacher v2 #1.zarr", "teacher v2 #1.zarr"),
        ("a#b", "a#b"),
        ("'run #3'", "run #3"),
        ('"a # b"', "a # b"),
    ],
)
def test_a_name_with_a_number_sign_is_kept(file, text, expected):
    assert experiment(file, "--student.weights", text).student["weights"] == expected
