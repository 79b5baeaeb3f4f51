"""What can be said about tracking, and what is refused before anything is made."""

from __future__ import annotations

import dataclasses
import math

import pytest

import kdcache
from kdcache.config import parse
from kdcache.errors import UsageError
from kdcache.experiment import StudentExperiment
from kdcache.tracking import CometSettings, Tracking

RAW = {
    "cache": "t.zarr",
    "data": {"class_path": "m.Data"},
    "student": {"class_path": "m.Net"},
}


def test_what_is_left_out():
    tracking = Tracking.of(None)
    assert tracking == Tracking.of({}) == Tracking()
    assert (tracking.loggers, tracking.grad_norm, tracking.histograms) == (None, 2.0, True)


def test_a_file_and_python_say_it_alike():
    given = {
        "loggers": ["csv", "comet"],
        "name": "first try",
        "grad_norm": math.inf,
        "histograms": False,
        "parameters": {"note": "x"},
        "comet": {"project": "p", "online": False},
    }
    tracking = Tracking.of(given)
    assert parse(StudentExperiment, {**RAW, "tracking": given}).tracking == tracking
    assert tracking.comet == CometSettings(project="p", online=False)
    assert Tracking.of(tracking) is tracking


@pytest.mark.parametrize("empty", [None, {}, {"comet": None}])
def test_an_empty_section_is_its_default(empty):
    assert parse(StudentExperiment, {**RAW, "tracking": empty}).tracking == Tracking()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"logger": ["csv"]}, "unknown key 'tracking.logger'. Did you mean 'loggers'"),
        ({"loggers": ["comett"]}, "no logger 'comett'. Did you mean 'comet'"),
        ({"loggers": ["csv", "csv"]}, "has 'csv' twice"),
        ({"grad_norm": 0}, "above 0, not 0"),
        ({"grad_norm": -1.0}, "above 0, not -1.0"),
        ({"comet": {"project": "p"}}, r"\['csv'\]: nothing would go to Comet. Add comet to"),
        ({"loggers": ["comet"], "comet": {"api_key": "x"}}, "unknown key 'tracking.comet.api_key'"),
        (
            {"loggers": [{"class_path": "lightning.pytorch.loggers.MLFlowLogger"}]},
            r"lightning.pytorch.loggers.MLFlowLogger cannot be used.*Write pytorch_lightning\.log",
        ),
    ],
)
def test_what_is_refused_in_a_file_and_in_python(given, says):
    with pytest.raises(UsageError, match=says):
        Tracking.of(given)
    with pytest.raises(UsageError, match=says):
        parse(StudentExperiment, {**RAW, "tracking": given})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"loggers": "csv"}, r"is a list, such as \[csv\], not 'csv'"),
        ({"loggers": [3]}, "not 3"),
        ({"grad_norm": "two"}, "above 0, not 'two'"),
        (["csv"], "tracking are names with values"),
    ],
)
def test_what_is_refused_in_python(given, says):
    with pytest.raises(UsageError, match=says):
        Tracking.of(given)


def test_two_ways_to_say_it_are_one_too_many(train, tmp_path):
    with pytest.raises(UsageError, match=r"tracking\.loggers and trainer\.logger are both given"):
        train(trainer={"logger": False}, tracking={"loggers": ["csv"]})
    assert not (tmp_path / "run").exists()


def test_the_values_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tracking().name = "x"


def test_nothing_is_trained_with_a_wrong_setting(train, tmp_path):
    with pytest.raises(kdcache.KdcacheError, match="no logger 'wandb'"):
        train(tracking={"loggers": ["wandb"]})
    assert not (tmp_path / "run").exists()
