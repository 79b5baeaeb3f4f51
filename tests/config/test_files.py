"""Experiment files: read strictly, laid over one another, overridden, written and read again."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdcache.config import merge, override, parse, read_file, to_yaml
from kdcache.config.files import _Dumper, _Loader
from kdcache.errors import UsageError
from kdcache.experiment import StudentExperiment


def read(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return read_file(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5e1", 5.0),
        ("1.0e-3", 1e-3),
        ("10", 10),
        ("1_000", 1000),
        ("true", True),
        ("null", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        ("'null'", "null"),
        ("e3", "e3"),
        ("1e", "1e"),
        ("[1, 2e1]", [1, 20.0]),
        ("{a: 1}", {"a": 1}),
        ("32-true", "32-true"),
    ],
)
def test_values(tmp_path, text, value):
    assert read(tmp_path, f"x: {text}") == {"x": value}
    found = override({}, "x", text)["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no sections"),
        ("- a", "holds no sections"),
        ("just text", "holds no sections"),
        ("a: [", "not valid YAML"),
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' is given twice.*line 2"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_what_is_no_experiment_file(tmp_path, text, match):
    with pytest.raises(UsageError, match=match):
        read(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_file(tmp_path / "nowhere.yaml")
    with pytest.raises(UsageError, match="directory"):
        read_file(tmp_path)
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_file(tmp_path / "x.yaml")


BASE = {
    "cache": "a",
    "student": {"class_path": "m.Net", "init_args": {"width": 8, "deep": {"x": 1, "y": 2}}},
    "trainer": {"max_epochs": 2, "callbacks": [1, 2]},
}


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"cache": "b"}, {"cache": "b"}),
        ({"trainer": {"devices": 2}}, {"trainer": {**BASE["trainer"], "devices": 2}}),
        ({"trainer": {"callbacks": [3]}}, {"trainer": {"max_epochs": 2, "callbacks": [3]}}),
        ({"trainer": None}, {"trainer": None}),
        (
            {"student": {"init_args": {"deep": {"y": 3}}}},
            {
                "student": {
                    "class_path": "m.Net",
                    "init_args": {"width": 8, "deep": {"x": 1, "y": 3}},
                }
            },
        ),
        (
            {"student": {"class_path": "m.Net", "init_args": {"width": 9}}},
            {
                "student": {
                    "class_path": "m.Net",
                    "init_args": {"width": 9, "deep": {"x": 1, "y": 2}},
                }
            },
        ),
        (
            {"student": {"class_path": "m.Other"}},
            {"student": {**BASE["student"], "class_path": "m.Other"}},
        ),
        (
            {"student": {"class_path": "m.Other", "init_args": {"width": 1}}},
            {
                "student": {
                    "class_path": "m.Other",
                    "init_args": {"width": 1, "deep": {"x": 1, "y": 2}},
                }
            },
        ),
    ],
)
def test_the_later_file_wins(over, expected):
    base = copy.deepcopy(BASE)
    assert merge(base, over) == {**BASE, **expected}
    assert base == BASE


@pytest.mark.parametrize(
    ("name", "text", "section", "expected"),
    [
        ("student.width", "9", "student",
         {"class_path": "m.Net", "init_args": {"width": 9, "deep": {"x": 1, "y": 2}}}),
        ("student.init_args.width", "9", "student",
         {"class_path": "m.Net", "init_args": {"width": 9, "deep": {"x": 1, "y": 2}}}),
        ("student.deep.y", "3", "student",
         {"class_path": "m.Net", "init_args": {"width": 8, "deep": {"x": 1, "y": 3}}}),
        ("student.deep", "{z: 1}", "student",
         {"class_path": "m.Net", "init_args": {"width": 8, "deep": {"z": 1}}}),
        ("student.class_path", "m.Other", "student", {**BASE["student"], "class_path": "m.Other"}),
        ("student", "m.Other", "student", {**BASE["student"], "class_path": "m.Other"}),
        ("student.class_path", "m.Net", "student", BASE["student"]),
        ("student", "{class_path: m.X}", "student", {"class_path": "m.X"}),
        ("optimizer.lr", "1e-3", "optimizer", {"init_args": {"lr": 1e-3}}),
        ("trainer.max_epochs", "3", "trainer", {"max_epochs": 3, "callbacks": [1, 2]}),
        ("pipelines.test.class_path", "m.P", "pipelines", {"test": {"class_path": "m.P"}}),
    ],
)  # fmt: skip
def test_an_override_sets_one_key(name, text, section, expected):
    base = copy.deepcopy(BASE)
    assert override(base, name, text) == {**BASE, section: expected}
    assert base == BASE


@pytest.mark.parametrize(
    "change",
    [
        lambda base: merge(base, {"student": {"class_path": "m.Other"}}),
        lambda base: override(base, "student.class_path", "m.Other"),
    ],
    ids=["file", "command line"],
)
def test_weights_survive_another_class_path(change):
    base = {"student": {**BASE["student"], "weights": "w.safetensors"}}
    assert change(base) == {"student": {**base["student"], "class_path": "m.Other"}}
    assert override(base, "student.weights", "v.pt")["student"]["weights"] == "v.pt"
    assert override(base, "data.weights", "v.pt")["data"] == {"init_args": {"weights": "v.pt"}}


def test_a_component_may_only_be_named(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("optimizer: adam_wav2vec2.0\nscheduler: m.S\npipelines: {test: accuracy}\n")
    found = read_file(file)
    assert found == {
        "optimizer": {"class_path": "adam_wav2vec2.0"},
        "scheduler": {"class_path": "m.S"},
        "pipelines": {"test": {"class_path": "accuracy"}},
    }
    found = override(found, "optimizer.lr", "0.1")
    assert found["optimizer"] == {"class_path": "adam_wav2vec2.0", "init_args": {"lr": 0.1}}
    assert override(found, "optimizer", "sgd")["optimizer"] == {
        "class_path": "sgd",
        "init_args": {"lr": 0.1},
    }
    assert override(found, "pipelines.test", "m.P")["pipelines"]["test"] == {"class_path": "m.P"}


def test_how_often_a_schedule_is_stepped_is_no_argument_of_it():
    base = {"scheduler": {"class_path": "cosine_anneal"}}
    found = override(base, "scheduler.interval", "step")
    assert found == {"scheduler": {"class_path": "cosine_anneal", "interval": "step"}}
    found = override(base, "scheduler.T_0", "3")
    assert found["scheduler"]["init_args"] == {"T_0": 3}


def test_an_override_that_is_no_yaml():
    with pytest.raises(UsageError, match=r"--student.width: '\[' is not a valid value"):
        override({}, "student.width", "[")


FULL = {
    "cache": "runs/t.zarr",
    "data": {"class_path": "m.Data", "init_args": {"sizes": [1, 2.5e-7], "name": "1e-3"}},
    "student": {"class_path": "m.Net"},
    "batch": {"inputs": [0, "x.y"], "labels": 1},
    "targets": {"codec": "topk", "k": 2},
    "dump": {"fingerprint": "m.f", "part": "3/16"},
    "distill": {"temperature": 4, "losses": {"kd_loss": 0.9, "m.own": 1e-5}},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-3}},
    "pipelines": {"test": {"class_path": "m.P", "init_args": None}},
    "trainer": {"precision": "32", "max_epochs": 3, "logger": {"class_path": "m.L"}},
    "output": "null",
    "allow_mismatch": True,
}


@pytest.mark.parametrize("raw", [FULL, {k: FULL[k] for k in ("cache", "data", "student")}])
def test_what_was_printed_is_the_same_experiment(tmp_path, raw):
    experiment = parse(StudentExperiment, raw)
    assert parse(StudentExperiment, read(tmp_path, to_yaml(experiment))) == experiment
    assert experiment.data == raw["data"]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_any_plain_values_survive_writing_and_reading(value):
    assert yaml.load(yaml.dump(value, Dumper=_Dumper), _Loader) == value


@pytest.mark.parametrize("text", ["1e-3", "1E5", "-2e3", "null", "true", "5", "0x1F", "1:30"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert yaml.load(yaml.dump({"x": text}, Dumper=_Dumper), _Loader) == {"x": text}
