"""The info file of Knowledge-Distillation-Toolkit: who logs to which project of Comet.

Its first line is a secret: it is in no message, no record and no experiment file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdcache.errors import UsageError

_LINES = ("the API key", "the project", "the workspace")


@dataclass(frozen=True, kw_only=True)
class CometAccount:
    """What the file says; None for what is not known.

    Attributes:
        api_key: secret, and left out where this is printed.
        project: name.
        workspace: name.
    """

    api_key: str | None = field(default=None, repr=False)
    project: str | None = None
    workspace: str | None = None


def read_info(path: Path) -> CometAccount:
    """Read the three lines; ends of lines may be those of Windows, empty lines may follow.

    Raises:
        UsageError: the file cannot be read, or a line is missing or too many.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"tracking.comet.info: {path} cannot be read: {error.strerror}. It has three lines: "
            "API key, project, workspace."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"tracking.comet.info: {path} is no text in UTF-8.") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    for number, what in enumerate(_LINES):
        if number >= len(lines) or not lines[number]:
            raise UsageError(
                f"tracking.comet.info: line {number + 1} of {path} should be {what}, and is "
                "missing. The file has three lines: API key, project, workspace."
            )
    if len(lines) > len(_LINES):
        raise UsageError(
            f"tracking.comet.info: {path} has {len(lines)} lines, and should have three: API key, "
            "project, workspace."
        )
    return CometAccount(api_key=lines[0], project=lines[1], workspace=lines[2])
