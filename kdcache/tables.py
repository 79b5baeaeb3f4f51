"""Plain text for people: aligned tables, sizes, and whether somebody is looking.

The same text goes to a terminal, a notebook and a file.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNIT_STEP = 1024


def aligned(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows of cells as text: the first column to the left, the others to the right.

    Where the columns do not fit side by side, they follow in blocks, each with the first one.

    Args:
        rows: cells, equally many in each row; the first row is the header.
        width: characters of a line, kept unless two columns alone need more.
    """
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = []
    used = width + 1
    for number, size in enumerate(sizes[1:], start=1):
        if used + 2 + size > width:
            blocks.append([])
            used = sizes[0]
        blocks[-1].append(number)
        used += 2 + size
    texts = []
    for block in blocks:
        lines = [
            row[0].ljust(sizes[0]) + "".join("  " + row[n].rjust(sizes[n]) for n in block)
            for row in rows
        ]
        texts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(texts)


def printable(text: str) -> str:
    """Text with every control character escaped but line ends: names are somebody else's."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )


def size_text(num_bytes: int) -> str:
    """``84,828 bytes (82.8 KiB)``."""
    rounded = f" ({short_size(num_bytes)})" if num_bytes >= _UNIT_STEP else ""
    return f"{num_bytes:,} bytes{rounded}"


def short_size(num_bytes: int) -> str:
    """``82.8 KiB``."""
    value, unit = float(num_bytes), 0
    while value >= _UNIT_STEP and unit < len(_UNITS) - 1:
        value, unit = value / _UNIT_STEP, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}" if unit else f"{num_bytes} B"


def columns_of_terminal() -> int:
    """Characters of a line; 80 where there is no terminal."""
    return shutil.get_terminal_size().columns


def is_watched() -> bool:
    """Whether what is printed is seen by a person: on a terminal, or in a notebook.

    A notebook is told by its kernel's shell, without importing IPython.
    """
    notebook = sys.modules.get("IPython")
    shell = notebook.get_ipython() if notebook is not None else None
    return sys.stdout.isatty() or type(shell).__name__ == "ZMQInteractiveShell"
