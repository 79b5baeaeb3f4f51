"""metrics.csv of a run that goes on: rows before the checkpoint stay, later ones do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.tracking.metrics_file import MetricsFile, earlier_rows
from tests.tracking.comet.archives import rows_in


def logged(folder, steps, before_step=0, **also):
    logger = MetricsFile(folder, before_step=before_step)
    for step in steps:
        logger.log_metrics({"loss": step / 10, **also}, step=step)
    logger.finalize("success")


@pytest.fixture
def folder(tmp_path):
    """Steps 0 to 5 of a run that was killed after its checkpoint of step 4."""
    logged(tmp_path, range(6))
    return tmp_path


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_rows_before_the_checkpoint_stay(folder):
    before = rows_in(folder)[:4]
    logged(folder, range(4, 7), before_step=4, score=1.0)
    rows = rows_in(folder)
    assert rows[:4] == before
    assert [int(row["step"]) for row in rows] == list(range(7))
    assert [row.get("score") for row in rows] == [None] * 4 + ["1.0"] * 3


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_they_are_in_the_file_before_the_next_row_is(folder):
    _ = MetricsFile(folder, before_step=4).experiment
    assert [row["step"] for row in rows_in(folder)] == ["0", "1", "2", "3"]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_new_run_keeps_none(folder):
    logged(folder, [9])
    assert [row["step"] for row in rows_in(folder)] == ["9"]


def test_a_file_that_is_cut_or_missing(folder):
    file = folder / "metrics.csv"
    file.write_text(file.read_text()[:-4] + "\n0.9")
    assert [row["step"] for row in earlier_rows(file, 99)] == ["0", "1", "2", "3", "4"]
    assert earlier_rows(folder / "none.csv", 99) == []


def test_a_resumed_run_has_one_row_a_step(train, tmp_path):
    first = {"max_epochs": 2, "log_every_n_steps": 1}
    run = train(trainer=first, seed=0)
    whole = rows_in(run.output)
    (run.output / "run.json").unlink()  # as if it had been killed before its end
    again = train(trainer={**first, "max_epochs": 3}, seed=0, resume=str(run.output), output=None)
    assert again.output == run.output
    rows = rows_in(again.output)
    assert rows[: len(whole)] == whole
    steps = [int(row["step"]) for row in rows if "train_kd_loss_step" in row]
    assert steps == list(range(18))


def test_hyper_parameters_stand_beside_it(train, cache):
    run = train()
    text = Path(run.output / "hparams.yaml").read_text()
    assert f"digest: {cache['train'].digest}\n" in text
