"""Where a student run writes: a folder of its own, claimed before anything is computed."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kdcache.errors import UsageError

STUDENT_FILE = "student.safetensors"
PRETRAINED_FOLDER = "pretrained"
"""Where a student with ``save_pretrained`` is saved by it as well, for ``from_pretrained``."""
CHECKPOINTS_FOLDER = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
_NUMBERED = re.compile(r"run-(\d{4,})")


def claim_output(output: Path | None, cache: Path) -> Path:
    """Make the folder of a run.

    Args:
        output: where the user wants it; the next ``students/run-0001`` beside the cache if None.
        cache: the teacher cache.

    Raises:
        UsageError: the folder holds something, and nothing is overwritten; or nobody can write
            there.
    """
    folder = cache.parent / "students" if output is None else output
    try:
        if output is None:
            return _next_run(folder)
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UsageError(
                f"{output} exists and is not empty; a run never overwrites another. Choose another "
                "--output, or remove it yourself."
            )
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):  # an empty folder may still be read-only
            return output
    except OSError as error:
        raise UsageError(
            f"the output folder {folder} cannot be written: {error.strerror or error}. Choose "
            f"{'another' if output else 'one with'} --output."
        ) from error


def _next_run(folder: Path) -> Path:
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
    """Remove a claimed folder again where training fails before its first checkpoint.

    A Comet archive stays as well: it says what was measured until then.
    """
    try:
        yield
    except BaseException:
        if not any(output.rglob("*.ckpt")) and not any(output.glob("comet/*.zip")):
            shutil.rmtree(output, ignore_errors=True)
        raise
