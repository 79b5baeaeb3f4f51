"""The GPU check: every section runs, tiny and on the CPU, and what goes wrong is written down."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdcache
from scripts.gpu_check import __main__ as check
from scripts.gpu_check import needs, report
from scripts.gpu_check.section import Clock, Figure, Result
from scripts.gpu_check.sections import dumping
from scripts.measuring.timing import Turn
from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]
FAILING = "tests.scripts.failing_section"
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def read(folder):
    """(what stands above the sections, name -> section, the table)."""
    content = json.loads((folder / report.JSON_FILE).read_text())
    sections = {section["section"]: section for section in content["sections"]}
    return content, sections, (folder / report.TABLE_FILE).read_text()


@linux
def test_the_dry_run(tmp_path):
    pytest.importorskip("transformers")
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/gpu_check.sh"), "--out", "report", "--dry-run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    content, sections, table = read(tmp_path / "report")
    assert list(sections) == list(check.BUDGETS_S)
    assert table in done.stdout
    assert content["is_tiny"]
    assert content["card"]["torch"] == torch.__version__
    assert content["packages"]["torch"] is not None
    tests = sections.pop("cuda_tests")
    counts = {figure["what"]: figure["median"] for figure in tests["figures"]}
    if torch.cuda.is_available():
        assert tests["status"] == "passed"
    else:
        assert tests["status"] == "skipped"
        assert counts["passed"] == counts["failed"] == 0 < counts["skipped"]
    for name, section in sections.items():
        assert section["status"] in ("passed", "cut short"), section
        assert section["seconds"] > 0
        assert f"| {name} | **{section['status']}**" in table
        for figure in section["figures"]:
            if figure["median"] is None:  # a shorter run took as long as a longer one
                assert figure["remark"]
                continue
            assert all(math.isfinite(figure[key]) for key in ("median", "turns"))
            assert figure["low"] is None or figure["low"] <= figure["median"] <= figure["high"]
    assert table.count("\n| ") == 2 + len(sections) + sum(
        len(section["figures"]) for section in (tests, *sections.values())
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the check here, over these sections, tiny and on the CPU."""

    def call(*words, **budgets_s):
        monkeypatch.setattr(check, "BUDGETS_S", budgets_s or check.BUDGETS_S)
        code = check.main(["--out", str(tmp_path), "--dry-run", *words])
        return code, *read(tmp_path)[1:]

    return call


@linux
@pytest.mark.parametrize(
    ("how", "error"),
    [("raises", "RuntimeError: on purpose, in two lines"), ("dies", "its process ended with 7")],
)
def test_a_section_that_fails_is_recorded_and_the_others_still_run(run, monkeypatch, how, error):
    monkeypatch.setenv("HOW", how)
    code, sections, table = run(**{FAILING: 10.0, "loss_heads": 30.0})
    assert code == 1
    failed = sections[FAILING]
    assert (failed["status"], failed["error"]) == ("failed", error)
    assert [figure["median"] for figure in failed["figures"]] == [1.5]
    assert f"**failed**: {error}" in table
    assert sections["loss_heads"]["status"] == "passed"
    assert sections["loss_heads"]["figures"]


def test_a_section_that_hangs_is_ended(run, monkeypatch):
    monkeypatch.setenv("HOW", "hangs")
    monkeypatch.setattr(check, "_SLOW_START_S", 0.0)
    code, sections, _ = run(**{FAILING: 3.0})
    assert code == 1
    assert sections[FAILING]["status"] == "failed"
    assert "stopped after" in sections[FAILING]["error"]


def test_a_section_that_is_cut_short_says_so_and_is_no_failure(run, monkeypatch):
    monkeypatch.setenv("HOW", "is cut")
    code, sections, table = run(**{FAILING: 10.0})
    assert code == 0
    assert sections[FAILING]["status"] == "cut short"
    assert "**cut short**: 1 of 2 turns" in table


def test_nothing_is_run_after_the_deadline(run):
    code, sections, table = run("--deadline_s", "0")
    assert code == 1
    assert list(sections) == list(check.BUDGETS_S)
    assert {section["status"] for section in sections.values()} == {"not run"}
    assert table.count("**not run**: the deadline of 0 s was too near") == len(sections)


