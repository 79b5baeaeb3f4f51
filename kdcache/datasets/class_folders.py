"""Which images there are, of which class and in which split: names of files only, no pixels.

The one invariant: an image's split depends on its own path below the root and on nothing else, so
that images which are added or removed move no other one between training and validation.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcache.errors import DataError, UsageError
from kdcache.paths import local_path

if TYPE_CHECKING:
    from types import ModuleType

TRAIN = "train"
VALIDATION = ("val", "valid", "validation", "test")
"""Names of folders beside ``train`` whose images are held out, each a split of its own."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}  # and all names that begin with a dot

TREE = """\
  {root}/                          or  {root}/
    train/                               cat/
      cat/  0001.jpg, 0002.jpg, ...        0001.jpg, 0002.jpg, ...
      dog/  0001.jpg, ...                dog/
    val/                                   0001.jpg, ...
      cat/  ...
      dog/  ..."""


@dataclass(frozen=True, kw_only=True)
class FoundImages:
    """The images of a folder.

    Attributes:
        root: that folder.
        class_names: the names of the class folders, sorted: class i is ``class_names[i]``.
        splits: split name -> (path below root, class) of each image, in the order of paths;
            ``train`` first, then the validation splits.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[tuple[str, int], ...]]


def find_images(root: str | Path, *, held_out: float = 0.1) -> FoundImages:
    """The images below a folder, in training and validation splits.

    Where ``root/train`` has class folders, it is the training split, and those of ``root/val``,
    ``valid``, ``validation`` and ``test`` that exist are validation splits of these names. Where
    there is none of them, or the class folders stand in ``root`` itself, a share is held out as
    ``val``: the images whose path has a small hash.

    Args:
        root: the folder.
        held_out: share of the images to hold out, between 0 and 1, where no folder says it.

    Raises:
        UsageError: there is no such folder, no class folder in it, or ``held_out`` is no share.
        DataError: there is one class only, a class without images, a class in a validation folder
            that training does not have, or a file that is no image by its name.
    """
    root = local_path(root, "the image folder")
    if not 0 < held_out < 1:
        raise UsageError(f"held_out is a share between 0 and 1, such as 0.1, not {held_out}.")
    if not root.is_dir():
        is_file = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"the image folder {root} {is_file}. {_expected(root)}")
    is_split = bool(_folders(root / TRAIN)) if (root / TRAIN).is_dir() else False
    top = root / TRAIN if is_split else root
    names = tuple(folder.name for folder in _folders(top))
    if not names:
        raise UsageError(f"{top} has no folder in it, so there are no classes. {_expected(root)}")
    if len(names) == 1:
        raise DataError(
            f"{top} has one class only, {names[0]!r}: there is nothing to tell apart. "
            f"{_expected(root)}"
        )
    images = _images(root, top, names)
    empty = [name for number, name in enumerate(names) if number not in {n for _, n in images}]
    if empty:
        raise DataError(
            f"{top} has class folders without an image: {_listed(empty)}. Add images (by their "
            f"names, {', '.join(SUFFIXES)}), or remove the folders."
        )
    named = [root / name for name in VALIDATION if is_split and (root / name).is_dir()]
    if named:
        splits = {TRAIN: images, **{top.name: _validation(root, top, names) for top in named}}
    else:
        splits = _drawn(images, held_out)
        _check_drawn(splits, names, held_out)
    return FoundImages(root=root, class_names=names, splits=splits)


def image_sizes(found: FoundImages, *, at_most: int = 64) -> list[tuple[int, int]]:
    """(width, height) in pixels of some training images, spread evenly; reads headers only.

    Raises:
        UsageError: Pillow is not installed.
        DataError: a file is no image.
    """
    pillow = import_pillow()
    images = found.splits[TRAIN]
    sizes = []
    for path, _ in images[:: max(1, len(images) // at_most)]:
        try:
            with pillow.open(found.root / path) as image:
                sizes.append(image.size)
        except Exception as error:
            raise unreadable(found.root / path, error) from error
    return sizes


def import_pillow() -> ModuleType:
    """Pillow's ``Image`` module; UsageError with the command that installs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(
            'reading images needs Pillow, which is not installed: pip install "kdcache[images]"'
        ) from error
    return Image


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that Pillow cannot decode."""
    return DataError(
        f"{path} cannot be read as an image: {type(error).__name__}: {error}\nReplace the file or "
        "remove it. Samples are numbered in the order of their paths, so dump again afterwards."
    )


def _expected(root: Path) -> str:
    return f"Expected a folder for each class:\n{TREE.format(root=root.name or root)}"


def _folders(top: Path) -> list[Path]:
    found = (path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=lambda path: path.name)


def _images(root: Path, top: Path, names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """(path below root, class) of the images in a folder of class folders, at any depth."""
    images = []
    for number, name in enumerate(names):
        files = [path for path in (top / name).rglob("*") if path.is_file()]
        for path in files:
            if path.name.startswith(".") or path.name.lower() in _LEFT_BY_SYSTEMS:
                continue
            if path.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{path} is no image by its name. Images end in {', '.join(SUFFIXES)}: move "
                    "other files out of the class folders."
                )
            images.append((path.relative_to(root).as_posix(), number))
    return tuple(sorted(images))


def _validation(root: Path, top: Path, names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """The images of a validation folder; a class may be missing there, but none may be new."""
    own = {folder.name for folder in _folders(top)}
    new = sorted(own - set(names))
    if new:
        raise DataError(
            f"{top} has classes that {root / TRAIN} has not: {_listed(new)}. Training has "
            f"{_listed(names)}. A class has the same name in both."
        )
    images = _images(root, top, names)
    if not images:
        raise DataError(f"{top} has no image in its class folders. Add some, or remove it.")
    return images


def _drawn(
    images: tuple[tuple[str, int], ...], held_out: float
) -> dict[str, tuple[tuple[str, int], ...]]:
    held = {path for path, _ in images if _share(path) < held_out}
    return {
        TRAIN: tuple(image for image in images if image[0] not in held),
        VALIDATION[0]: tuple(image for image in images if image[0] in held),
    }


def _share(path: str) -> float:
    """A number from 0 to 1 that is the same for a path on every machine."""
    # macOS may spell an accented letter as two characters: NFC makes them one again.
    text = unicodedata.normalize("NFC", path).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64


def _check_drawn(
    splits: Mapping[str, tuple[tuple[str, int], ...]], names: tuple[str, ...], held_out: float
) -> None:
    """Raise DataError where so few images are there that a split lacks what it needs."""
    trained = {number for _, number in splits[TRAIN]}
    lacking = [name for number, name in enumerate(names) if number not in trained]
    if lacking:
        raise DataError(
            f"holding out a share of {held_out:g} leaves no training image of {_listed(lacking)}. "
            "Add images, hold out less, or make train/ and val/ folders yourself."
        )
    if not splits[VALIDATION[0]]:
        raise DataError(
            f"holding out a share of {held_out:g} of {len(splits[TRAIN])} images gives none to "
            "validate on. Add images, hold out more, or make train/ and val/ folders yourself."
        )


def _listed(names: Iterable[str], *, at_most: int = 5) -> str:
    quoted = [repr(name) for name in names]
    more = f" and {len(quoted) - at_most} more" if len(quoted) > at_most else ""
    return ", ".join(quoted[:at_most]) + more
