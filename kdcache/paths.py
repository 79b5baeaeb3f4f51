"""Paths as a user writes them: in a file, on the command line, in Python.

The one invariant: what is no path of this machine's file system never becomes a folder of it.
``Path("s3://bucket/x")`` is ``s3:/bucket/x``, a relative path that ``mkdir`` makes without a word.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kdcache.errors import UsageError

PACKAGE = Path(__file__).resolve().parent
"""Of kdcache's own files: what lies elsewhere is the user's, or a library's."""

# Two letters or more: C:/x is a drive. One slash suffices, as pathlib folds two into one; schemes
# of storage need none (s3:bucket), and fsspec chains them (simplecache::s3://bucket).
_STORAGE = "s3|gs|gcs|az|abfss?|adl|hf|https?|s?ftp|ssh|hdfs|dbfs|oss|memory"
_SCHEME = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]+)(?=:[:/])|({_STORAGE})(?=:)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_VARIABLE = re.compile(r"\$\{?\w+\}?(?=/|$)")


def local_path(value: str | os.PathLike[str], what: str) -> Path:
    """A path on this machine, ``~`` expanded.

    Args:
        value: as the user gave it.
        what: its name in the experiment file or in Python, for errors.

    Raises:
        UsageError: it is empty, a URL, begins with an environment variable that nobody expanded,
            or is no path at all.
    """
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{what} is a path, not {value!r}.")
    text = os.fspath(value)
    if not isinstance(text, str):
        raise UsageError(f"{what} is a path of text, not {value!r}.")
    if not text.strip():
        raise UsageError(f"{what} is an empty path. Name a file or folder.")
    if "\0" in text:
        raise UsageError(f"{what}: {text!r} has a NUL character, which no path can have.")
    if os.name == "posix" and _DRIVE.match(text):
        raise UsageError(
            f"{what}: {text!r} is a path of Windows, which this machine does not know. Nothing was "
            "read or written. Give it a path on this machine."
        )
    scheme = _SCHEME.match(text)
    if scheme is not None:
        remedy = (
            "Write the plain path."
            if scheme[0].lower() == "file"
            else "Object storage and URLs are not supported yet: give a path on this machine, such "
            "as a mounted folder, and copy to or from there."
        )
        raise UsageError(
            f"{what}: {text!r} is a URL ({scheme[0]}), not a path. Nothing was read or written. "
            f"{remedy}"
        )
    variable = _VARIABLE.match(text)
    if variable is not None:
        raise UsageError(
            f"{what}: {text!r} begins with {variable[0]}, and environment variables are not "
            "expanded in experiment files. Write the path out, or give it on the command line, "
            "where the shell expands it."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.partition("/")[0]
        raise UsageError(
            f"{what}: {text!r} begins with {user}, and there is no such user here. Write the path "
            "out."
        ) from error
