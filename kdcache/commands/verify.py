"""``kdcache verify CACHE [--json]``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from kdcache.commands.inspect import cache_parser
from kdcache.tools.verify import Verification, verify_cache


def run(arguments: Sequence[str]) -> int:
    """Verify a cache; 0 where it is whole, 1 where it is not."""
    parser = cache_parser("verify", "Read everything in a cache and check every checksum.")
    options = parser.parse_args(arguments)
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("verifying")

        def advance(split: str, done: int, total: int) -> None:
            bar.update(task, description=f"verifying {split}", completed=done, total=total)

        found = verify_cache(options.cache, progress=advance)
    if options.json:
        report = {**dataclasses.asdict(found), "sound": found.is_sound}
        print(json.dumps(report, indent=2, sort_keys=True))
    else:
        print_verification(found)
    return 0 if found.is_sound else 1


def print_verification(found: Verification) -> None:
    """One line when all is well, one a problem otherwise."""
    for problem in found.problems:
        print(problem)
    if found.is_sound:
        print(
            f"{found.path}: sound. {found.shards:,} shards, {found.samples:,} samples, every "
            "checksum right."
        )
    else:
        print(f"{found.path}: {len(found.problems)} problems; {found.samples:,} samples are sound.")
