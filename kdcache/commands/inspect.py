"""``kdcache inspect CACHE [--json]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kdcache.errors import UsageError
from kdcache.tools.inspect import inspect_cache


class Parser(argparse.ArgumentParser):
    """argparse, with our one kind of usage error."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a page and exiting."""
        raise UsageError(f"{message}. {self.format_usage().strip()}")


def cache_parser(command: str, about: str) -> Parser:
    """The parser of a command that takes a cache and perhaps ``--json``."""
    parser = Parser(prog=f"kdcache {command}", description=about, allow_abbrev=False)
    parser.add_argument("cache", help="folder of the teacher cache")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print what a cache holds."""
    about = "What is in a cache: splits, codec, size, teacher."
    options = cache_parser("inspect", about).parse_args(arguments)
    report = inspect_cache(options.cache)
    if options.json:
        print(json.dumps(report, indent=2, sort_keys=True))
    else:
        print_report(report)
    return 0


def print_report(report: Mapping[str, Any]) -> None:
    """The report as a table a person can read."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(report["path"]), title_justify="left")
    table.add_column("split")
    for split in report["splits"]:
        table.add_column(split, justify="right", overflow="fold")
    for label, cell in _ROWS:
        table.add_row(label, *(cell(values) for values in report["splits"].values()))
    Console(soft_wrap=True).print(table)


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _codec(split: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in split["codec"].items() if k != "name")
    return f"{split['codec'].get('name')} ({settings})"


def _shards(split: Mapping[str, Any]) -> str:
    done = split["shards"] - split["shards_pending"]
    return f"{done:,} of {split['shards']:,}" + ("" if split["complete"] else " (incomplete)")


_ROWS = (
    ("samples", lambda s: f"{s['samples_dumped']:,} of {s['samples']:,}"),
    ("positions", lambda s: f"{s['positions']:,}"),
    ("classes", lambda s: f"{s['classes']:,}"),
    ("codec", _codec),
    ("shards", _shards),
    ("bytes", lambda s: f"{s['bytes']:,}"),
    ("bytes per sample", lambda s: _number(s["bytes_per_sample"], "{:.1f}")),
    ("bytes per position", lambda s: _number(s["bytes_per_position"], "{:.1f}")),
    ("teacher accuracy", lambda s: _number(s["teacher"].get("accuracy"), "{:.2%}")),
    ("teacher cross-entropy", lambda s: _number(s["teacher"].get("cross_entropy"), "{:.4f} nats")),
    ("teacher entropy", lambda s: _number(s["teacher"].get("entropy"), "{:.4f} nats")),
    ("digest", lambda s: s["digest"] or "-"),
)
