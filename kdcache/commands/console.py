"""What the commands print: plain aligned text, the same on a terminal and in a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


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


@contextmanager
def shard_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal; gives what is to be called with (split, done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title)

        def advance(split: str, done: int, total: int) -> None:
            bar.update(task, description=f"{title} {split}", completed=done, total=total)

        yield advance


def quiet_lightning() -> None:
    """Lightning says only what is wrong. It sets its level when imported: call this after that."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def printable(text: str) -> str:
    """Text with every control character escaped but line ends: names are somebody else's."""
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
