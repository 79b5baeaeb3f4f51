"""``kdcache inspect CACHE [--json]``."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kdcache.commands.console import aligned, printable
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
        print(printable(report_text(report, shutil.get_terminal_size().columns)))
    return 0


def report_text(report: Mapping[str, Any], width: int) -> str:
    """A report of ``inspect_cache`` for a person: the training split first, one column a split."""
    splits = sorted(report["splits"], key=lambda name: (name != "train", name))
    title = f"{report['path']}  {size_text(report['bytes'])}"
    if not splits:
        return f"{title}\nno split was begun"
    rows = [["", *splits]]
    above = []
    for label, cell in _ROWS:
        cells = [cell(report["splits"][name]) for name in splits]
        if label in _SHARED and len(set(cells)) == 1:
            above.append(f"{label} {cells[0]}")
        elif any(cells):
            rows.append([label, *(text or "-" for text in cells)])
    title = "\n".join([title, textwrap.fill(", ".join(above), max(20, width))])
    remarks = [textwrap.fill(f"Remark: {line}", max(20, width)) for line in report["remarks"]]
    return "\n\n".join([title, aligned(rows, width), *remarks])


def size_text(num_bytes: int) -> str:
    """``84,828 bytes (82.8 KiB)``."""
    rounded = f" ({_short_size(num_bytes)})" if num_bytes >= _UNIT_STEP else ""
    return f"{num_bytes:,} bytes{rounded}"


def _short_size(num_bytes: int) -> str:
    """``82.8 KiB``."""
    value, unit = float(num_bytes), 0
    while value >= _UNIT_STEP and unit < len(_UNITS) - 1:
        value, unit = value / _UNIT_STEP, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}" if unit else f"{num_bytes} B"


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


def _position_bytes(split: Mapping[str, Any]) -> str:
    """Empty where a sample is one position, and bytes per sample say it."""
    is_same = split["positions"] == split["samples_dumped"]
    return "" if is_same else _number(split["bytes_per_position"], "{:,.1f}")


def _accuracy(split: Mapping[str, Any]) -> str:
    text = _number(split["teacher"].get("accuracy"), "{:.2%}")
    is_part = text and split["labelled"] < split["positions"]
    return f"{text} of {split['labelled']:,}" if is_part else text


def _kept(split: Mapping[str, Any]) -> str:
    """Where not all classes are kept one by one, how much those have that are."""
    kept = split["fidelity"].get("kept_mass")
    return "" if kept is None or kept > _ALL else f"{kept:.3%}"


_SHARED = frozenset({"codec", "classes", "key"})
_ROWS = (
    ("codec", _codec),
    ("classes", lambda s: f"{s['classes']:,}"),
    ("key", lambda s: s["key"]),
    ("samples", lambda s: _done(s["samples_dumped"], s["samples"])),
    ("positions", lambda s: f"{s['positions']:,}"),
    ("shards", lambda s: _done(s["shards_there"], s["shards"])),
    ("size", lambda s: _short_size(s["bytes"])),
    ("bytes per sample", lambda s: _number(s["bytes_per_sample"], "{:,.1f}")),
    ("bytes per position", _position_bytes),
    ("teacher accuracy", _accuracy),
    ("teacher cross-entropy", lambda s: _number(s["teacher"].get("cross_entropy"), "{:.4f} nats")),
    ("teacher entropy", lambda s: _number(s["teacher"].get("entropy"), "{:.4f} nats")),
    ("KL(teacher || stored)", lambda s: _number(s["fidelity"].get("divergence"), "{:.2g} nats")),
    ("probability kept", _kept),
    ("batch dependence", lambda s: _number(s["pilot"].get("drift_mean_kl"), "{:.2g} nats")),
    ("digest", lambda s: (s["digest"] or "incomplete")[:_DIGEST_LETTERS]),
)
