"""From raw sections to an experiment: nothing unknown, nothing missing, nothing of another type."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from kdcache.config import keys_of, parse
from kdcache.config.files import override
from kdcache.errors import UsageError
from kdcache.experiment import (
    DistillSection,
    DumpExperiment,
    DumpSection,
    StudentExperiment,
)
from kdcache.tracking import CometSettings, Tracking

RAW = {
    "cache": "t.zarr",
    "data": {"class_path": "nowhere_at_all.Data", "init_args": {"size": "5"}},
    "teacher": {"class_path": "nowhere_at_all.Teacher"},
    "student": {"class_path": "nowhere_at_all.Student"},
    "targets": {"codec": "dense"},
    "distill": {"temperature": 4, "losses": {"kd_loss": 1}},
}
KINDS = [DumpExperiment, StudentExperiment]


def test_both_stages_take_their_part_of_one_file():
    dump, train = (parse(kind, RAW) for kind in KINDS)
    assert dump.teacher == RAW["teacher"]
    assert train.student == RAW["student"]
    assert train.distill == DistillSection(temperature=4.0, losses={"kd_loss": 1.0})
    assert dump.data == train.data == RAW["data"]
    assert not hasattr(train, "teacher")


def test_nothing_is_imported_or_built():
    """Every class path here would fail."""
    raw = {
        **RAW,
        "trainer": {"logger": {"class_path": "nowhere_at_all.L"}},
        "batch": {"class_path": "nowhere_at_all.B"},
    }
    experiment = parse(StudentExperiment, raw)
    assert experiment.trainer == raw["trainer"]
    assert "nowhere_at_all" not in sys.modules


def test_text_stays_text():
    """jsonargparse reads a text such as '32' or 'null' again where any type will do."""
    trainer = {"precision": "32", "x": "null", "y": ["1e-3"]}
    assert parse(StudentExperiment, {**RAW, "trainer": trainer}).trainer == trainer


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (
            "tokens:",
            'dump.fingerprint: "tokens:" in a file, --dump.fingerprint \'"tokens:"\' in a shell',
        ),
        ("tokens: ids", 'dump.fingerprint: "tokens: ids" in'),
        ("2026-01-01", 'dump.fingerprint: "2026-01-01" in'),
        ("3", 'dump.fingerprint: "..." in'),
        ("1.5", 'dump.fingerprint: "..." in'),
        ("yes", 'dump.fingerprint: "..." in'),
    ],
)
def test_a_text_that_yaml_reads_as_something_else(given, hint):
    raw = override(RAW, "dump.fingerprint", given)
    with pytest.raises(UsageError, match=r"dump\.fingerprint should be str, not .*YAML") as caught:
        parse(DumpExperiment, raw)
    assert hint in str(caught.value)
    quoted = override(RAW, "dump.fingerprint", f'"{given}"')
    assert parse(DumpExperiment, quoted).dump.fingerprint == given


@pytest.mark.parametrize("given", ["[a]", "{a: 1, b: 2}", "{a: [1]}", "null"])
def test_what_is_no_text_gets_no_quotes(given):
    with pytest.raises(UsageError, match=r"dump\.fingerprint should be str, not [^.]*\.$"):
        parse(DumpExperiment, override(RAW, "dump.fingerprint", given))


@pytest.mark.parametrize(("given", "found"), [("16", 16), ("bf16", "bf16"), ("32-true", "32-true")])
def test_a_precision_may_be_a_number(given, found):
    raw = override(RAW, "dump.precision", given)
    assert parse(DumpExperiment, raw).dump.precision == found


def test_a_malformed_section_of_the_other_stage_is_not_looked_at():
    parse(StudentExperiment, {**RAW, "teacher": "anything"})
    parse(DumpExperiment, {**RAW, "student": 5, "trainer": None})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cahce": "x"}, r"unknown key 'cahce'\. Did you mean 'cache'\? Known: "),
        ({"data": {"class_pth": "m.D"}}, "unknown key 'data.class_pth'. Did you mean 'class_path'"),
        ({"data": {"class_path": "m.D", "size": 1}}, "unknown key 'data.size'"),
        ({"data": {"init_args": {}}}, "data needs a class_path"),
        ({"data": {"class_path": 5}}, "data needs a class_path"),
        ({"data": {"class_path": "m.D", "init_args": [1]}}, "data.init_args are names with values"),
        ({"data": {"class_path": "m.D", "weights": "w.pt"}}, "unknown key 'data.weights'"),
        ({"data": "m.D"}, r"data should be dict\[str, Any\], not 'm.D'"),
        ({"dump": {"prt": 1}}, "unknown key 'dump.prt'. Did you mean 'part'"),
        ({"dump": {"devices": "two"}}, "dump.devices should be int, not 'two'"),
        ({"dump": {"devices": True}}, "dump.devices should be int, not True"),
        ({"dump": 5}, "dump should be"),
        ({"dump": {"part": 3}}, r"dump.part should be str \| None, not 3"),
        ({"progress": "maybe"}, "progress should be bool, not 'maybe'"),
        ({"cache": 5}, "cache should be str, not 5"),
        ({"cache": None}, "the experiment has no 'cache'"),
    ],
)
def test_refused_by_both_stages(kind, change, match):
    with pytest.raises(UsageError, match=match):
        parse(kind, {**RAW, **change})


def test_keys_of_the_other_stages_settings_are_looked_at():
    """It costs nothing, and a dump takes longer than the training that would find it."""
    with pytest.raises(UsageError, match=r"'distill\.tmperature'\. Did you mean 'temperature'"):
        parse(DumpExperiment, {**RAW, "distill": {"tmperature": 3}})
    parse(DumpExperiment, {**RAW, "distill": {"temperature": "warm"}})
    parse(DumpExperiment, {**RAW, "distill": None})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"distill": {"temprature": 1}}, "'distill.temprature'. Did you mean 'temperature'"),
        ({"distill": {"losses": {"kd_loss": "much"}}}, "distill.losses.kd_loss should be float"),
        ({"distill": {"temperature": "warm"}}, "distill.temperature should be float, not 'warm'"),
        ({"distill": {"temperature": None}}, "distill.temperature should be float, not None"),
        ({"optimizer": {}}, "optimizer needs a class_path"),
        ({"student": {"class_path": "m.S", "weights": 5}}, "student.weights is the path of a file"),
        ({"optimizer": {"init_args": {"lr": 1}}}, "optimizer needs a class_path"),
        (
            {"scheduler": {"class_path": "m.S", "interval": "batch"}},
            "scheduler.interval is epoch or step, not 'batch'",
        ),
        ({"scheduler": {"class_path": "m.S", "args": 1}}, "unknown key 'scheduler.args'"),
        ({"pipelines": {"test": {"class_path": "m.P", "args": 1}}}, "'pipelines.test.args'"),
        ({"pipelines": {"test": "m.P"}}, "pipelines.test should be"),
        ({"trainer": [1]}, "trainer should be"),
        ({"seed": None}, "seed should be int, not None"),
        ({"seed": 1.5}, "seed should be int, not 1.5"),
    ],
)
def test_refused_by_stage_two(change, match):
    with pytest.raises(UsageError, match=match):
        parse(StudentExperiment, {**RAW, **change})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (DumpExperiment, "cache"),
        (DumpExperiment, "data"),
        (DumpExperiment, "teacher"),
        (StudentExperiment, "cache"),
        (StudentExperiment, "data"),
        (StudentExperiment, "student"),
    ],
)
def test_a_missing_section_is_named(kind, name):
    raw = {key: value for key, value in RAW.items() if key != name}
    with pytest.raises(UsageError, match=f"the experiment has no '{name}'.*--{name}"):
        parse(kind, raw)


@pytest.mark.parametrize("name", ["trainer", "pipelines", "dump", "distill", "targets", "batch"])
def test_an_empty_section_is_its_default(name):
    """All its lines commented out: YAML reads null."""
    wanted = parse(StudentExperiment, {k: v for k, v in RAW.items() if k != name})
    assert parse(StudentExperiment, {**RAW, name: None}) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_help_knows_every_key_and_says_something(kind):
    keys = {key.name: key for key in keys_of(kind)}
    sections = {"dump": DumpSection, "distill": DistillSection, "tracking": Tracking}
    for item in dataclasses.fields(kind):
        if item.name in keys:  # one line, also for the other stage's section
            continue
        inner = {f"{item.name}.{one.name}" for one in dataclasses.fields(sections[item.name])}
        if item.name == "tracking":  # has a section of its own
            comet = {f"tracking.comet.{one.name}" for one in dataclasses.fields(CometSettings)}
            inner = inner - {"tracking.comet"} | comet
        assert inner <= keys.keys()
    assert all(key.about for key in keys.values())
    assert {name for name, key in keys.items() if key.is_required} >= {"cache", "data"}
