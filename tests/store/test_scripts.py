"""The scripts that try to break a cache, each with a fraction of what it does by default."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.store.synthetic import ROOT


@pytest.mark.parametrize(
    ("script", "options", "says"),
    [
        ("fuzz_cache", ["--examples", "200", "--seed", "7"], "peak memory"),
        ("flip_bytes", ["--places", "150", "--seed", "7"], "0 missed"),
        ("foreign_shards", ["--mixtures", "20", "--seed", "7"], "0 missed"),
    ],
)
def test_nothing_is_missed(script, options, says):
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.checks.{script}", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert says in done.stdout
