"""What is said while a teacher is dumped, on a terminal of 80 columns and without one."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from kdcache.dump import progress
from kdcache.dump.progress import DumpProgress

STATISTICS = {"labelled": 256.0, "correct": 200.0}


def test_a_line_now_and_then_where_there_is_no_terminal(caplog):
    with (
        caplog.at_level(logging.INFO),
        DumpProgress("train", 60_000, 24, shown=True, line_s=0.0) as shown,
    ):
        shown.advance(1_000)
        shown.committed(0, STATISTICS)
        shown.advance(234)
    first, second = caplog.messages
    assert first.startswith("train: 1,000 of 60,000 samples, ")
    assert second.startswith("train: 1,234 of 60,000 samples, ")
    assert second.endswith("/s")


@pytest.mark.parametrize("options", [{"shown": False, "line_s": 0.0}, {"shown": True}])
def test_nothing_where_it_is_not_wanted_or_quick(caplog, capfd, options):
    with caplog.at_level(logging.INFO), DumpProgress("train", None, 24, **options) as shown:
        shown.advance(1_000)
        shown.committed(0, STATISTICS)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


def test_the_bar_fits_a_terminal(monkeypatch):
    printed = io.StringIO()

    def terminal(file):
        return Console(file=printed, force_terminal=True, width=80, color_system=None)

    monkeypatch.setattr(progress, "Console", terminal)
    with DumpProgress("validation", 1_281_167, 2004, shown=True) as shown:
        shown.advance(1_000_000)
        shown.committed(0, STATISTICS)
        shown.advance(1)
    last = [line for line in printed.getvalue().splitlines() if "1000001" in line][-1]
    assert "validation" in last
    assert "1000001/1281167" in last
    assert "78.12% right" in last
