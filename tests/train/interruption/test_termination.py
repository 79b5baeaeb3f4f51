"""SIGTERM in stage two: after the current step, with our error, and what was saved stays."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from kdcache.errors import PreemptedError, TerminatedError, WorkerLostError
from kdcache.train.interruption.termination import Termination
from tests.train import small


def terminate():
    """SIGTERM to this process; its handler has run when this returns."""
    signal.raise_signal(signal.SIGTERM)


class At(Callback):
    """Sends SIGTERM in a hook, the given time that it is called."""

    def __init__(self, hook, time=1):
        self.calls = 0

        def send(*_, **__):
            self.calls += 1
            if self.calls == time:
                terminate()

        setattr(self, hook, send)


@pytest.fixture(autouse=True)
def _default_handler():
    """As in a process of the user's; whatever a test leaves is put back."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_checkpoints_stay_and_no_student_is_saved(train, tmp_path):
    trainer = {"max_epochs": 5, "callbacks": [At("on_train_batch_start", 8)]}
    with pytest.raises(TerminatedError) as caught:
        train(trainer=trainer, experiment="cache: t.zarr\n")
    run = tmp_path / "run"
    assert str(caught.value) == (
        "terminated by SIGTERM in epoch 1 (from 0), after 8 steps. No student was saved. "
        f'Its last checkpoint is of step 8. Go on with resume="{run}".'
    )
    assert (run / "checkpoints" / "last.ckpt").exists()
    assert (run / "experiment.yaml").exists()
    assert not (run / "student.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_it_is_a_preemption_with_a_code_of_its_own():
    """The same command would begin anew, which 75 promises it does not."""
    assert issubclass(TerminatedError, PreemptedError)
    assert TerminatedError.exit_code == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("hook", "steps"),
    [("setup", 0), ("on_fit_start", 0), ("on_train_start", 0)],
)
def test_before_the_first_checkpoint_nothing_stays(train, tmp_path, hook, steps):
    """There is no step to finish: it ends at once."""
    with pytest.raises(TerminatedError, match=f"after {steps} steps.*no checkpoint yet"):
        train(trainer={"callbacks": [At(hook)]})
    assert not (tmp_path / "run").exists()


def test_between_two_validation_sets(train):
    pipelines = {"test": small.Pipeline(0.5), "second": small.Pipeline(0.5)}
    with pytest.raises(TerminatedError, match="after 6 steps"):
        train(
            data=small.data(second=small.loader(8, seed=3)),
            pipelines=pipelines,
            trainer={"callbacks": [At("on_validation_batch_end")]},
        )
    assert [len(pipeline.seen) for pipeline in pipelines.values()] == [1, 0]


def test_what_is_finished_when_it_comes_is_a_success(train, caplog):
    run = train(trainer={"callbacks": [At("on_validation_batch_end")]})
    assert run.student.exists()
    assert "SIGTERM came when training had ended: its student is saved" in caplog.text
    assert run.scores["test"]


class Fails(Callback):
    def __init__(self, is_signalled):
        self.is_signalled = is_signalled

    def on_train_batch_start(self, *_):
        if self.is_signalled:
            terminate()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")


@pytest.mark.parametrize("is_signalled", [True, False])
def test_a_worker_that_the_same_signal_killed_is_no_other_error(train, is_signalled):
    with pytest.raises(TerminatedError if is_signalled else WorkerLostError):
        train(trainer={"callbacks": [Fails(is_signalled)]})


def test_a_handler_of_the_users_is_called_and_put_back(train):
    calls = []

    def handler(*_):
        calls.append(1)

    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(TerminatedError):
        train(trainer={"callbacks": [At("on_train_batch_start", 2)]})
    assert signal.getsignal(signal.SIGTERM) is handler
    assert calls == [1]


def test_a_process_that_ignores_it_goes_on(train):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert train(trainer={"callbacks": [At("setup")]}).student.exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_training_in_another_thread_installs_nothing(train):
    found = []

    class Look(Callback):
        def on_train_batch_start(self, *_):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: train(trainer={"callbacks": [Look()]}))
    thread.start()
    thread.join()
    assert set(found) == {signal.SIG_DFL}


class Strategy:
    """Two ranks; the signal comes while they are asked, after this one has answered."""

    def __init__(self, *, others):
        self.others = others
        self.asked = []

    def reduce_boolean_decision(self, mine, all):
        self.asked.append(mine)
        if len(self.asked) == 1:
            terminate()
        return mine or self.others


@pytest.mark.parametrize("others", [False, True])
def test_a_signal_that_comes_while_ranks_are_asked_is_not_lost(others):
    termination, strategy = Termination(), Strategy(others=others)
    trainer = SimpleNamespace(
        world_size=2, accumulate_grad_batches=1, is_last_batch=False, strategy=strategy
    )
    strategy.launcher = None

    def steps():
        with termination.listening(trainer):
            termination.on_train_start(trainer, None)
            for step in range(2):
                termination.on_train_batch_end(trainer, None, None, None, step)

    with pytest.raises(SIGTERMException):
        steps()
    assert strategy.asked == ([False] if others else [False, True])
