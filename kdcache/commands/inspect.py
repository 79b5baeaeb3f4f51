"""``kdcache inspect CACHE [--json]``."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kdcache.commands.console import aligned
from kdcache.errors import UsageError
from kdcache.tools.inspect import inspect_cache

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_UNIT_STEP = 1024
_DIGEST_LETTERS = 16
_ALL = 1 - 1e-6


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
        print(report_text(report, shutil.get_terminal_size().columns))
    return 0


def report_text(report: Mapping[str, Any], width: int) -> str:
    """A report of ``inspect_cache`` for a person: the training split first, one column a split."""
    splits = sorted(report["splits"], key=lambda name: (name != "train", name))
    title = f"{report['path']}  {size_text(report['bytes'])}"
    if not splits:
        return f"{title}\nno split was begun"
    rows = [["", *splits]]
    for label, cell in _ROWS:
        cells = [cell(report["splits"][name]) for name in splits]
        if any(cells):
            rows.append([label, *(text or "-" for text in cells)])
    remarks = [textwrap.fill(f"Remark: {line}", max(20, width)) for line in report["remarks"]]
    return "\n\n".join([title, aligned(rows, width), *remarks])


def size_text(num_bytes: float) -> str:
    """``84,828 bytes (82.8 KiB)``."""
    value, unit = float(num_bytes), 0
    while value >= _UNIT_STEP and unit < len(_UNITS) - 1:
        value, unit = value / _UNIT_STEP, unit + 1
    rounded = f" ({value:.1f} {_UNITS[unit]})" if unit else ""
    return f"{num_bytes:,} bytes{rounded}"


def _number(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)


def _done(done: int, total: int | None) -> str:
    if total is None:
        return f"{done:,} of a stream"
    return f"{total:,}" if done == total else f"{done:,} of {total:,}"


def _codec(split: Mapping[str, Any]) -> str:
    name = str(split["codec"].get("name"))
    settings = ", ".join(f"{k}={v}" for k, v in split["codec"].items() if k != "name")
    return f"{name} ({settings})" if settings else name


def _kept(split: Mapping[str, Any]) -> str:
    """Where not all classes are kept one by one, how much those have that are."""
    kept = split["fidelity"].get("kept_mass")
    return "" if kept is None or kept > _ALL else f"{kept:.3%}"


_ROWS = (
    ("samples", lambda s: _done(s["samples_dumped"], s["samples"])),
    ("positions", lambda s: f"{s['positions']:,}"),
    ("classes", lambda s: f"{s['classes']:,}"),
    ("codec", _codec),
    ("shards", lambda s: _done(s["shards_there"], s["shards"])),
    ("size", lambda s: size_text(s["bytes"])),
    ("bytes per sample", lambda s: _number(s["bytes_per_sample"], "{:,.1f}")),
    ("bytes per position", lambda s: _number(s["bytes_per_position"], "{:,.1f}")),
    ("teacher accuracy", lambda s: _number(s["teacher"].get("accuracy"), "{:.2%}")),
    ("teacher cross-entropy", lambda s: _number(s["teacher"].get("cross_entropy"), "{:.4f} nats")),
    ("teacher entropy", lambda s: _number(s["teacher"].get("entropy"), "{:.4f} nats")),
    ("KL(teacher || stored)", lambda s: _number(s["fidelity"].get("divergence"), "{:.2g} nats")),
    ("probability kept", _kept),
    ("digest", lambda s: (s["digest"] or "incomplete")[:_DIGEST_LETTERS]),
)
