"""Text files, and which part of each is held out: characters only, no tokens.

The one invariant: the split is made before any tokenizer sees the text, so that two tokenizers are
scored on the same characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.errors import DataError, UsageError
from kdcache.paths import local_path

TREE = """\
  notes.txt            or  {root}/
                             one.txt
                             two.txt"""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Training and validation text, a string for each file.

    Attributes:
        train: in the order of the files' paths.
        val: the ends of the same files, or other files.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]


def read_texts(
    path: str | Path, *, val_path: str | Path | None = None, held_out: float = 0.1
) -> Texts:
    """Training and validation text.

    Args:
        path: a text file, or a folder: all ``*.txt`` in it, at any depth.
        val_path: the same to validate on; None: a share at the end of each file is held out.
        held_out: that share, between 0 and 1; the cut is moved to the next space or line's end.

    Raises:
        UsageError: there is no such file or folder, or ``held_out`` is no share.
        DataError: a file is not UTF-8, or there is no text.
    """
    if not 0 < held_out < 1:
        raise UsageError(f"held_out is a share between 0 and 1, such as 0.1, not {held_out}.")
    texts = [_read(file) for file in find_texts(path)]
    if val_path is not None:
        train, val = texts, [_read(file) for file in find_texts(val_path)]
    else:
        cuts = [_cut(text, held_out) for text in texts]
        train = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        val = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
    found = Texts(
        train=tuple(text for text in train if text.strip()),
        val=tuple(text for text in val if text.strip()),
    )
    for part, name in ((found.train, "train"), (found.val, "validate")):
        if not part:
            where = val_path if val_path is not None and name == "validate" else path
            raise DataError(f"{where} has no text to {name} on. Add text.")
    return found


def find_texts(path: str | Path) -> list[Path]:
    """The text files that a path names, sorted.

    Raises:
        UsageError: there are none.
    """
    path = local_path(path, "the text")
    if path.is_file():
        return [path]
    expected = f"Expected a text file, or a folder of them:\n{TREE.format(root=path.name or path)}"
    if not path.is_dir():
        raise UsageError(f"the text {path} does not exist. {expected}")
    files = (file for file in path.rglob("*.txt") if file.is_file())
    found = sorted(file for file in files if not file.name.startswith("."))
    if not found:
        raise UsageError(f"{path} has no file that ends in .txt. {expected}")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark that Windows puts in front
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8: byte {error.start:,} is "
            f"0x{error.object[error.start]:02x}. Save it as UTF-8, or convert it: "
            f"iconv -f latin1 -t utf-8 {path} > new.txt"
        ) from error


def _cut(text: str, held_out: float) -> int:
    """Where the held-out end of a text begins: after white space, so that no word is cut."""
    at = round(len(text) * (1 - held_out))
    while 0 < at < len(text) and not text[at - 1].isspace():
        at += 1
    return at
