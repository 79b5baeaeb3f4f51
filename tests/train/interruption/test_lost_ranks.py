"""A process of a training that was killed: who, and how, in words of ours; no false alarms."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from kdcache.errors import ProcessLostError
from kdcache.train.interruption import lost_ranks
from kdcache.train.interruption.lost_ranks import RankWatch, how_it_ended
from tests.hang import HANG_S
from tests.train.interruption import lost_rank

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
    "[127.0.0.1]:37561."
)
LOST_SAYS = {
    1: (
        "ProcessLostError: process 0 of 2 lost contact in epoch 1 (from 0), after 3 steps. "
        "Process 1 was killed by SIGKILL (by the kernel where memory was short, most often: dmesg "
        "says so). What it wrote last stands in this output. No student was saved. Its last "
        "checkpoint is of step 3. Go on with resume="
    ),
    0: "Process 0, which started this one, is gone. No student was saved. Checkpoints, if there",
}


@pytest.mark.parametrize("victim", [0, 1])
def test_who_was_killed_is_said(victim, cache, tmp_path):
    output = tmp_path / "output.txt"
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK")}
    with output.open("w") as stream:
        code = subprocess.run(
            [sys.executable, lost_rank.__file__, cache.path, tmp_path / "run", str(victim)],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=HANG_S,
            check=False,
        ).returncode
    until = time.monotonic() + HANG_S  # the one that was started may outlive the first
    while LOST_SAYS[victim] not in (text := output.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    assert LOST_SAYS[victim] in text
    assert code == (1 if victim else -signal.SIGKILL)
    assert "gloo" not in text.replace("distributed_backend=gloo", "")
    assert not (tmp_path / "run" / "student.safetensors").exists()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was killed by SIGKILL (by the kernel"),
        (-11, "was killed by SIGSEGV"),
        (-15, "was killed by SIGTERM"),
        (-62, "was killed by signal 62"),
    ],
)
def test_exit_codes_in_words(code, says):
    assert how_it_ended(code).startswith(says)


class Observer(threading.Thread):
    """As Lightning's launcher has one, over processes that it has started."""

    def __init__(self, *processes):
        super().__init__(daemon=True, name="child-process-observer")
        self._child_processes = list(processes)
        self.acted = self.ended = False

    def run(self):
        while not self.ended:
            self.acted = self._run()
            time.sleep(0.01)

    def _run(self):
        return any(process.poll() for process in self._child_processes)


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    observer = Observer(process)
    observer.start()
    yield process, observer
    observer.ended = True
    process.kill()
    process.wait()
    observer.join()


def trainer(rank=0, size=2):
    return SimpleNamespace(global_rank=rank, world_size=size)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lost_ranks, "_PERIOD_S", 0.01)
    monkeypatch.setattr(lost_ranks, "_GRACE_S", 0.1)
    monkeypatch.setattr(lost_ranks, "_NOTICE_S", 0.2)


def test_a_process_that_waits_for_ever_says_so_and_is_ended(child, caplog):
    process, observer = child
    is_ended = threading.Event()
    with RankWatch(is_ended.set):
        process.kill()
        assert is_ended.wait(HANG_S)
        assert not observer.acted  # Lightning's would have killed this process
    assert "Process 1 was killed by SIGKILL" in caplog.text
    assert "This process still waited for it, and is ended." in caplog.text


def test_who_ends_by_an_error_of_its_own_is_left_alone(child, caplog, monkeypatch):
    process, _ = child
    monkeypatch.setattr(lost_ranks, "_GRACE_S", 5.0)  # a busy machine may stand still for a while
    monkeypatch.setattr(lost_ranks, "_NOTICE_S", HANG_S)
    is_ended = threading.Event()
    with RankWatch(is_ended.set) as watch:
        process.kill()
        lost = watch.who_was_lost(trainer(), RuntimeError(GLOO))
    assert lost.text.startswith("Process 1 was killed by SIGKILL")
    assert lost.cause is None
    for watching in [thread for thread in threading.enumerate() if thread.name == "rank-watch"]:
        watching.join(HANG_S)
    assert not is_ended.is_set()
    assert caplog.text == ""


def test_processes_that_end_well_are_no_loss():
    process = subprocess.Popen([sys.executable, "-c", ""])
    observer = Observer(process)
    observer.start()
    is_ended = threading.Event()
    with RankWatch(is_ended.set):
        process.wait()
        assert not is_ended.wait(0.5)
    observer.ended = True
    observer.join()


def test_lightnings_observer_is_put_back(child):
    process, observer = child
    with RankWatch(lambda: None):
        time.sleep(0.1)
    process.kill()
    until = time.monotonic() + HANG_S
    while not observer.acted and time.monotonic() < until:
        time.sleep(0.01)
    assert observer.acted


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("Expected to have finished reduction in the prior iteration"),
        RuntimeError("the connection to my database was closed"),
        RuntimeError("NCCL error: unhandled cuda error"),
        ValueError(GLOO),
    ],
)
def test_other_errors_are_no_loss(error):
    size = 1 if isinstance(error, ValueError) else 2
    with RankWatch() as watch:
        assert watch.who_was_lost(trainer(size=size), error) is None


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "Another process ended, or cannot be reached"),
        ({"TORCHELASTIC_RUN_ID": "x"}, "torchrun's summary says who ended"),
        ({"SLURM_PROCID": "1"}, "srun's output says who ended"),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError(GLOO), ProcessLostError("gone")])
def test_where_it_cannot_be_known_it_is_said_who_knows(variables, says, error, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with RankWatch() as watch:
        lost = watch.who_was_lost(trainer(rank=1), error)
    assert lost.text.startswith(says)
    assert str(error)[:100] in lost.text
    assert lost.cause is error


def test_a_time_limit_is_no_end_of_a_process(child):
    error = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms")
    with RankWatch() as watch:
        lost = watch.who_was_lost(trainer(), error)
    assert lost.text.startswith("All processes that were started here are there")
