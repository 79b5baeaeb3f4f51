"""comet_ml as a library: imported without side effects, and heard instead of printed."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)

_MASK = "***"
_ADVICE = (
    "To get all data logged automatically",  # where the user has imported comet_ml, but late
    "Experiment Name is generated at upload time",
)

_CALLER = "get_caller_file_path"

# Neither hooks in other libraries' imports, nor reports of errors to a third party. comet_ml reads
# them once, when it is imported; what the user has set stays.
_ON_IMPORT = {"COMET_DISABLE_AUTO_LOGGING": "1", "COMET_ERROR_TRACKING_ENABLE": "0"}


def import_comet() -> Any:
    """The module comet_ml.

    Where it was not imported before, hooks, random numbers and the environment are left as they
    were, and on the terminal it says no more than what is wrong.
    """
    if "comet_ml" in sys.modules:
        return sys.modules["comet_ml"]
    hook, own = sys.excepthook, {k: v for k, v in _ON_IMPORT.items() if k not in os.environ}
    os.environ.update(own)
    try:
        with same_random_numbers():
            import comet_ml
    finally:
        sys.excepthook = hook
        for name in own:
            del os.environ[name]
    if "COMET_LOGGING_CONSOLE" not in os.environ:
        for handler in _consoles():
            handler.setLevel(logging.WARNING)
    return comet_ml


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Python's random numbers go on as if nothing had been drawn: comet_ml draws some."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def without_callers_code(comet_ml: Any) -> Iterator[None]:
    """comet_ml takes the file that starts an experiment for its source code: that would be ours.

    Its setting for code, left out, would leave git's patch and a notebook's cells out as well.
    """
    module = comet_ml.experiment
    own = getattr(module, _CALLER, None)
    if own is not None:
        setattr(module, _CALLER, lambda: None)
    try:
        yield
    finally:
        if own is not None:
            setattr(module, _CALLER, own)


class _Keeping(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if not record.getMessage().startswith(_ADVICE):
            self._records.append(record)


class Heard:
    """A context in which comet_ml's warnings and errors are kept, and not printed.

    Args:
        secret: what is masked in them.
    """

    def __init__(self, *, secret: str | None = None) -> None:
        self._secret = secret
        self._records: list[logging.LogRecord] = []
        self._errors: list[BaseException] = []
        self._silent: list[logging.Handler] = []
        self._handler = _Keeping(self._records)

    def __enter__(self) -> Heard:
        logger = logging.getLogger("comet_ml")
        self._silent = _consoles()
        for handler in self._silent:
            logger.removeHandler(handler)
        logger.addHandler(self._handler)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        logger = logging.getLogger("comet_ml")
        logger.removeHandler(self._handler)
        for handler in self._silent:
            logger.addHandler(handler)

    def add(self, error: BaseException) -> None:
        """Keep an error that was raised."""
        self._errors.append(error)

    @property
    def text(self) -> str:
        """All of it as one line."""
        said = [*(record.getMessage() for record in self._records), *map(str, self._errors)]
        lines = dict.fromkeys(" ".join(text.split()) for text in said)
        text = " ".join(lines) or "It gave no reason."
        return text.replace(self._secret, _MASK) if self._secret else text

    @property
    def is_connection(self) -> bool:
        """Whether an error was of the connection: then Comet has not answered.

        Those of requests are OSErrors; where Comet has answered, comet_ml raises its own.
        """
        told = [record.exc_info[1] for record in self._records if record.exc_info]
        return any(isinstance(error, OSError) for error in [*told, *self._errors])

    def repeat(self) -> None:
        """Say it as a warning of ours, where something was said."""
        if self._records:
            log.warning("Comet says: %s", self.text)


def _consoles() -> list[logging.Handler]:
    handlers = logging.getLogger("comet_ml").handlers
    return [handler for handler in handlers if type(handler) is logging.StreamHandler]
