"""The command line: run the sections one after another, until the deadline.

    bash scripts/gpu_check.sh --out FOLDER [--dry-run] [--section NAME ...] [--deadline_s 450]

Exit code 0: all sections ran, though some perhaps with fewer turns; 1: one failed, or was not run;
2: a package or the device is missing, and nothing was run.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.gpu_check import needs

# Seconds that a section may take before it is cut short; together less than the deadline.
BUDGETS_S: Mapping[str, float] = {
    "cuda_tests": 90,
    "image_dump": 75,
    "token_dump": 85,
    "student_step": 45,
    "loss_heads": 30,
    "live_images": 55,
    "live_tokens": 45,
}
DEADLINE_S = 450.0
# Less of its budget than this is not worth a section's start; one that hangs gets this much more.
_LEAST_SHARE, _MOST_SHARE = 0.3, 1.5
_SLOW_START_S = 30.0


@dataclass(kw_only=True)
class Run:
    """A run under way.

    Attributes:
        out: folder of the report.
        device: ``cuda`` or ``cpu``.
        is_tiny: see :class:`scripts.gpu_check.section.Setting`.
        sections: that are to run.
        deadline_s: seconds from the start after which nothing runs any more.
    """

    out: Path
    device: str
    is_tiny: bool
    sections: Sequence[str]
    deadline_s: float
    started: float = field(default_factory=time.perf_counter)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.started + self.deadline_s - time.perf_counter()

    def record(self) -> dict[str, Any]:
        """What stands above the sections in the JSON file."""
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - self.started,
            "deadline_s": self.deadline_s,
            "is_tiny": self.is_tiny,
            "card": self.card,
            "packages": needs.versions(),
        }


def run_all(run: Run) -> int:
    """Run the sections, write the report after each of them, print the table; the exit code."""
    from scripts.gpu_check import report
    from scripts.gpu_check.section import Result, Setting
    from scripts.gpu_check.sections import cuda_tests
    from scripts.gpu_check.worker import Worker

    results: list[Result] = []
    worker: Worker | None = None
    table = ""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
        try:
            for section in run.sections:
                folder = Path(name) / section
                setting = Setting(device=run.device, is_tiny=run.is_tiny, folder=folder)
                budget_s = min(BUDGETS_S[section], max(0.0, run.left_s))
                if budget_s < _LEAST_SHARE * BUDGETS_S[section]:
                    why = f"the deadline of {run.deadline_s:.0f} s was too near"
                    results.append(
                        Result(section=section, status="not run", budget_s=budget_s, error=why)
                    )
                    continue
                limits = {
                    "budget_s": budget_s,
                    "limit_s": min(_MOST_SHARE * budget_s + _SLOW_START_S, run.left_s),
                }
                print(f"{section} ...", flush=True)
                folder.mkdir()
                try:
                    if worker is None or not worker.is_alive:
                        worker = Worker(run.device)
                        run.card = worker.card(run.left_s)
                        if not run.card["is_there"]:
                            print("there is no CUDA device here; nothing was run.", file=sys.stderr)
                            return 2
                    if section == cuda_tests.NAME:
                        results.append(cuda_tests.run(setting, **limits))
                    else:
                        results.append(worker.run(section, setting, **limits))
                except RuntimeError as error:
                    results.append(
                        Result(
                            section=section, status="failed", budget_s=budget_s, error=str(error)
                        )
                    )
                shutil.rmtree(folder)
                report.write(run.out, run.record(), results)
        finally:
            if worker is not None:
                worker.end()
        table = report.write(run.out, run.record(), results)
    print(table)
    return int(any(result.status in ("failed", "not run") for result in results))


def main(words: Sequence[str] | None = None) -> int:
    """Check what is there, then run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the report; made")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds")
    parser.add_argument("--dry-run", action="store_true", help="--device cpu --tiny")
    parser.add_argument("--section", action="append", choices=BUDGETS_S, help="repeatable")
    parser.add_argument("--deadline_s", type=float, default=DEADLINE_S)
    given = parser.parse_args(words)
    if absent := needs.missing():
        print(
            f"packages are missing: {', '.join(absent)}. Install them, or give a folder of their "
            "wheels (--wheels FOLDER). Nothing was run.",
            file=sys.stderr,
        )
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        out=given.out,
        device="cpu" if given.dry_run else given.device,
        is_tiny=given.tiny or given.dry_run,
        sections=given.section or list(BUDGETS_S),
        deadline_s=given.deadline_s,
    )
    return run_all(run)


if __name__ == "__main__":
    sys.exit(main())
