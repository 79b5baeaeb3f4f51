"""Where a student run writes: a folder of its own, claimed before anything is computed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import UsageError

RECORD_FILE = "run.json"
STUDENT_FILE = "student.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"
_NUMBERED = re.compile(r"run-(\d{4})")


def claim_output(output: Path | None, cache: Path) -> Path:
    """Make the folder of a run.

    Args:
        output: where the user wants it; the next ``students/run-0001`` beside the cache if None.
        cache: the teacher cache.

    Raises:
        UsageError: the folder holds something; nothing is overwritten.
    """
    if output is not None:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(
                f"{output} exists and is not empty; a run never overwrites another. Choose another "
                "--output, or remove it yourself."
            )
        output.mkdir(parents=True, exist_ok=True)
        return output
    folder = cache.parent / "students"
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(m[1]) for path in folder.iterdir() if (m := _NUMBERED.fullmatch(path.name))]
    number = max(taken, default=0)
    while True:
        number += 1
        claimed = folder / f"run-{number:04d}"
        try:
            claimed.mkdir()
        except FileExistsError:  # another run claimed it in the meantime
            continue
        return claimed


@contextlib.contextmanager
def released_on_failure(output: Path) -> Iterator[None]:
    """Remove a claimed folder again where training fails before its first checkpoint."""
    try:
        yield
    except BaseException:
        if not any((output / CHECKPOINTS_FOLDER).glob("*")):
            shutil.rmtree(output)
        raise


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Write what a run was and what came out of it."""
    text = json.dumps(record, indent=2, sort_keys=True, default=str)
    (output / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
