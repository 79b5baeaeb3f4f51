"""A student in its own library's form: what ``from_pretrained`` reads.

Models of Hugging Face have ``save_pretrained``; that of a PEFT model saves the adapter alone.
``student.safetensors`` is written before: what a library does here loses no run.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.weights import unwrapped

log = logging.getLogger(__name__)


def save_pretrained(student: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Save a student with its own ``save_pretrained``, where it has one, and the tokenizer.

    Args:
        student: may be wrapped, and may have wrapped parts.
        tokenizer: of the data; None: there is none.
        folder: is made, and is not there where the student could not be saved.
    """
    with unwrapped(student) as plain:
        save = getattr(plain, "save_pretrained", None)
        if not callable(save):
            return
        try:
            save(str(folder))
        except Exception as error:  # anybody's code
            shutil.rmtree(folder, ignore_errors=True)
            _tell(f"{type(plain).__name__}.save_pretrained", "the student", error)
            return
    save = getattr(tokenizer, "save_pretrained", None)
    if callable(save):
        try:
            save(str(folder))
        except Exception as error:
            _tell(f"{type(tokenizer).__name__}.save_pretrained", "the tokenizer", error)


def _tell(name: str, what: str, error: Exception) -> None:
    log.warning(
        "%s failed: %s: %s. So %s is not saved for from_pretrained; the run is complete without, "
        "with all weights in student.safetensors",
        name,
        type(error).__name__,
        " ".join(str(error).split())[:300],
        what,
    )
