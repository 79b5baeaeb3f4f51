"""A process with everything imported, which forks others: milliseconds for what takes seconds.

Run as a module it is that process: one line of JSON in, one out. :class:`ForkServer` is the other
end, for tests of processes that die, are signalled, or belong together.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a process ended: its exit code (negative: a signal), and what it wrote."""

    code: int
    text: str


class ForkServer:
    """Starts the process; a context manager."""

    def __enter__(self) -> ForkServer:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.dump.forked"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=HANG_S)

    def run(
        self,
        function: str,
        *arguments: object,
        environments: Sequence[Mapping[str, str]] = ({},),
        timeout_s: float = HANG_S,
    ) -> list[Ending]:
        """Call a function in one new process for each environment; how each ended.

        Args:
            function: ``module:name``.
            arguments: strings and numbers.
            environments: what the processes' own add to this one's.
            timeout_s: after which those that are left are killed, by SIGALRM.
        """
        given = [str(one) if isinstance(one, Path) else one for one in arguments]
        request = [function, given, [dict(one) for one in environments], timeout_s]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Ending(**one) for one in json.loads(self._process.stdout.readline())]


def _serve() -> None:
    for name in ("kdcache.dump", "zarr", "tests.dump.processes.doomed"):
        importlib.import_module(name)
    for line in sys.stdin:
        function, arguments, environments, timeout_s = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / str(n) for n in range(len(environments))]
            children = [
                _fork(function, arguments, environment, output)
                for environment, output in zip(environments, outputs, strict=True)
            ]
            codes = _wait(children, time.monotonic() + timeout_s)
            endings = [
                {"code": codes[child], "text": output.read_text()}
                for child, output in zip(children, outputs, strict=True)
            ]
        print(json.dumps(endings), flush=True)


def _fork(function: str, arguments: list[Any], environment: dict[str, str], output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)  # so that a signal to its group reaches its workers, and nobody else
        os.environ.update(environment)
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        module, _, name = function.partition(":")
        code = int(getattr(importlib.import_module(module), name)(*arguments) or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], deadline: float) -> dict[int, int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
            elif child not in codes and time.monotonic() > deadline:
                os.kill(child, signal.SIGALRM)
        time.sleep(0.01)
    return codes


if __name__ == "__main__":
    _serve()
