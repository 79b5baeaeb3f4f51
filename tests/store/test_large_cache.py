"""The script that shows that memory does not grow with the cache, at a small size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import kdcache
from scripts.checks import large_cache
from scripts.checks.large_cache import IMPORTS, Job, growth, mean_length, pad, write
from scripts.measuring.peak_memory import Measured, measure
from tests.store.synthetic import ROOT

MIB = 1 << 20
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="memory is read from /proc"
)
SMALL = {
    "sequences": 300,
    "max_length": 32,
    "vocabulary": 200,
    "samples_per_shard": 16,
    "batch_size": 8,
    "steps": 4,
    "positions": 16,
}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def job(tmp_path):
    return Job(
        folder=tmp_path,
        num_sequences=50,
        max_length=40,
        lengths="log-uniform",
        vocabulary=300,
        samples_per_shard=16,
        batch_size=8,
        steps=3,
        positions=16,
        seed=0,
    )


@needs_proc
def test_all_of_it(tmp_path):
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.checks.large_cache", *options, f"--folder={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for phase in ("write", "verify", "first use", "train"):
        for number in (3, 30, 300):
            assert any(
                line.split()[:1] == [str(number)] and f" {phase} " in line
                for line in done.stdout.splitlines()
            )
    assert "in 19 shards" in done.stdout
    assert "300 samples sound" in done.stdout
    assert "MiB anonymous memory" in done.stdout
    assert not list(tmp_path.iterdir())


class TestCache:
    """What is written is what a dump of such a teacher would have written."""

    def test_targets(self, job):
        write(job)
        joined = kdcache.CachedDataset(
            job.texts, job.view, collate_fn=pad, batch={"inputs": ["input_ids"]}
        )
        targets = joined.collate(joined.__getitems__(range(50))).targets
        lengths = [len(job.texts[number]["input_ids"]) for number in range(50)]
        assert targets.num_positions.tolist() == lengths
        assert targets.log_p.shape == (sum(lengths), 4)
        log_p, tail = targets.log_p.double(), targets.tail_log_sums.double()
        assert (log_p.exp().sum(-1) + tail.exp().sum(-1) - 1).abs().max() < 2e-3  # float16
        assert (log_p.diff() <= 0).all()
        assert (tail[:, 0] <= log_p[:, -1] + np.log(296) + 4e-3).all()
        ids = targets.ids.long()
        assert 0 <= ids.min() <= ids.max() < 300
        assert (ids.sort().values.diff() > 0).all()

    def test_follows_from_the_seed(self, job, tmp_path):
        jobs = [
            replace(job, folder=tmp_path / str(n), seed=seed) for n, seed in enumerate([0, 0, 1])
        ]
        digests = []
        for each in jobs:
            each.folder.mkdir()
            write(each)
            digests.append(each.view.digest)
        assert digests[0] == digests[1] != digests[2]

    @pytest.mark.parametrize("lengths", ["log-uniform", "uniform"])
    def test_lengths(self, job, lengths):
        texts = replace(job, lengths=lengths, num_sequences=4000).texts
        found = torch.tensor([len(texts[number]["input_ids"]) for number in range(4000)])
        assert (int(found.min()), int(found.max())) == (1, 40)
        mean = float(found.double().mean())
        assert mean == pytest.approx(mean_length(lengths, 40), rel=0.05)


def hold(_):
    """100 MiB, for long enough to be seen."""
    held = np.ones(100 * MIB, np.uint8)
    time.sleep(0.5)
    return f"held {len(held):,}"


def read_mapped(job):
    """30 MiB of a file."""
    (job.folder / "file").write_bytes(bytes(30 * MIB))
    pages = np.memmap(job.folder / "file", np.uint8, "r")
    found = int(pages.sum())
    time.sleep(0.5)
    return f"sum {found}"


def broken(job):
    raise ZeroDivisionError("on purpose")


@needs_proc
class TestMeasure:
    def test_anonymous_memory(self, job):
        found = measure(hold, job, imports=IMPORTS)
        assert found.remark == "held 104,857,600"
        assert 95 < found.anon_mib - found.before_mib < 120
        assert found.all_mib >= found.anon_mib

    def test_mapped_files_apart(self, job):
        found = measure(read_mapped, job, imports=IMPORTS)
        assert found.remark == "sum 0"
        assert found.file_mib > 30
        assert found.anon_mib - found.before_mib < 33  # what was written, at most
        assert found.all_mib > found.before_mib + 30

    def test_failure_is_named(self, job):
        with pytest.raises(SystemExit, match="broken, 50 sequences: it ended with 1"):
            measure(broken, job, imports=IMPORTS, title="50 sequences")


def test_growth():
    def at(anon_mib):
        return Measured(
            seconds=1, remark="", before_mib=50, anon_mib=anon_mib, file_mib=1, all_mib=1
        )

    sizes = {1: {"write": at(60), "verify": at(70)}, 100: {"write": at(260), "verify": at(65)}}
    assert growth(sizes) == {"write": 200, "verify": -5}


def test_shards_are_those_of_a_dump():
    from kdcache.dump.preparation.plan import (
        choose_samples_per_shard,  # slow: processes import this module
    )

    sample_bytes = mean_length("log-uniform", 4096) * 24
    assert choose_samples_per_shard(100_000, 16, sample_bytes) == 384


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 100 * MIB))
    large_cache.check_room(tmp_path, 1000, 492)
    with pytest.raises(SystemExit, match=r"100,000 sequences need about .* Nothing was written"):
        large_cache.check_room(tmp_path, 100_000, 492)
