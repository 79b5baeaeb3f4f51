"""SIGTERM: the current shard is finished and committed, and the same command goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from torch.utils.data import IterableDataset

from kdcache.dump.processes import preemption as module
from kdcache.dump.processes.preemption import Preemption, Stopped, stopped_text
from kdcache.errors import PreemptedError, UsageError
from kdcache.store import open_cache
from tests.data import toys
from tests.dump.forked import ForkServer
from tests.dump.processes import doomed
from tests.hang import HANG_S

NOWHERE = Path("nowhere.zarr")


def terminate():
    """SIGTERM to this process; its handler has run when this returns."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)


def within(call, *, signalled=False):
    """A call in a block; before it, perhaps, a signal that is only noted."""
    with Preemption(NOWHERE) as preemption:
        with preemption.in_hand():
            if signalled:
                terminate()
        call()


def raising(error):
    def call():
        raise error

    return call


@pytest.fixture
def old_handler():
    """SIGTERM's handler around a test: notes that it was called."""
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    yield calls
    signal.signal(signal.SIGTERM, before)


class TestHandler:
    def test_ends_the_block_at_once_where_nothing_is_in_hand(self, old_handler):
        seen = []

        def build_a_teacher():
            try:
                terminate()
            except Exception:  # a user's code, on the way
                seen.append("held up")
            seen.append("went on")

        with pytest.raises(PreemptedError, match=r"nowhere\.zarr holds nothing yet"):
            within(build_a_teacher)
        assert seen == old_handler == []

    def test_is_only_there_within_the_block(self, old_handler):
        installed = signal.getsignal(signal.SIGTERM)
        with Preemption(NOWHERE):
            assert signal.getsignal(signal.SIGTERM) is not installed
        assert signal.getsignal(signal.SIGTERM) is installed
        terminate()
        assert old_handler == [1]

    def test_only_notes_it_while_something_is_in_hand(self, old_handler):
        with Preemption(NOWHERE) as preemption, preemption.in_hand():
            terminate()
            assert preemption.requested
        assert old_handler == []

    def test_takes_a_signal_and_its_forwarding_for_one_request(self, old_handler):
        requests = []
        with Preemption(NOWHERE) as preemption, preemption.in_hand(lambda: requests.append(1)):
            for _ in range(3):
                terminate()
        assert requests == [1]

    def test_tells_of_every_request(self, old_handler, monkeypatch):
        monkeypatch.setattr(module, "_ONE_REQUEST_S", 0.0)
        requests = []
        with Preemption(NOWHERE) as preemption, preemption.in_hand(lambda: requests.append(1)):
            terminate()
            terminate()
        assert requests == [1, 1]

    def test_is_not_installed_where_sigterm_is_ignored(self, old_handler):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with Preemption(NOWHERE) as preemption:
            terminate()
        assert not preemption.requested

    def test_is_not_installed_in_another_thread(self, old_handler):
        found = []

        def block():
            with Preemption(NOWHERE):
                found.append(signal.getsignal(signal.SIGTERM))

        thread = threading.Thread(target=block)
        thread.start()
        thread.join()
        assert found == [signal.getsignal(signal.SIGTERM)]

    def test_lets_other_errors_through(self, old_handler):
        with pytest.raises(ValueError, match="unrelated"):
            within(raising(ValueError("unrelated")), signalled=True)

    def test_ctrl_c_says_how_to_go_on(self, old_handler):
        says = "Ctrl-C stopped the dump before its end.*holds nothing yet.*Run the same command aga"
        with pytest.raises(KeyboardInterrupt, match=says):
            within(raising(KeyboardInterrupt()))

    @pytest.mark.parametrize("signalled", [True, False])
    def test_a_worker_that_the_same_signal_killed_is_no_other_error(self, old_handler, signalled):
        error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
        with pytest.raises(PreemptedError if signalled else RuntimeError):
            within(raising(error), signalled=signalled)