def test_budgets_leave_room_before_the_deadline_and_that_before_8_minutes():
    assert sum(check.BUDGETS_S.values()) < check.DEADLINE_S < 8 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_run(tmp_path, capsys):
    assert check.main(["--out", str(tmp_path), "--section", "loss_heads"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(needs.PACKAGES, "not-there", "not_there_at_all")
    assert check.main(["--out", str(tmp_path), "--dry-run"]) == 2
    assert "packages are missing: not-there." in capsys.readouterr().err


def test_the_scripts_head_names_what_is_needed():
    head = (ROOT / "scripts/gpu_check.sh").read_text().split("set -euo")[0]
    assert [name for name in needs.PACKAGES if name not in head] == []


def test_what_a_figure_looks_like():
    assert str(Figure.of("a", "s", [1.5, 1.5, 1.5])) == "1.500 (1.5000 to 1.5000)"
    for value, text in ((14_360.2, "14,360"), (0.01234, "0.0123"), (0.0, "0"), (62, "62")):
        assert str(Figure(what="a", unit="s", median=value)) == text
    assert str(Figure(what="a", unit="s", median=None, remark="out of memory")) == "none"


def test_a_clock_takes_one_turn_in_any_case_and_says_what_it_left_out():
    taken = (clock := Clock(0.0)).take_turns({"a": lambda: None, "b": lambda: None}, 5)
    assert [len(turns) for turns in taken.values()] == [1, 1]
    assert clock.cut == ["1 of 5 turns"]
    assert clock.is_over
    assert len((clock := Clock(600.0)).take_turns({"a": lambda: None}, 5)["a"]) == 5
    assert not clock.cut


class FixedClock:
    """Bare: 1 s and 2 ms a sample; the dump: 3 s and 4 ms, but for noise in its longer runs."""

    def __init__(self, noise_s=0.0):
        self.noise_s = noise_s

    def take_turns(self, runs, repeats, *, warm_up):
        assert (repeats, warm_up) == (3, 1)
        first, each = {"bare": (1.0, 0.002), "dump": (3.0, 0.004)}, [0.0, 0.0, 0.0]
        return {
            (name, size): [
                Turn(
                    wall_s=first[name][0] + size * first[name][1] - self.noise_s * (size > 100),
                    cpu_s=0,
                )
                for _ in each
            ]
            for name, size in runs
        }


def rates_of(clock):
    nothing = functools.partial(pytest.fail, "nothing is run")
    job = dumping.Job(
        teacher=torch.nn.Identity(),
        loader=nothing,
        bare=nothing,
        options={},
        unit="tokens",
        per_sample=10,
        folder=Path("nowhere"),
    )
    ways = [
        dumping.Way(name="bare", codec=None, few=100, many=1000),
        dumping.Way(name="dump", codec=kdcache.DenseCodec(), few=100, many=300),
    ]
    return list(dumping.rates(job, ways, clock, repeats=3, warm_up=1))


def test_rates_are_of_what_the_longer_run_adds():
    found = {(figure.what, figure.unit): figure.median for figure in rates_of(FixedClock())}
    assert found == {
        ("bare", "tokens/s"): pytest.approx(5000),
        ("dump", "tokens/s"): pytest.approx(2500),
        ("dump, against the bare loop", "ratio of time"): pytest.approx(2),
        ("dump, before its first sample", "s"): pytest.approx(3),
    }


def test_no_rate_is_told_where_the_longer_run_was_no_longer():
    bare, *dump = rates_of(FixedClock(noise_s=1.0))
    assert bare.median == pytest.approx(10 * 900 / 0.8)
    assert {(figure.median, figure.remark) for figure in dump} == {(None, "less than the noise")}


def test_a_table_has_no_broken_rows():
    result = Result(section="a", status="failed", budget_s=1.0, error="x | y")
    table = report.to_table({"card": {}, "date": "today", "is_tiny": False}, [result])
    assert table.splitlines()[-1].count("|") == 6
