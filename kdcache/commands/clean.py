"""``kdcache clean CACHE [--older-than HOURS] [--yes] [--json]``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from kdcache.commands.terminal.parser import cache_parser
from kdcache.errors import UsageError
from kdcache.store import default_folder, open_cache
from kdcache.store.care.leftovers import Leftover, Leftovers, find_leftovers, remove_leftover
from kdcache.tables import printable, size_text

_HOUR_S = 3600.0
_ABOUT = (
    "List what interrupted dumps, lost races and repairs left behind in a cache: attempts that no "
    "commit names, temporary files, what a repair put aside, tables that no split names, and local "
    "copies on this machine that were never finished."
)


def run(arguments: Sequence[str]) -> int:
    """List leftovers, or remove them with ``--yes``."""
    parser = cache_parser("clean", _ABOUT)
    parser.add_argument(
        "--older-than",
        type=float,
        default=1.0,
        metavar="HOURS",
        help="only what was not changed for so long; a running job's shard is younger (default 1)",
    )
    parser.add_argument("--yes", action="store_true", help="remove them, instead of listing")
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.older_than) and options.older_than >= 0):
        raise UsageError(f"--older-than is a number of hours, 0 or more, not {options.older_than}.")
    cache = open_cache(options.cache)
    found = find_leftovers(
        cache,
        older_than_s=options.older_than * _HOUR_S,
        local_copies=default_folder(),
    )
    removed = [one for one in found.old if options.yes and remove_leftover(cache, one)]
    if options.json:
        print(json.dumps(_report(options.cache, found, removed), indent=2, sort_keys=True))
    else:
        print(printable(clean_text(options.cache, found, removed, is_removing=options.yes)))
    return 0


def _report(cache: str, found: Leftovers, removed: Sequence[Leftover]) -> dict[str, object]:
    def listed(leftovers: Sequence[Leftover]) -> list[dict[str, object]]:
        return [
            {
                "path": str(one.path),
                "kind": one.kind,
                "bytes": one.num_bytes,
                "newest": one.newest_s,
            }
            for one in leftovers
        ]

    return {
        "path": cache,
        "old": listed(found.old),
        "recent": listed(found.recent),
        "removed": listed(removed),
        "bytes": sum(leftover.num_bytes for leftover in found.old),
        "foreign": [str(path) for path in found.foreign],
        "unclear": list(found.unclear),
    }


def clean_text(
    cache: str | Path, found: Leftovers, removed: Sequence[Leftover], *, is_removing: bool
) -> str:
    """What was found, one line each; then what was done."""
    now_s = time.time()
    lines = [_line(leftover, now_s) for leftover in (removed if is_removing else found.old)]
    kept = [leftover for leftover in found.old if is_removing and leftover not in removed]
    lines += [f"kept, a commit names it now: {leftover.path}" for leftover in kept]
    lines += [f"kept, recent: {_line(leftover, now_s)}" for leftover in found.recent]
    lines += [f"kept, not ours: {path}" for path in found.foreign]
    lines += [f"cannot be judged before kdcache verify --repair: {line}" for line in found.unclear]
    return "\n".join([*lines, f"{cache}: {_summary(found, removed, is_removing=is_removing)}"])


def _line(leftover: Leftover, now_s: float) -> str:
    hours = max(0.0, now_s - leftover.newest_s) / _HOUR_S
    return f"{leftover.kind}, {size_text(leftover.num_bytes)}, {hours:,.1f} h old: {leftover.path}"


def _summary(found: Leftovers, removed: Sequence[Leftover], *, is_removing: bool) -> str:
    counted = removed if is_removing else found.old
    if not counted:
        return "nothing to remove."
    number = f"{len(counted)} {'leftover' if len(counted) == 1 else 'leftovers'}"
    size = size_text(sum(leftover.num_bytes for leftover in counted))
    if is_removing:
        return f"{number} removed, {size}."
    return f"{number}, {size}. Nothing was removed; with --yes they are."
