"""Opening a cache: which splits are there, and each as a view. Reads metadata only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.columns import is_name
from kdcache.errors import CacheCorruptedError, CacheMissingError, suggest
from kdcache.paths import local_path
from kdcache.store.format.fields import Fields
from kdcache.store.format.files import read_json
from kdcache.store.format.layout import (
    ATTRIBUTE,
    FORMAT_VERSION,
    GROUP_FILE,
    TABLES_FOLDER,
    view_folder,
)
from kdcache.store.inspection import inspected
from kdcache.store.report import report_text
from kdcache.store.view import View
from kdcache.tables import columns_of_terminal, printable


@dataclass(frozen=True, repr=False)
class Cache:
    """An opened teacher cache: a mapping from split name to its view 0.

    Attributes:
        path: its folder.
    """

    path: Path

    def __repr__(self) -> str:
        """One line: where it is, and how many samples of each split are there."""
        parts = [f"{name}: {self[name].describe()}" for name in self.splits]
        return f"Cache({str(self.path)!r}, {', '.join(parts) or 'empty'})"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that were begun, sorted."""
        try:
            names = [
                folder.name
                for folder in self.path.iterdir()
                if is_name(folder.name)
                and folder.name.casefold() != TABLES_FOLDER
                and (view_folder(self.path, folder.name, 0) / GROUP_FILE).is_file()
            ]
        except OSError as error:
            raise CacheCorruptedError(
                f"{error.filename} cannot be looked at ({error.strerror})."
            ) from error
        return tuple(sorted(names))

    def inspect(self) -> dict[str, Any]:
        """What ``kdcache inspect --json`` prints; see :func:`kdcache.store.inspection.inspected`.

        Raises:
            CacheCorruptedError: its metadata are damaged.
        """
        return inspected(self.path, {name: self[name] for name in self})

    def summary(self, width: int | None = None) -> str:
        """The table that ``kdcache inspect`` prints.

        Args:
            width: characters of a line; the terminal's if None.
        """
        columns = columns_of_terminal() if width is None else width
        return printable(report_text(self.inspect(), columns))

    def __iter__(self) -> Iterator[str]:
        return iter(self.splits)

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def __getitem__(self, split: str) -> View:
        """View 0 of a split; CacheMissingError names the splits that there are."""
        return self.view(split)

    def view(self, split: str, number: int = 0) -> View:
        """One view of a split."""
        if split not in self.splits:
            raise CacheMissingError(
                f"{self.path} has no split {split!r}. {suggest(split, self.splits)} "
                "Dump it with kdcache dump-teacher; other splits stay as they are."
            )
        folder = view_folder(self.path, split, number)
        if not (folder / GROUP_FILE).is_file():
            raise CacheMissingError(f"{self.path} has no view {number} of split {split!r}.")
        return View(cache=self.path, folder=folder)


def open_cache(path: str | Path) -> Cache:
    """Open a teacher cache for reading.

    Args:
        path: its folder, as given to ``dump_teacher``.

    Returns:
        A mapping from split names to views; nothing is decoded yet.

    Raises:
        CacheMissingError: there is no such folder, or it holds no teacher cache.
        CacheCorruptedError: its metadata cannot be what was written.
    """
    folder = local_path(path, "cache")
    marker = folder / GROUP_FILE
    try:
        is_there, is_group = folder.exists(), marker.is_file()
    except OSError as error:
        raise CacheMissingError(f"{marker} cannot be looked at ({error.strerror}).") from error
    if not is_group:
        inside = sorted(path.parent.name for path in folder.glob(f"*.zarr/{GROUP_FILE}"))
        near = f" It holds {', '.join(inside[:3])}; perhaps that is meant." if inside else ""
        raise CacheMissingError(
            f"{folder} {'is no teacher cache' if is_there else 'does not exist'}.{near} Make it "
            "with kdcache dump-teacher -c EXPERIMENT.yaml, or correct the path."
        )
    attributes = read_json(marker).get("attributes")
    if not isinstance(attributes, dict) or ATTRIBUTE not in attributes:
        raise CacheMissingError(f"{folder} is a Zarr group, but no teacher cache.")
    check_format(attributes[ATTRIBUTE], str(marker))
    return Cache(folder)


def check_format(value: object, where: str) -> None:
    """Raise CacheCorruptedError for a cache of a format that this package does not read."""
    version = Fields(value, where).integer("format")
    if version != FORMAT_VERSION:
        raise CacheCorruptedError(
            f"{where} has format version {version}; this kdcache reads {FORMAT_VERSION}. Install "
            "the version that wrote it, or dump again."
        )
