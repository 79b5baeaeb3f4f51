"""What a cache holds, as a table for a person."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from kdcache.tables import aligned, short_size, size_text

_DIGEST_LETTERS = 16
_ALL = 1 - 1e-6


def report_text(report: Mapping[str, Any], width: int) -> str:
    """A report of ``Cache.inspect`` for a person: the training split first, one column a split."""
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
    ("size", lambda s: short_size(s["bytes"])),
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
