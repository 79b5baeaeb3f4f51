"""PyTorch's files, read so that nothing in them can run.

What a file holds beside tensors and plain values is refused in words of ours. PyTorch's own end in
the advice to read it in the way that runs whatever somebody has put there.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdcache.errors import DataError

_UNSAFE = re.compile(r"(?:Unsupported (?:global|class): (?:GLOBAL )?|but got <class ')([\w.]+)")
_PICKLE = b"\x80"
"""What pickles begin with, since protocol 2."""

_FIRST_BYTES = 60
_NOT_READ = "Reading it could run any code that was put there, so it was not read."
_MOST = 3
"""Classes that an error names."""


def read_plain(path: Path, way_out: str, *, mmap: bool = False) -> Any:
    """What ``torch.save`` has written, on the CPU: tensors and plain values.

    Args:
        path: the file.
        way_out: for errors: what to do with a file that holds more, where it is trusted.
        mmap: read tensors only as they are used.

    Raises:
        DataError: it is damaged, or holds anything else, which was not run.
    """
    try:
        # Of files that are refused PyTorch has warnings as well.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            mmap = mmap and zipfile.is_zipfile(path)  # files of the old format cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # of pickle, zip, the disk or torch
        # From None: with its cause Python would print PyTorch's advice as well.
        raise DataError(f"{path}: {_refusal(path, way_out, error)}") from None


def _refusal(path: Path, way_out: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        return (
            "a TorchScript archive is a program, so it was not read. Where you trust it, open it "
            "with torch.jit.load, and give torch.save(model.state_dict(), ...) of that."
        )
    classes = _classes(path, text)
    if classes:
        more = f" and {len(classes) - _MOST} more" if len(classes) > _MOST else ""
        named = f"{', '.join(classes[:_MOST])}{more}"
        return f"it holds {named} beside tensors and plain values. {_NOT_READ} {way_out}"
    if "weights only" not in text.lower():
        said = f"{type(error).__name__}: {text:.300}"
        return f"it is damaged, or no file of torch.save. {said}{text_instead(path)}"
    with path.open("rb") as stream:
        is_pickle = stream.read(1) == _PICKLE
    if not is_pickle:
        return f"it is damaged, or no file of torch.save.{text_instead(path)}"
    return (
        f"it is a pickle of another kind than torch.save writes, or damaged. {_NOT_READ} Where you "
        "trust it, open it in the program that wrote it, and write tensors and plain values with "
        "torch.save."
    )


def text_instead(path: Path) -> str:
    """What to add of a file that holds text: a page that was saved, or a pointer to the file."""
    with path.open("rb") as stream:
        first = stream.read(_FIRST_BYTES).partition(b"\n")[0].strip()
    if not first or not first.isascii() or not first.decode("ascii").isprintable():
        return ""
    is_pointer = first.startswith(b"version https://git-lfs")
    way_out = " A pointer of Git LFS: fetch the file itself with git lfs pull." * is_pointer
    return f" It is text, and begins with {first.decode('ascii')!r}.{way_out}"


def _classes(path: Path, text: str) -> list[str]:
    """What would have been made or called, as far as PyTorch tells."""
    return refused_in(path) or _UNSAFE.findall(text)[:1]


def refused_in(path: Path) -> list[str]:
    """Classes and functions in a file for which it would be refused; nothing of it is run.

    Empty for files that ``torch.save`` did not write in its present format.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of many kinds
        return []
