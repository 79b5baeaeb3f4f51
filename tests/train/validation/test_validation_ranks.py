"""Validation under DDP: whole sets dealt to two ranks, each counted once, known to both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from safetensors.torch import load_model

from kdcache.data.batch.mapping import BatchMapping
from kdcache.train import AccuracyPipeline
from kdcache.train.validation.sets import Validation
from tests.hang import HANG_S
from tests.train import small
from tests.train.validation import two_ranks


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(cache, tmp_path_factory):
    """What each rank saw of every phase, its exit code and its output."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    outputs = [folder / f"{rank}.txt" for rank in range(2)]
    started = []
    try:
        for rank, output in enumerate(outputs):
            with output.open("w") as stream:
                started.append(
                    subprocess.Popen(
                        [sys.executable, two_ranks.__file__, str(cache.path), str(folder)],
                        env={**shared, "LOCAL_RANK": str(rank)},
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = [process.wait(timeout=HANG_S) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    texts = [output.read_text() for output in outputs]
    return SimpleNamespace(found=found, codes=codes, texts=texts, folder=folder)


def phase(ranks, name):
    return [found[name] for found in ranks.found]


def test_each_sample_is_counted_once_and_both_ranks_know_all_scores(ranks):
    """Also where a pipeline takes longer than the process group's timeout."""
    assert two_ranks.SLOW_S > two_ranks.TIMEOUT_S
    first, second = phase(ranks, "sound")
    sets = ["first", "slow", "test", "drawing", "third"]
    assert list(first["scores"]) == list(second["scores"]) == sets
    assert first["scores"] == second["scores"]
    assert first["metrics"] == second["metrics"]
    for name in sets:
        if name != "test":
            assert first["scores"][name]["samples"] == two_ranks.SIZES[name]
        for number, value in first["scores"][name].items():
            assert first["metrics"][f"{name}_{number}"] == pytest.approx(value)


def test_whichever_rank_scores_scores_the_student_of_the_file(ranks):
    """Each rank's batch norm has statistics of its own; what is saved are the first rank's."""
    found, _ = phase(ranks, "sound")
    student = two_ranks.student()
    load_model(student, found["student"])
    wanted = float(student[1].running_mean.sum())
    for name in ("first", "slow", "drawing", "third"):
        assert found["scores"][name]["running_means"] == pytest.approx(wanted, rel=1e-6)
    alone = AccuracyPipeline().run_inference_pipeline(student, small.loader(small.NUM_TEST, seed=1))
    # Another process's arithmetic: the last digits of a sum may differ.
    scored = {name: found["scores"]["test"][name] for name in alone}
    assert scored == pytest.approx(alone, rel=1e-5)
    assert "teacher_kl" in found["scores"]["test"]


def test_both_ranks_follow_the_same_plateau(ranks):
    """The first set's score is a constant, and one rank knows it by hearsay."""
    first, second = phase(ranks, "sound")
    assert first["rates"] == second["rates"] == [1e-3, 1e-3, 5e-4]


def test_what_one_rank_draws_in_a_validation_does_not_change_the_training(ranks):
    weights = {one["weights"] for name in ("late", "bare") for one in phase(ranks, name)}
    assert len(weights) == 1


def test_the_last_validation_scores_the_last_weights_on_both_ranks(ranks):
    first, second = phase(ranks, "late")
    assert first["scores"] == second["scores"]
    student = two_ranks.student()
    load_model(student, first["student"])
    wanted = float(student[1].running_mean.sum())
    assert first["scores"]["drawing"]["running_means"] == pytest.approx(wanted, rel=1e-6)


def test_lightning_has_nothing_to_warn_of(ranks):
    for found, text in zip(ranks.found, ranks.texts, strict=True):
        assert found["warnings"] == []
        assert "sync_dist" not in text
        assert "Sampler" not in text


def test_both_ranks_fail_where_one_does(ranks):
    told, own = phase(ranks, "failing")
    assert own == {"error": "ValueError", "message": "out of paint"}
    assert told["error"] == "KdcacheError"
    assert (
        "'slow' was not scored: its pipeline, Counting, raised ValueError: out of paint"
        in (told["message"])
    )


def test_a_signal_ends_both_ranks_between_two_sets(ranks):
    for one in phase(ranks, "terminated"):
        assert one["error"] == "TerminatedError"
        assert "after 3 steps" in one["message"]


def test_a_rank_that_dies_ends_the_other(ranks):
    assert ranks.codes == [0, 9]
    assert ranks.found[0]["dying"]["error"] == "ProcessLostError"
    assert "one of them ended before it came" in ranks.found[0]["dying"]["message"]
    assert "dying" not in ranks.found[1]
    for name in ("failing", "terminated", "dying"):
        assert not (ranks.folder / name / "student.safetensors").exists()


class Kind(DDPStrategy):
    """Of somebody's own: who knows whether its forward pass needs all ranks."""


@pytest.mark.parametrize(
    ("strategy", "size", "dealt"),
    [
        (SingleDeviceStrategy, 1, [["a", "b", "c"]]),
        (DDPStrategy, 1, [["a", "b", "c"]]),
        (DDPStrategy, 2, [["a", "c"], ["b", None]]),
        (DDPStrategy, 3, [["a"], ["b"], ["c"]]),
        (DDPStrategy, 5, [["a"], ["b"], ["c"], [None], [None]]),
        (FSDPStrategy, 2, [["a", "b", "c"]] * 2),
        (Kind, 2, [["a", "b", "c"]] * 2),
    ],
)
def test_who_scores_what(strategy, size, dealt):
    """Ranks have as many items each: Lightning counts them when it resumes."""
    sets = dict.fromkeys("abc", small.loader(8))
    validation = Validation(sets, {}, batch=BatchMapping(), temperature=1.0)
    for rank, wanted in enumerate(dealt):
        trainer = SimpleNamespace(
            strategy=object.__new__(strategy),
            world_size=size,
            global_rank=rank,
            limit_val_batches=1.0,
        )
        assert list(validation.names(trainer)) == wanted
