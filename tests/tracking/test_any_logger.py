"""Every run has checkpoints and its record, whichever logger it has, or none."""

from __future__ import annotations

import json
import sys
import types

import pytest
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger

from kdcache.errors import UsageError
from tests.tracking.comet.archives import rows_in, values_in
from tests.train import small


class Own(Logger):
    """A user's own."""

    def __init__(self):
        super().__init__()
        self.metrics, self.parameters, self.status = [], {}, []

    name, version = "own", 0

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, params):
        self.parameters |= params

    def finalize(self, status):
        self.status.append(status)


def test_a_logger_of_ones_own(train, cache):
    own = Own()
    run = train(tracking={"loggers": ["csv", own], "parameters": {"a": {"b": None}}})
    assert own.parameters["digest"] == cache["train"].digest
    assert own.parameters["parameters/a/b"] == "null"
    assert own.parameters["optimizer/class"] == "torch.optim.adam.Adam"
    logged = {(name, step) for step, metrics in own.metrics for name in metrics}
    assert {pair for pair in logged if pair[0] != "epoch"} == set(values_in(run.output))
    assert own.status[0] == "success"


@pytest.mark.parametrize(
    "given",
    [
        {"tracking": {"loggers": []}},
        {"tracking": {"loggers": ["csv"]}},
        {"tracking": {"loggers": ["tensorboard"]}},
        {"tracking": {"loggers": ["comet"]}},
        {"tracking": {"loggers": [Own()]}},
        {"trainer": {"logger": False}},
        {"trainer": {"logger": Own()}},
    ],
)
def test_there_are_checkpoints_and_a_record(train, cache, given):
    run = train(**given)
    names = {path.name for path in (run.output / "checkpoints").iterdir()}
    assert names == {"best-epoch-000-step-6.ckpt", "last.ckpt"}
    assert json.loads((run.output / "run.json").read_text())["digest"] == cache["train"].digest


def test_a_logger_of_the_trainer_gets_all_that_ours_do(train, tmp_path, cache):
    own = Own()
    run = train(trainer={"logger": own, "log_every_n_steps": 2})
    assert own.parameters["digest"] == cache["train"].digest
    assert [step for step, metrics in own.metrics if "lr-Adam" in metrics] == [1, 3, 5]
    assert not (run.output / "metrics.csv").exists()


def test_the_learning_rate_of_every_logged_step(train):
    """Once, also where the user monitors it as well."""
    run = train(
        trainer={"log_every_n_steps": 1, "callbacks": [LearningRateMonitor("epoch")]},
        scheduler="linear_decay_with_warm_up",
    )
    assert sum("lr-Adam" in row for row in rows_in(run.output)) == 1
    run = train(
        trainer={"log_every_n_steps": 1, "max_epochs": 2},
        scheduler="linear_decay_with_warm_up",
        learning_rate=1e-2,
        output=run.output.parent / "two",
    )
    rates = [float(row["lr-Adam"]) for row in rows_in(run.output) if "lr-Adam" in row]
    assert rates == pytest.approx([0.01] * 6 + [0.005] * 6)


@pytest.mark.parametrize(("order", "name"), [(2, "grad_2.0_norm_total"), (float("inf"), None)])
def test_the_norm_of_the_gradient(train, order, name):
    run = train(tracking={"grad_norm": order}, trainer={"log_every_n_steps": 1})
    (found,) = [one for one in run.metrics if one.startswith("grad_")]
    assert name in (None, found)
    run = train(tracking={"grad_norm": None}, output=run.output.parent / "without")
    assert not [one for one in run.metrics if one.startswith("grad_")]


def test_a_logger_of_the_other_lightning(train, tmp_path, monkeypatch):
    """Built by the user, or named in a file."""
    package = types.ModuleType("lightning.pytorch.loggers")
    kind = type("MLFlowLogger", (), {"__module__": package.__name__, "log_metrics": None})
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(UsageError, match=r"lightning\.pytorch\.loggers\.MLFlowLogger cannot be"):
        train(tracking={"loggers": [kind()]})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "logger", [{"class_path": "m.Logger"}, type("X", (), {"log_metrics": 0})()]
)
def test_what_is_no_logger(train, tmp_path, logger):
    with pytest.raises(UsageError, match=r"is no logger of pytorch_lightning\. A class_path is"):
        train(tracking={"loggers": [logger]})
    assert not (tmp_path / "run").exists()


def test_a_csv_logger_of_lightnings_writes_where_it_is_told(train, tmp_path):
    own = CSVLogger(tmp_path / "elsewhere", name="mine", version="x")
    run = train(tracking={"loggers": [own]}, student=small.net(2))
    assert (tmp_path / "elsewhere" / "mine" / "x" / "metrics.csv").exists()
    assert not (run.output / "metrics.csv").exists()
