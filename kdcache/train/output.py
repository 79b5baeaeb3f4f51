"""Where a student run writes: a folder of its own, claimed before anything is computed."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from torch import Tensor

from kdcache.errors import UsageError

RECORD_FILE = "run.json"
STUDENT_FILE = "student.safetensors"
_NUMBERED = re.compile(r"run-(\d{4,})")


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
        if not any(output.rglob("*.ckpt")):
            shutil.rmtree(output, ignore_errors=True)
        raise


def plain(value: Any) -> Any:
    """A value as JSON can hold it: an object by its class, NaN and infinity as text.

    Everything in a record goes through here once, so that ``run.json`` is valid JSON and a
    checkpoint can be loaded without running anyone's code.
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    is_scalar = isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0)
    if is_scalar:
        value = value.item()
    is_odd = isinstance(value, float) and not math.isfinite(value)
    if is_odd or isinstance(value, str | PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def write_record(output: Path, record: Mapping[str, Any]) -> None:
    """Write what a run was and what came out of it, as plain values."""
    text = json.dumps(plain(record), indent=2, sort_keys=True, allow_nan=False)
    (output / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
