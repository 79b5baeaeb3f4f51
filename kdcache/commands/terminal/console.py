"""What the commands share on a terminal: progress bars, and a quiet Lightning."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
