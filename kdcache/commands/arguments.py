"""The words after ``kdcache dump-teacher`` and ``kdcache train-student``: files and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from kdcache.config import Raw, merge, override, parse, parser_of, read_file, to_yaml
from kdcache.errors import UsageError
from kdcache.experiment import DumpExperiment, StudentExperiment

Experiment = TypeVar("Experiment", DumpExperiment, StudentExperiment)


def experiment_from(
    arguments: Sequence[str], kind: type[Experiment], command: str
) -> Experiment | None:
    """The experiment that files and ``--section.key value`` overrides make.

    Later files and overrides win. None where help or the configuration was printed instead.
    """
    raw: Raw = {}
    print_config = False
    words = iter(arguments)
    for word in words:
        name, has_value, value = word.partition("=")
        if name in ("-h", "--help"):
            _print_help(kind, command)
            return None
        if name == "--print_config":
            print_config = True
            continue
        if name not in ("-c", "--config") and not (name.startswith("--") and len(name) > 2):
            raise UsageError(
                f"{word!r} is not understood: give -c EXPERIMENT.yaml and --section.key value."
            )
        if not has_value:
            following = next(words, None)
            if following is None:
                raise UsageError(f"{name} needs a value.")
            value = following
        if name in ("-c", "--config"):
            raw = merge(raw, read_file(Path(value)))
        else:
            raw = override(raw, name.removeprefix("--"), value)
    experiment = parse(kind, raw)
    if print_config:
        print(to_yaml(experiment), end="")
        return None
    return experiment


def _print_help(kind: type[Experiment], command: str) -> None:
    print(f"usage: kdcache {command} -c EXPERIMENT.yaml [--section.key value ...]\n")
    print("Later files and values win; --print_config shows the result. Sections:\n")
    for action in parser_of(kind)._actions:
        about = (action.help or "").split(" (")[0]
        default = "" if action.default is None else f" (default {action.default})"
        print(f"  --{action.dest:<24} {about}{default}")
