"""``kdcache verify CACHE [--local-copy] [--repair] [--recompute N -c FILE] [--json]``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import fields
from shutil import get_terminal_size

from kdcache.commands.terminal.console import shard_bar
from kdcache.commands.terminal.parser import cache_parser
from kdcache.errors import UsageError
from kdcache.experiment import DumpExperiment, DumpSection
from kdcache.tables import printable
from kdcache.tools.verify import Verification, verify_cache

_NAMED_SHARDS = 20


def run(arguments: Sequence[str]) -> int:
    """Verify a cache; 0 where it is whole, 1 where it was not, repaired or not."""
    parser = cache_parser("verify", "Read everything in a cache and check every checksum.")
    parser.add_argument(
        "--local-copy",
        action="store_true",
        help="check this machine's local copies of the cache, too",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="mark damaged shards as pending, so that the same dump-teacher command redoes them",
    )
    parser.add_argument(
        "--recompute",
        type=int,
        metavar="N",
        help="run the teacher of -c EXPERIMENT.yaml (and overrides) again on N samples a split",
    )
    parser.add_argument("--seed", type=int, default=0, help="which samples --recompute draws")
    own, experiment = split_words(arguments)
    options = parser.parse_args(own)
    if experiment and options.recompute is None:
        raise UsageError(f"{experiment[0]} is for --recompute N.")
    with shard_bar("verifying") as progress:
        found = verify_cache(
            options.cache,
            progress=progress,
            local_copies=options.local_copy,
            repair=options.repair,
        )
    report = {**dataclasses.asdict(found), "sound": found.is_sound}
    lines = [printable(verification_text(found))]
    code = 0 if found.is_sound else 1
    if options.recompute is not None and found.is_sound:
        from kdcache.commands import recompute

        again = recompute.run_again(options.cache, experiment, options.recompute, options.seed)
        report["recomputed"] = recompute.recomputed_json(again)
        lines += ["", printable(recompute.recomputed_text(again, get_terminal_size().columns))]
        code = int(any(one.differs for one in again))
    elif options.recompute is not None:
        lines.append("--recompute waits until the cache is sound: no teacher was run.")
    print(json.dumps(report, indent=2, sort_keys=True) if options.json else "\n".join(lines))
    return code


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of ``verify`` itself, and those that make an experiment of stage one.

    The latter are ``-c`` and ``--config``, dotted keys, sections, and keys of ``dump``, each with
    its value.
    """
    names = {item.name for kind in (DumpExperiment, DumpSection) for item in fields(kind)}
    own: list[str] = []
    experiment: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, has_value, _ = word.partition("=")
        key = name.removeprefix("--") if name.startswith("--") else ""
        if name not in ("-c", "--config") and "." not in key and key not in names:
            own.append(word)
            continue
        experiment.append(word)
        if not has_value and words and not words[0].startswith("--"):
            experiment.append(words.pop(0))
    return own, experiment


def verification_text(found: Verification) -> str:
    """One line when all is well; otherwise one for each problem, and what can be done."""
    lines = [f"- {problem}" for problem in found.problems]
    lines += [f"- local copy, {problem}" for problem in found.local_problems]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"repaired: {repair}" for repair in found.repairs]
    for split, pending in found.pending.items():
        lines.append(_pending_text(split, pending))
    return "\n".join([*lines, f"{found.path}: {_summary(found)}"])


def _summary(found: Verification) -> str:
    copies = len(found.local_copies)
    checked = f" {_counted(copies, 'local copy', 'local copies')} checked." if copies else ""
    samples = f"{found.samples:,} samples"
    if found.is_sound:
        shards = _counted(found.shards, "shard", "shards")
        return f"sound. {samples} in {shards}, every checksum right.{checked}"
    number = _counted(len(found.problems) + len(found.local_problems), "problem", "problems")
    text = f"{number}; {samples} sound.{checked}"
    if found.damaged and not (found.repairs or found.pending):
        text += " --repair marks damaged shards as pending, for dump-teacher to redo."
    return text


def _pending_text(split: str, pending: Sequence[int]) -> str:
    if not pending:
        return f"{split}: complete again; no shard has to be dumped."
    named = ", ".join(map(str, pending[:_NAMED_SHARDS]))
    more = f" and {len(pending) - _NAMED_SHARDS:,} more" if len(pending) > _NAMED_SHARDS else ""
    return (
        f"{split}: {'shard' if len(pending) == 1 else 'shards'} {named}{more} pending. Run the "
        "same kdcache dump-teacher command again; it redoes those and no other."
    )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