class Clock:
    """Stands for the module ``time``."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class TestStops:
    """Batches take 2 seconds; SIGTERM comes during the third, of which the shard has ``left``."""

    @pytest.mark.parametrize(
        ("grace_s", "left", "begins_shard", "stops"),
        [
            (30.0, 5, False, False),
            (30.0, 12, False, False),  # 24 of 30 seconds: a fifth is the writer's
            (30.0, 13, False, True),
            (30.0, 13, True, True),
            (30.0, 1, True, True),
            (0.0, 1, False, True),
            (2.4, 1, False, True),
            (2.6, 1, False, False),
        ],
    )
    def test_within_the_grace_time(
        self, old_handler, monkeypatch, grace_s, left, begins_shard, stops
    ):
        clock = Clock()
        monkeypatch.setattr(module, "time", clock)
        with Preemption(NOWHERE) as preemption, preemption.in_hand():
            for begins in (True, False, False):
                asked = {"begins_shard": begins, "batches_left": 9, "grace_s": grace_s}
                assert not preemption.stops(**asked)
                clock.now += 2
            os.kill(os.getpid(), signal.SIGTERM)
            asked = {"begins_shard": begins_shard, "batches_left": left, "grace_s": grace_s}
            assert preemption.stops(**asked) is stops

    def test_never_without_a_signal(self):
        preemption = Preemption(NOWHERE)
        for _ in range(3):
            assert not preemption.stops(begins_shard=True, batches_left=1, grace_s=0.0)


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    cache = tmp_path_factory.mktemp("whole") / "c"
    doomed.whole(str(cache))
    return open_cache(cache)["train"]


# Six shards of two batches; SIGTERM during batch `number`.
CASES = {
    "in the middle of a shard": ((4, 0.05, 30.0, 0, False), (3, 4, 5), True),
    "at the end of a shard": ((3, 0.05, 30.0, 0, False), (2, 3, 4, 5), False),
    "without time to finish": ((4, 0.05, 0.0, 0, False), (2, 3, 4, 5), False),
    "with workers, to the whole group": ((4, 0.05, 30.0, 2, True), (3, 4, 5), True),
    "at the very last batch": ((10, 0.05, 30.0, 0, False), (), False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dump_that_is_signalled(server, tmp_path, whole, case):
    arguments, pending, finishes = CASES[case]
    cache = tmp_path / "c"
    (ending,) = server.run("tests.dump.processes.doomed:signalled", cache, *arguments)
    view = open_cache(cache)["train"]
    assert view.pending == pending
    assert len(list(view.folder.glob("shard-*"))) == 6 - len(pending), "begun, not finished"
    said = ending.text.splitlines()
    if pending:
        assert ending.code == 75, ending.text
        paragraph = said.pop()
        assert f"holds {6 - len(pending)} of 6 shards of split 'train'" in paragraph
        assert "Run the same command again" in paragraph
    else:
        assert ending.code == 0, ending.text
    assert ("the current shard is finished first" in " ".join(said)) is finishes
    assert "Traceback" not in ending.text
    assert "worker" not in ending.text

    (ending,) = server.run("tests.dump.processes.doomed:whole", cache)
    assert ending.code == 0, ending.text
    view = open_cache(cache)["train"]
    assert view.digest == whole.digest


@pytest.mark.parametrize(
    ("pause_s", "one_request_s", "code"), [(0.1, HANG_S, 75), (0.2, 0.1, -signal.SIGTERM)]
)
def test_a_second_signal_ends_it_at_once(server, tmp_path, whole, pause_s, one_request_s, code):
    """Unless it follows so soon that it is the first one, forwarded."""
    cache = tmp_path / "c"
    (ending,) = server.run(
        "tests.dump.processes.doomed:signalled_twice", cache, pause_s, one_request_s
    )
    assert ending.code == code, ending.text
    (ending,) = server.run("tests.dump.processes.doomed:whole", cache)
    assert ending.code == 0, ending.text
    assert open_cache(cache)["train"].digest == whole.digest


def test_between_two_splits(tmp_path, old_handler, monkeypatch):
    """The signal comes with the first split's last batch: that split is complete, index and all."""
    teacher = doomed.Teacher(lambda n: n == 10 and terminate())
    loaders = {"train": toys.loader(doomed.SAMPLES), "test": toys.loader(doomed.SAMPLES)}
    with pytest.raises(PreemptedError, match=r"holds 6 of 6 shards of split 'train'; every"):
        toys.dump(tmp_path / "c", loaders, teacher)
    assert open_cache(tmp_path / "c")["train"].is_complete
    opened = toys.dump(tmp_path / "c", loaders, doomed.Teacher())
    assert opened["test"].is_complete
    assert open_cache(tmp_path / "c")["test"].digest


def test_while_the_teacher_is_made(tmp_path, old_handler):
    with pytest.raises(PreemptedError, match="holds nothing yet"):
        toys.dump(tmp_path / "c", doomed.SAMPLES, lambda: terminate() or pytest.fail("went on"))


def test_a_grace_time_is_no_negative_number(tmp_path):
    with pytest.raises(UsageError, match="grace_s is a time in seconds, 0 or more, not -1"):
        toys.dump(tmp_path / "c", doomed.SAMPLES, grace_s=-1.0)


def test_what_is_said_of_several_splits(tmp_path):
    loaders = {"train": toys.loader(doomed.SAMPLES), "val": toys.loader(doomed.SAMPLES[:9])}
    toys.dump(tmp_path / "c", loaders, part="0/2")
    text = stopped_text(tmp_path / "c", "SIGTERM")
    assert "holds 3 of 6 shards of split 'train', 1 of 2 shards of split 'val'; every" in text


def test_what_ends_the_block_is_no_exception_that_user_code_catches():
    assert not issubclass(Stopped, Exception)


def test_a_stream_goes_on_at_the_next_block(tmp_path, old_handler):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(doomed.SAMPLES)

    def dumped(cache, teacher):
        return toys.dump(tmp_path / cache, toys.loader(Stream()), teacher, key="content")["train"]

    teacher = doomed.Teacher(lambda n: n == 4 and terminate())
    with pytest.raises(PreemptedError, match=r"holds 3 shards of split 'train'; every"):
        dumped("c", teacher)
    view = dumped("c", doomed.Teacher())
    assert view.is_complete
    assert view.digest == dumped("whole", doomed.Teacher()).digest
