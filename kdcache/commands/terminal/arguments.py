"""The words after ``kdcache dump-teacher`` and ``kdcache train-student``: files and overrides."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import shlex
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.config import (
    Experiment,
    Raw,
    dropped,
    keys_of,
    merge,
    override,
    parse,
    read_file,
    to_yaml,
)
from kdcache.errors import UsageError
from kdcache.experiment import DumpExperiment, DumpSection, StudentExperiment
from kdcache.paths import local_path

log = logging.getLogger(__name__)

_COMMANDS = {DumpExperiment: "dump-teacher", StudentExperiment: "train-student"}
# Of these sections stage two reads one key.
_READ_BY_STUDENT = {"dump": "fingerprint", "targets": "codec"}
_KEY_WIDTH = 26
_MAX_WIDTH = 100


def experiment_from(
    arguments: Sequence[str], kind: type[Experiment], command: str
) -> Experiment | None:
    """The experiment that files and ``--section.key value`` overrides make.

    Later files and overrides win. A file may hold both stages' sections; an override that this
    stage would not read is refused. None where help or the configuration was printed instead.
    """
    raw: Raw = {}
    print_config = False
    flags = {f"--{key.name}" for key in keys_of(kind) if isinstance(key.default, bool)}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, has_value, value = _full_name(word, kind).partition("=")
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
            value = "true" if name in flags and not _has_value(words) else _value(name, words)
        if name in ("-c", "--config"):
            file = local_path(value, "--config")
            given = read_file(file)
            _refuse_elsewhere(given, file, kind, command)
            raw = _told(raw, merge(raw, given), f"{name} {value}")
        else:
            key = name.removeprefix("--")
            _refuse_unread(override({}, key, value), kind, command)
            raw = _told(raw, override(raw, key, value), f"--{key}")
    experiment = parse(kind, raw)
    if print_config:
        print(to_yaml(experiment), end="")
        return None
    return experiment


def _refuse_elsewhere(given: Raw, file: Path, kind: type, command: str) -> None:
    """Raise UsageError where a file names modules that stand beside it, and it is read elsewhere.

    Only the current folder's modules are imported, and its paths are meant by a file.
    """
    folder = file.resolve().parent
    if folder == Path.cwd():
        return
    own = {item.name for item in dataclasses.fields(kind)}
    for path in _class_paths({name: given[name] for name in own & set(given)}):
        module = path.split(".")[0]
        beside = [one for one in (folder / f"{module}.py", folder / module) if one.exists()]
        if beside and importlib.util.find_spec(module) is None:
            words = shlex.join(["kdcache", command, "-c", file.name])
            raise UsageError(
                f"{file} names {path}, and {beside[0].name} stands beside it. But modules and "
                f"paths are looked for in the current folder, {Path.cwd()}. Run it beside them: "
                f"cd {shlex.quote(str(folder))} && {words}"
            )


def _class_paths(value: Any) -> Iterator[str]:
    """Every class path below a value of an experiment file."""
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str) and path.split(".")[0].isidentifier():
            yield path
        for inner in value.values():
            yield from _class_paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_paths(inner)


def _told(before: Raw, after: Raw, word: str) -> Raw:
    """The sections after a word, having said what it took away: replaced whole may be a slip."""
    gone = dropped(before, after)
    if gone:
        listed = ", ".join(f"{key}: {value!r}" for key, value in gone.items())
        log.info(f"{word} replaces the whole section of the file, which had: {listed}")
    return after


def _refuse_unread(given: Raw, kind: type, command: str) -> None:
    """Raise UsageError for what was given on the command line and would change nothing."""
    for section, value in given.items():
        readers = [
            reader
            for one, reader in _COMMANDS.items()
            if section in {item.name for item in dataclasses.fields(one)}
        ]
        if readers and _COMMANDS[kind] not in readers:
            raise UsageError(
                f"--{section}: kdcache {command} reads nothing of {section!r}; kdcache "
                f"{readers[0]} does. Only a file may hold sections of both."
            )
        read = _READ_BY_STUDENT.get(section) if kind is StudentExperiment else None
        unread = [key for key in value if key != read] if isinstance(value, Mapping) else []
        if read and unread:
            raise UsageError(
                f"--{section}.{unread[0]}: kdcache {command} reads no more of {section!r} than "
                f"{read!r}, the cache says the rest; kdcache dump-teacher reads all of it."
            )


def _full_name(word: str, kind: type) -> str:
    """``--devices 2`` of stage one is short for ``--dump.devices 2``."""
    own = {item.name for item in dataclasses.fields(DumpSection)}
    is_short = kind is DumpExperiment and word.removeprefix("--").partition("=")[0] in own
    return f"--dump.{word.removeprefix('--')}" if is_short and word.startswith("--") else word


def _has_value(words: Sequence[str]) -> bool:
    return bool(words) and not words[0].startswith("-")


def _value(name: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):  # a flag; --key=--value gives such a value
        raise UsageError(f"{name} needs a value.")
    return words.pop(0)


def help_text(kind: type, command: str) -> str:
    """Every key of an experiment, wrapped to the terminal."""
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    intro = (
        "Later files and values win. A value is read as YAML; --student.width 8 is short for "
        "--student.init_args.width 8. --print_config shows the result and stops."
    )
    if kind is DumpExperiment:
        intro += " --devices 2 is short for --dump.devices 2, and so for all of dump."
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
