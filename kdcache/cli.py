"""The ``kdcache`` command: finds the sub-command, and turns errors into one paragraph.

A lazy dispatcher: ``kdcache --help`` imports nothing heavy, each command only what it needs.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kdcache.errors import KdcacheError, UsageError, origin, paragraph, suggest
from kdcache.version import __version__

COMMANDS = {
    "init": ("kdcache.commands.init", "start a project on your own images, text or data"),
    "dump-teacher": ("kdcache.commands.dump_teacher", "run the teacher once, keep its targets"),
    "train-student": ("kdcache.commands.train_student", "train one student from a cache"),
    "import-logprobs": (
        "kdcache.commands.import_logprobs",
        "make a cache of top-k log-probabilities (vLLM)",
    ),
    "inspect": ("kdcache.commands.inspect", "what is in a cache: splits, codec, size, teacher"),
    "merge": ("kdcache.commands.merge", "make one cache of several, keyed by content or a field"),
    "verify": ("kdcache.commands.verify", "read everything and check every checksum"),
    "clean": ("kdcache.commands.clean", "list or remove what interrupted dumps left behind"),
}
_INTERRUPTED = 130


def usage() -> str:
    """The text of ``kdcache --help``."""
    lines = [f"  {name:<15} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kdcache COMMAND [options]",
            "",
            "Knowledge distillation from a teacher cache.",
            "",
            *lines,
            "",
            "kdcache COMMAND --help says more; --debug shows the traceback of an error.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; ``sys.argv`` if None (never changed here, since
            launchers run it again).

    Returns:
        0; 1 for bad data or a bad cache; 2 for a wrong call; 75 when SIGTERM ended a dump that
        the same command goes on with; 130 when interrupted; 143 when SIGTERM ended a training.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    rest = [argument for argument in given if argument != "--debug"]
    try:
        with _log_to_stderr():
            code = _dispatch(rest)
        sys.stdout.flush()  # here, where a reader that has left is no traceback
        return code
    except KdcacheError as error:
        return _report(error, paragraph(error), error.exit_code, debug=debug)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted; what was finished stays", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as error:  # argparse, after it has printed a command's help
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        text = (
            f"{paragraph(error)} (at {origin(error)}). This is not an error that kdcache expects; "
            "--debug shows the traceback."
        )
        return _report(error, text, 1, debug=debug)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"kdcache {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UsageError(f"there is no command {name!r}. {suggest(name, COMMANDS)}")
    # A user's own modules in the current folder can be named by class path.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return int(importlib.import_module(COMMANDS[name][0]).run(rest))


def _report(error: BaseException, text: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print(f"{type(error).__name__}: {text}" if code != 2 else f"kdcache: {text}", file=sys.stderr)
    return code


class _StderrHandler(logging.Handler):
    """Looks up ``sys.stderr`` at every message: whoever calls ``main`` may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        print(self.format(record), file=sys.stderr)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Our own messages, as plain lines on standard error, for as long as the command runs."""
    ours = logging.getLogger("kdcache")
    before = ours.handlers[:], ours.level, ours.propagate
    ours.handlers[:] = [_StderrHandler()]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    finally:
        ours.handlers[:], ours.level, ours.propagate = before
