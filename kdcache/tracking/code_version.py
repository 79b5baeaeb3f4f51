"""Which code a run was made with, where the current folder is in a git repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

_TIMEOUT_S = 10.0


def code_version(folder: Path) -> dict[str, str | bool]:
    """The commit that is checked out, and whether tracked files differ from it.

    Args:
        folder: any folder of the repository.

    Returns:
        ``git_commit`` and ``git_dirty``; nothing where there is no repository, no commit, no git,
        or git takes longer than 10 s.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str:
    # Without locks: somebody may be committing at the same time.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(
        command, capture_output=True, check=True, timeout=_TIMEOUT_S, encoding="utf-8"
    )
    return done.stdout.strip()
