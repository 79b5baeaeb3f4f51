"""Sections of the GPU check that end badly; ``HOW`` in the environment says in which way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from scripts.gpu_check.section import Clock, Figure, Setting
from tests.hang import HANG_S


def measure(setting: Setting, clock: Clock) -> Iterator[Figure]:
    yield Figure(what="before", unit="s", median=1.5)
    if os.environ["HOW"] == "raises":
        raise RuntimeError("on purpose,\nin two lines")
    if os.environ["HOW"] == "dies":
        os._exit(7)
    if os.environ["HOW"] == "hangs":
        time.sleep(HANG_S)
    clock.cut.append("1 of 2 turns")
