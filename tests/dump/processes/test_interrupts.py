"""Ctrl-C in a dump on several devices: one line, no traceback of anyone, no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[3]

DUMP = """
import sys
from tests.data import toys
from tests.dump.processes.spawned import Interrupts, Scratch

teacher = {"interrupts": Interrupts, "ordinary": Scratch}[sys.argv[1]]()
try:
    toys.dump(sys.argv[2], toys.labelled(90), teacher, devices=2)
except KeyboardInterrupt:
    sys.exit("interrupted")
"""

# Python imports it first of all: in a replica that is just being started, before torch.
WHILE_STARTING = """
import os, signal, sys

if any("spawn_main" in word for word in sys.orig_argv):
    os.killpg(os.getpgrp(), signal.SIGINT)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")
@pytest.mark.parametrize("when", ["while starting", "in a forward pass"])
def test_ctrl_c_is_told_once(tmp_path, when):
    is_early = when == "while starting"
    (tmp_path / "sitecustomize.py").write_text(WHILE_STARTING if is_early else "")
    done = subprocess.run(
        [sys.executable, "-c", DUMP, "ordinary" if is_early else "interrupts", tmp_path / "cache"],
        check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        start_new_session=True,
        # Where the tests run in the background, the signal may be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "interrupted\n")
