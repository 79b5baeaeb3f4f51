"""Starting several replicas on one machine, one process each, and waiting for all of them.

Processes are spawned, never forked, and share nothing but the cache, not even a queue: one that
fails or dies leaves the others to finish their shards. SIGTERM is passed on to all of them;
Ctrl-C, which a terminal sends to all of them, is told of once, by this process.
"""

from __future__ import annotations

import contextlib
import copyreg
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

from kdcache.dump.loop import run
from kdcache.dump.preparation.job import DumpJob
from kdcache.dump.processes.preemption import Preemption, Stopped
from kdcache.dump.processes.ranks import Ranks
from kdcache.dump.processes.replica import Replica
from kdcache.errors import KdcacheError, PreemptedError, UsageError, paragraph
from kdcache.store import Cache, open_cache

MakeJob = Callable[[], DumpJob]

# What a pipe takes in one piece, so that a message is there whole or not at all.
_MAX_MESSAGE_BYTES = 8 << 10
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a replica's process ended.

    Attributes:
        number: of the replica.
        count: of all replicas.
        exit_code: negative: the signal that ended it; None: it was never started.
        kind: of the error that it told of.
        text: what it told.
    """

    number: int
    count: int
    exit_code: int | None
    kind: type[KdcacheError] | None = None
    text: str = ""

    def is_preempted(self, requested: bool) -> bool:
        """Whether SIGTERM ended it: of its own accord, or (early) where we had passed it on."""
        passed_on = requested and self.exit_code in (None, -signal.SIGTERM)
        return passed_on or self.kind is PreemptedError

    def __str__(self) -> str:
        """One sentence or more for a person."""
        if self.kind is not None:
            return f"replica {self.number} of {self.count}: {self.text}"
        if self.exit_code is None:
            return f"replica {self.number} was not started."
        if self.exit_code >= 0:
            return f"replica {self.number} ended with exit code {self.exit_code}."
        name = signal.Signals(-self.exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"replica {self.number} was killed by {name}{hint}."


def run_on_devices(
    make_job: MakeJob, num_devices: int, *, cache: Path, preemption: Preemption
) -> Cache:
    """Dump on several devices of this machine.

    Args:
        make_job: picklable; called in every process.
        num_devices: processes to start.
        cache: that the job fills.
        preemption: what SIGTERM does here.

    Raises:
        KdcacheError: a replica failed; says which and why. What others committed stays.
        Stopped: SIGTERM ended replicas, and nothing else did.
    """
    content = _pickled(make_job)
    context = multiprocessing.get_context("spawn")
    replicas = [Replica(number=n, count=num_devices, device=n) for n in range(num_devices)]
    processes: list[SpawnProcess] = []

    def pass_on() -> None:
        for process in processes:
            process.terminate()

    with preemption.in_hand(pass_on), _ended_with_us(processes):
        receivers: list[Connection[Any, Any]] = []
        for replica in replicas:
            if preemption.requested:
                break
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_run_replica,
                args=(content, replica, cache, sender),
                name=f"kdcache-replica-{replica.number}",
            )
            with _interrupt_held():
                process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        if preemption.requested:  # it may have come between a start and its entry in the list
            pass_on()
        endings = list(map(_ending, replicas, processes, receivers))
    endings += [
        Ending(number=number, count=num_devices, exit_code=None)
        for number in range(len(endings), num_devices)
    ]
    bad = [ending for ending in endings if ending.exit_code != 0]
    if not bad:
        return open_cache(cache)
    if all(ending.is_preempted(preemption.requested) for ending in bad):
        raise Stopped
    raise _error(bad)


@contextmanager
def _ended_with_us(processes: Sequence[SpawnProcess]) -> Iterator[None]:
    """On Ctrl-C, leave no process behind, also where the signal was sent to this one only.

    They finish the current shard, as after SIGTERM; a second Ctrl-C ends them at once.
    """
    try:
        yield
    except KeyboardInterrupt:
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
        raise


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Ctrl-C waits, here and in a process that is started meanwhile: there until it asks for it.

    While it imports it could only answer with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its own start, else within ours, would let signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _release_interrupt() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _ending(replica: Replica, process: SpawnProcess, receiver: Connection[Any, Any]) -> Ending:
    process.join()
    kind, text = None, ""
    # The pipe's end comes when every process that holds it has ended, a DataLoader's worker, too.
    with contextlib.suppress(EOFError):
        if receiver.poll():
            kind, text = receiver.recv()
    return Ending(
        number=replica.number,
        count=replica.count,
        exit_code=process.exitcode,
        kind=kind,
        text=text,
    )


def _error(bad: list[Ending]) -> KdcacheError:
    """One error for all replicas that did not end well; a failure counts more than SIGTERM."""
    kinds = [ending.kind for ending in bad if ending.kind is not None]
    failed = [kind for kind in kinds if kind is not PreemptedError]
    lines = [str(ending) for ending in bad]
    if not failed:
        lines.append(
            f"The other replicas of {bad[0].count} ran on. What was committed stays; run the same "
            "command again to dump what is missing."
        )
    return next(iter(failed), KdcacheError)("\n".join(lines))


class _ByValue(ForkingPickler):
    """Copies tensors: shared ones would cost a file handle each, and tie replicas together."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dispatch_table = copyreg.dispatch_table


def _pickled(make_job: MakeJob) -> bytes:
    try:
        return bytes(_ByValue.dumps(make_job))
    except Exception as error:  # pickling fails in many ways
        raise UsageError(
            f"devices > 1 sends teacher and data to other processes, and they cannot be pickled "
            f"({error}). Define their classes and functions in a module, and give a teacher that "
            "cannot be pickled as a function that makes it."
        ) from error


def _run_replica(
    content: bytes, replica: Replica, cache: Path, sender: Connection[Any, Any]
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // replica.count))
    try:
        _release_interrupt()
        with Preemption(cache) as preemption:
            run(ForkingPickler.loads(content)(), Ranks(replica), preemption)
    except KdcacheError as error:
        text = paragraph(error).encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore")
        sender.send((type(error), text))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:  # the process that started this one says so
        raise SystemExit(_INTERRUPTED) from None
