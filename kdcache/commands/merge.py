"""``kdcache merge SOURCE SOURCE ... --into CACHE``."""

from __future__ import annotations

from collections.abc import Sequence

from kdcache.commands.terminal.console import shard_bar
from kdcache.commands.terminal.parser import Parser
from kdcache.tools.merge import merge_caches


def run(arguments: Sequence[str]) -> int:
    """Merge caches and print what the new one holds."""
    parser = Parser(
        prog="kdcache merge",
        description="One cache of several that one teacher made, keyed by content or a field.",
        allow_abbrev=False,
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folder of a complete cache")
    parser.add_argument("--into", required=True, metavar="CACHE", help="folder of the new cache")
    options = parser.parse_args(arguments)
    with shard_bar("merging") as progress:
        cache = merge_caches(options.sources, options.into, progress=progress)
    print(cache.summary())
    return 0
