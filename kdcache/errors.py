"""Every error that kdcache raises on purpose, and nothing else.

Each message names the subject, both sides, what did (not) happen, and the way out; the class
says only which exit code the command line ends with and what a caller may want to catch.
"""

from __future__ import annotations

import difflib
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

_WORKER_FRAME = re.compile(r'File "(.+)", line (\d+)')


class KdcacheError(Exception):
    """Base of all errors raised on purpose. Takes one string, so that it survives a worker.

    PyTorch raises a worker's error again with the worker's traceback in front of its text: here
    the text stays what it was, and the traceback is a note below it.
    """

    exit_code = 1

    def __init__(self, text: str = "") -> None:
        own = _without_traceback(text, type(self))
        super().__init__(own)
        if own != text:
            self.add_note(text)


class UsageError(KdcacheError):
    """The call itself is wrong: an unknown key, loss, codec or class path, a bad value."""

    exit_code = 2


class CacheError(KdcacheError):
    """Something about a cache on disk; the kinds below say what."""


class CacheMissingError(CacheError):
    """There is no cache, split or view at the path."""


class CacheIncompleteError(CacheError):
    """Shards without a commit: the dump has not finished."""


class CacheCorruptedError(CacheError):
    """Bytes, metadata or checksums that cannot be what was written."""


class MismatchError(KdcacheError):
    """A cache and this run disagree, field by field; nothing was written."""


class FingerprintMismatchError(MismatchError):
    """A sample is not the one that the teacher saw."""


class AlignmentError(KdcacheError):
    """Samples and targets cannot be paired: a random dataset, a collate that reorders or drops."""


class DataError(KdcacheError):
    """A value in the data or in a model's output that no training should use."""


class SampleError(DataError):
    """A sample that the user's dataset, or collate function, does not give; names it."""


class EndedTraining:
    """What an exception that ended a training says besides: what there is to go on with.

    Attributes:
        story: the message without the way to go on.
        resume: the run's folder, or a checkpoint; None where the same call begins anew.
    """

    story: str = ""
    resume: Path | None = None


class WorkerLostError(EndedTraining, KdcacheError):
    """A DataLoader's worker process ended before its work: for want of memory, most often."""


class PreemptedError(KdcacheError):
    """SIGTERM ended a dump before its end; what was finished is committed. Try again.

    The exit code is EX_TEMPFAIL of ``sysexits.h``: a job script can tell it from a failure and
    submit the same command again.
    """

    exit_code = 75


class TerminatedError(EndedTraining, PreemptedError):
    """SIGTERM ended a training: checkpoints stay, but the same command would begin anew.

    So not 75, which promises that it goes on, but what a shell says of a process that SIGTERM
    ended: so ``train-student`` ends with one code whenever the signal comes, before training too.
    """

    exit_code = 143


class ProcessLostError(EndedTraining, KdcacheError):
    """Another process of the same training ended, and this one would wait for it for ever."""


class TrainingInterrupt(EndedTraining, KeyboardInterrupt):
    """Ctrl-C ended a training. No KdcacheError: like any KeyboardInterrupt it is no failure."""

    exit_code = 130


class UnsupportedTargetsError(UsageError):
    """A loss or temperature that these targets cannot serve."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'? `` for an unknown name, or nothing where none is near."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'x'? Known: ...`` for an unknown name; the nearest known one comes first."""
    names = sorted(known)
    return f"{nearest(name, names)}Known: {', '.join(names) if names else 'none'}."


def origin(error: BaseException, *, skip: int = 0) -> str:
    """File and line of the innermost frame that is nobody's library: the user's, or ours.

    Args:
        error: that was caught.
        skip: outermost frames that are not looked at.
    """
    raised = traceback.extract_tb(error.__traceback__)
    frames = [(frame.filename, str(frame.lineno)) for frame in raised[skip:] or raised]
    frames += _WORKER_FRAME.findall(str(error))
    library = sysconfig.get_paths()["stdlib"]
    own = [
        frame
        for frame in frames
        if not frame[0].startswith((library, "<")) and "site-packages" not in frame[0]
    ]
    return ":".join((own or frames)[-1])


def paragraph(error: BaseException) -> str:
    """The message without the traceback that a DataLoader worker puts in front of it.

    PyTorch re-raises a worker's error with the worker's traceback as its text; the original
    message stands after the last ``ClassName: `` that begins a line of that text.
    """
    return _without_traceback(str(error), type(error)).strip()


def _without_traceback(text: str, kind: type[BaseException]) -> str:
    if "Original Traceback" not in text:
        return text
    name = re.escape(kind.__name__)
    return re.split(rf"^(?:[\w.]+\.)?{name}: ", text, flags=re.MULTILINE)[-1].rstrip("\n")
