"""``kdcache inspect CACHE [--json]``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kdcache.commands.terminal.parser import cache_parser
from kdcache.store import open_cache
from kdcache.store.report import report_text
from kdcache.tables import columns_of_terminal, printable


def run(arguments: Sequence[str]) -> int:
    """Print what a cache holds."""
    about = "What is in a cache: splits, codec, size, teacher."
    options = cache_parser("inspect", about).parse_args(arguments)
    report = open_cache(options.cache).inspect()
    if options.json:
        print(json.dumps(report, indent=2, sort_keys=True))
    else:
        print(printable(report_text(report, columns_of_terminal())))
    return 0
