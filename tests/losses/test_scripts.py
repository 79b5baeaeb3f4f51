"""The benchmarks of this room run, at a size of seconds, and print what they say they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]


def output_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_of_loss_heads():
    sizes = ("--classes", "8192", "--positions", "2048", "--positions", "4096", "--repeats", "1")
    lines = output_of("scripts.benchmarks.loss_heads", *sizes).splitlines()
    growth = {
        line.split(":")[0]: float(line.split()[-5]) for line in lines if "more for each" in line
    }
    # KiB a position: several rows of 32 KiB, two of them, a gradient of the hidden states.
    assert growth["plain"] > growth["fused, logits"] > 20 > 8 > growth["fused, hidden"]


def test_steps_of_a_language_model():
    pytest.importorskip("transformers")
    found = output_of(
        "scripts.benchmarks.token_steps",
        "--repeats",
        "2",
        "--sequences",
        "1",
        "--length",
        "8",
        "--only",
        "top-20",
        "--threads",
        "1",
    )
    rows = [line for line in found.splitlines() if "top-20" in line or "transformers" in line]
    assert len(rows) == 2
    walls = [float(row.split("│")[2]) for row in rows]
    assert min(walls) > 0
    of_yardstick, ratio = (row.split("│")[3].strip() for row in rows)
    assert not of_yardstick
    assert float(ratio.split()[0]) > 0
