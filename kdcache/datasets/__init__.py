"""Data that needs no code of the user's: class folders of images, and plain text files.

``image_folder`` and ``text_files`` have the objects ``ImageFolder`` and ``TextFiles`` for the
``data:`` section of an experiment. ``class_folders`` and ``plain_text`` find and read files without
torch, so that ``kdcache init`` is quick; ``preprocessing`` asks a published model how its images
are normalised. The one invariant: a sample is the same bits each time it is read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdcache.datasets.class_folders import find_images
from kdcache.datasets.plain_text import read_texts

if TYPE_CHECKING:
    from kdcache.datasets.image_folder import ImageFolder as ImageFolder
    from kdcache.datasets.text_files import TextFiles as TextFiles

_WITH_TORCH = {
    "ImageFolder": "kdcache.datasets.image_folder",
    "TextFiles": "kdcache.datasets.text_files",
}

__all__ = ["ImageFolder", "TextFiles", "find_images", "read_texts"]


def __getattr__(name: str) -> Any:
    """Import torch when a class that needs it is first used."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'kdcache.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
