"""``kdcache inspect CACHE [--json]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import NoReturn

from kdcache.errors import UsageError
from kdcache.store.inspection import inspect_cache
from kdcache.store.report import report_text
from kdcache.tables import columns_of_terminal, printable


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
        print(printable(report_text(report, columns_of_terminal())))
    return 0
