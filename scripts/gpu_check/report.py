"""What is kept of a run: one JSON file with all of it, and one table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.gpu_check.section import Result

JSON_FILE, TABLE_FILE = "gpu_check.json", "gpu_check.md"
_HEAD = ("| section | what | median (quartiles) | unit | turns |", "|---|---|---|---|---|")


def write(folder: Path, run: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Write both files, and return the table.

    Args:
        folder: that they go into.
        run: date, device, versions, seconds.
        results: of the sections that have ended, or were not run.
    """
    content = {**run, "sections": [result.to_json() for result in results]}
    text = json.dumps(content, indent=1, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    table = to_table(run, results)
    (folder / TABLE_FILE).write_text(table, encoding="utf-8")
    return table


def to_table(run: Mapping[str, Any], results: Sequence[Result]) -> str:
    """Markdown: a line of what the machine was, and a row for each section and figure."""
    card = run["card"]
    machine = [str(card[name]) for name in ("name",) if name in card]
    machine += [f"driver {card['driver']}"] if card.get("driver") else []
    machine += [f"torch {card.get('torch', 'unknown')}", f"{card.get('cpus', '?')} CPU cores"]
    kind = "tiny sizes, only to see that it runs" if run["is_tiny"] else "full sizes"
    lines = [f"{run['date']}: {', '.join(machine)}; {kind}", "", *_HEAD]
    for result in results:
        lines += _rows(result)
    return "\n".join(lines) + "\n"


def _rows(result: Result) -> list[str]:
    took = f"{result.seconds:.0f} s of {result.budget_s:.0f} s"
    status = f"**{result.status}**" + (f": {result.error}" if result.error else "")
    rows = [(result.section, status, "" if result.status == "not run" else took, "", "")]
    for figure in result.figures:
        what = f"{figure.what} ({figure.remark})" if figure.remark else figure.what
        rows.append(("", what, str(figure), figure.unit, str(figure.turns)))
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
