"""tests/cuda in a pytest of its own, and how many of them did what."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from scripts.gpu_check.section import Figure, Result, Setting, Status

NAME = "cuda_tests"
ROOT = Path(__file__).resolve().parents[3]
_COUNTED = ("tests", "failures", "errors", "skipped")


def run(setting: Setting, *, budget_s: float, limit_s: float) -> Result:
    """Run them; ended after ``limit_s``.

    Args:
        setting: on a CPU all of them are skipped, and the section is called so.
        budget_s: the seconds that they were to take.
        limit_s: after which they are ended.
    """
    started = time.perf_counter()
    report = setting.folder / "cuda_tests.xml"
    # Plug-ins that happen to be installed have no say, nor have a library's new warnings.
    command = [sys.executable, "-m", "pytest", "tests/cuda", "-W", "default", "--tb", "short"]
    command += ["-p", "no:cacheprovider", "--junit-xml", str(report)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    error = ""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=max(1.0, limit_s), check=False
        )
        if done.returncode:
            error = f"pytest ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit_s:.0f} s"
    counts = _counts(report)
    status: Status = "passed"
    if error or not counts:
        status, error = "failed", error or "pytest wrote no report"
    elif counts["skipped"] and setting.device == "cuda":
        status, error = "failed", f"{counts['skipped']} tests were skipped on a GPU"
    elif counts["passed"] == 0:
        status, error = "skipped", "no CUDA device: every test was skipped"
    return Result(
        section=NAME,
        status=status,
        budget_s=budget_s,
        seconds=time.perf_counter() - started,
        error=error,
        figures=tuple(Figure(what=name, unit="tests", median=n) for name, n in counts.items()),
    )


def _counts(report: Path) -> dict[str, int]:
    """Passed, failed and skipped tests; none where there is no report."""
    if not report.exists():
        return {}
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total = dict.fromkeys(_COUNTED, 0)
    for suite in suites:
        for name in _COUNTED:
            total[name] += int(suite.get(name, 0))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    return {"passed": passed, "failed": failed, "skipped": total["skipped"]}
