"""Which files say what a run did: the experiment file, and the user's modules that it names.

A library's modules are told by the list of installed packages, kdcache's by its version.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from kdcache.paths import PACKAGE

EXPERIMENT_FILE = "experiment.yaml"
"""In a run's folder: the text of what the command line was given."""

_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


def source_files(texts: Iterable[str]) -> dict[str, Path]:
    """Files of modules that class paths name, and of the script that runs.

    Args:
        texts: that hold class paths, among anything else.

    Returns:
        Such as ``my_package/models.py`` -> the file; only modules that are imported, and no
        library's.
    """
    names = {name for text in texts for name in _DOTTED.findall(text)}
    modules = {module for name in names if (module := _module_of(name)) is not None}
    found: dict[str, Path] = {}
    for module in sorted(modules | {"__main__"}):
        file = getattr(sys.modules.get(module), "__file__", None)
        path = None if file is None else Path(file).resolve()
        if path is None or not _is_the_users(path):
            continue
        name = path.name if module == "__main__" else f"{module.replace('.', '/')}.py"
        if path not in found.values():
            found[name] = path
    return found


def _module_of(name: str) -> str | None:
    """``a.b`` of ``a.b.C``, where it is imported."""
    parts = name.split(".")
    modules = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((module for module in modules if module in sys.modules), None)


def _is_the_users(path: Path) -> bool:
    libraries = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")}
    libraries |= {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    is_library = any(path.is_relative_to(Path(folder).resolve()) for folder in libraries)
    is_installed = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    is_ours = path.is_relative_to(PACKAGE)
    return path.suffix == ".py" and path.is_file() and not (is_library or is_installed or is_ours)
