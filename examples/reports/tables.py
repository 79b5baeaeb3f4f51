"""The table of students on the terminal, and the lines below it."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

NO_DEVIATION = " " * len(" ± 0.0")  # keeps a lone number where the others' means stand


def students_table(
    *, title: str, caption: str, names: Iterable[str], numbers: Iterable[str]
) -> Table:
    """An empty table.

    Args:
        title: above it.
        caption: below it; says what the numbers are.
        names: headings of the first columns, aligned to the left.
        numbers: headings of the other columns, aligned to the right.
    """
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def mean_and_deviation(mean: float, deviation: float | None, *, digits: int) -> str:
    """``mean ± deviation``; the mean alone where there is no deviation."""
    words = f"{mean:.{digits}f}"
    return words if deviation is None else f"{words} ± {deviation:.{digits}f}"


def print_remarks(console: Console, remarks: Iterable[str]) -> None:
    """What a cache says of itself beside its numbers."""
    for remark in remarks:
        console.print(f"remark: {remark}", soft_wrap=True)
