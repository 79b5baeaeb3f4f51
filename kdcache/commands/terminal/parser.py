"""The parser of the commands that take a cache rather than an experiment file."""

from __future__ import annotations

import argparse
from typing import NoReturn

from kdcache.errors import UsageError


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
