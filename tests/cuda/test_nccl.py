"""NCCL, as far as one device can show it."""

import subprocess
import sys
from pathlib import Path

from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]


def test_one_rank(cache, tmp_path):
    command = [sys.executable, "-m", "tests.cuda.one_rank", str(cache.path), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all is well" in done.stdout
