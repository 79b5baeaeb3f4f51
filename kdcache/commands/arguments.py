"""The words after ``kdcache dump-teacher`` and ``kdcache train-student``: files and overrides."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdcache.config import Experiment, Raw, keys_of, merge, override, parse, read_file, to_yaml
from kdcache.errors import UsageError

_KEY_WIDTH = 26
_MAX_WIDTH = 100


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
            print(help_text(kind, command))
            return None
        if word == "--print_config":
            print_config = True
            continue
        if name not in ("-c", "--config") and not (name.startswith("--") and len(name) > 2):
            raise UsageError(
                f"{word!r} is not understood: give -c EXPERIMENT.yaml and --section.key value."
            )
        if not has_value:
            value = _following(name, words)
        if name in ("-c", "--config"):
            raw = merge(raw, read_file(Path(value)))
        else:
            raw = override(raw, name.removeprefix("--"), value)
    experiment = parse(kind, raw)
    if print_config:
        print(to_yaml(experiment), end="")
        return None
    return experiment


def _following(name: str, words: Iterator[str]) -> str:
    value = next(words, "--")
    if value.startswith("--"):  # a flag; --key=--value gives such a value
        raise UsageError(f"{name} needs a value.")
    return value


def help_text(kind: type, command: str) -> str:
    """Every key of an experiment, wrapped to the terminal."""
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    intro = (
        "Later files and values win. A value is read as YAML; --student.width 8 is short for "
        "--student.init_args.width 8. --print_config shows the result and stops."
    )
    lines = [
        f"usage: kdcache {command} -c EXPERIMENT.yaml [--section.key value ...]",
        "",
        *textwrap.wrap(intro, width),
        "",
    ]
    indent = " " * (2 + _KEY_WIDTH + 1)
    for key in keys_of(kind):
        notes = " (required)" if key.is_required else ""
        notes += "" if key.default is None else f" (default {_shown(key.default)})"
        wrapped = textwrap.wrap(key.about.rstrip(".") + notes, max(20, width - len(indent)))
        first, *others = wrapped
        lines.append(f"  {'--' + key.name:<{_KEY_WIDTH}} {first}")
        lines += [indent + line for line in others]
    return "\n".join(lines)


def _shown(default: object) -> str:
    """A default as one would write it in YAML."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, dict):
        return "{" + ", ".join(f"{k}: {v}" for k, v in default.items()) + "}"
    return str(default)
