"""The process in which sections run, one after another, so that imports are paid for once.

A section that raises ends it, since on a GPU an error may stay, and memory with it; so does one
that hangs, or dies. What is left then gets a new process.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from scripts.gpu_check.section import Clock, Figure, Result, Setting, Status

_END_S = 10.0
"""How long a process may take to end by itself."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The last that the process says of a section."""

    error: str = ""
    cut: str = ""


class Worker:
    """The process, as the one that started it sees it.

    Args:
        device: ``cuda`` or ``cpu``.

    Attributes:
        is_alive: whether it takes another section.
    """

    def __init__(self, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, device, multiprocessing.get_start_method())
        )
        self._process.start()
        theirs.close()
        self.is_alive = True

    def card(self, limit_s: float) -> dict[str, Any]:
        """What the process says of its device, once it is there.

        Raises:
            RuntimeError: it is not, within this time.
        """
        try:
            if self._connection.poll(limit_s):
                return dict(self._connection.recv())
            error = f"it was not ready after {limit_s:.0f} s"
        except EOFError:
            error = "it ended, see above"
        self.end()
        raise RuntimeError(f"the process that measures did not start: {error}.")

    def run(self, section: str, setting: Setting, *, budget_s: float, limit_s: float) -> Result:
        """Run a section.

        Args:
            section: a module of this package, or one with its whole path.
            setting: that it is given.
            budget_s: after this no further turn is begun.
            limit_s: after this the process is ended.
        """
        started = time.perf_counter()
        figures: list[Figure] = []
        ended = Ended(error=f"stopped after {limit_s:.0f} s: it hung, or was far too slow")
        try:
            self._connection.send((section, setting, budget_s))
            while self._connection.poll(max(0.0, started + limit_s - time.perf_counter())):
                found = self._connection.recv()
                if isinstance(found, Ended):
                    ended = found
                    break
                figures.append(found)
        except (EOFError, ConnectionError):
            self._process.join(_END_S)
            ended = Ended(error=f"its process ended with {self._process.exitcode}")
        status: Status = "failed" if ended.error else "cut short" if ended.cut else "passed"
        if status == "failed":
            self.end()
        return Result(
            section=section,
            status=status,
            budget_s=budget_s,
            seconds=time.perf_counter() - started,
            error=ended.error or ended.cut,
            figures=tuple(figures),
        )

    def end(self) -> None:
        """End the process."""
        self.is_alive = False
        self._connection.close()
        if self._process.is_alive():
            self._process.join(0.5)  # the closed connection ends one that waits for work
            self._process.kill()
        self._process.join(_END_S)


def _serve(connection: Connection, device: str, start_method: str) -> None:
    # Of the workers of its loaders: in a process that was spawned they would be spawned, too, and
    # each import everything again, which is what would be measured.
    multiprocessing.set_start_method(start_method, force=True)
    from scripts.gpu_check.card import describe

    connection.send(describe(device))
    while True:
        try:
            section, setting, budget_s = connection.recv()
        except EOFError:
            return
        try:
            cut = _measure(connection, section, setting, budget_s)
        except Exception as error:  # whatever it is, the others still run
            traceback.print_exc()
            text = " ".join(f"{type(error).__name__}: {error}".split())
            connection.send(Ended(error=text[:500]))
            return
        connection.send(Ended(cut=cut))


def _measure(connection: Connection, section: str, setting: Setting, budget_s: float) -> str:
    path = section if "." in section else f"scripts.gpu_check.sections.{section}"
    module = importlib.import_module(path)
    _quiet()
    os.environ["KDCACHE_LOCAL"] = str(setting.folder / "local")
    clock = Clock(budget_s)
    for figure in module.measure(setting, clock):
        connection.send(figure)
    torch = sys.modules["torch"]
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return ", ".join(clock.cut)


def _quiet() -> None:
    """Leave out what libraries say to people: teachers of random weights guess, and are told so."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    for name in ("kdcache", "pytorch_lightning", "lightning_fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
