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
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("verifying")

        def advance(split: str, done: int, total: int) -> None:
            bar.update(task, description=f"verifying {split}", completed=done, total=total)

        found = verify_cache(options.cache, progress=advance)
    if options.json:
        report = {**dataclasses.asdict(found), "sound": found.is_sound}
        print(json.dumps(report, indent=2, sort_keys=True))
    else:
        print(verification_text(found))
    return 0 if found.is_sound else 1


def verification_text(found: Verification) -> str:
    """One line when all is well; otherwise one for each problem, and how much is sound."""
    if found.is_sound:
        return (
            f"{found.path}: sound. {found.samples:,} samples in {found.shards:,} "
            f"{'shard' if found.shards == 1 else 'shards'}, every checksum right."
        )
    number = len(found.problems)
    last = f"{number} {'problem' if number == 1 else 'problems'}; {found.samples:,} samples sound."
    lines = [f"- {problem}" for problem in found.problems]
    return "\n".join([*lines, f"{found.path}: {last}"])
