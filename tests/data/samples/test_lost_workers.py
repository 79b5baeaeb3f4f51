"""Worker processes that end without a word, as where the kernel kills them: what is said."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from torch.utils.data import get_worker_info

import kdcache
from kdcache import cli
from kdcache.data.samples.unreadable import lost_worker
from kdcache.errors import WorkerLostError
from tests.data import toys

N, WRONG = 120, 101
SAMPLES = toys.labelled(N)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    # PyTorch tells of a worker by raising from a signal, also where Python cannot pass it on.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Deadly(toys.Samples):
    """Ends the worker that asks for one of its samples."""

    def __init__(self, how, samples=SAMPLES):
        super().__init__(samples)
        self.how = how

    def __getitem__(self, index):
        if index == WRONG and get_worker_info() is not None:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return super().__getitem__(index)


def loader(how="killed", **options):
    return toys.loader(Deadly(how), num_workers=2, **options)


@pytest.mark.parametrize("how", ["killed", "exits"])
def test_in_a_dump(cache, how):
    with pytest.raises(WorkerLostError) as caught:
        toys.dump(cache, {"test": loader(how)})
    text = str(caught.value)
    assert text.startswith("a worker process of the DataLoader of split 'test' (num_workers=2) end")
    assert "PyTorch says: " in text  # of the worker, or of the connection to it
    assert "/dev/shm" in text
    done = len(kdcache.open_cache(cache)["test"].commits)
    assert f"{done} of 15 shards of split 'test' are committed and stay; the same command" in text
    assert toys.dump(cache, {"test": toys.loader(Deadly(how))})["test"].is_complete


class Data:
    def __init__(self, train=None, **validation):
        self.train, self.validation = train or toys.loader(SAMPLES), validation

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.validation


def train(cache, data, **trainer):
    options = {"max_epochs": 2, "accelerator": "cpu", **trainer}
    out = cache.parent / "run"
    kdcache.train_student(
        toys.make_teacher(1), data, cache, output=out, trainer=options, progress=False
    )


@pytest.mark.parametrize("how", ["killed", "exits"])
def test_in_a_training(cache, how):
    toys.dump(cache, SAMPLES)
    with pytest.raises(WorkerLostError) as caught:
        train(cache, loader(how))
    text = str(caught.value)
    assert text.startswith("training stopped in epoch 0 (from 0), after ")
    assert "A worker process of the DataLoader of the training set (num_workers=2) ended" in text
    assert text.endswith("There was no checkpoint yet. The same call begins anew.")


@pytest.mark.parametrize("is_dumped", [True, False])
def test_in_a_validation(cache, is_dumped):
    """After an epoch, whose checkpoint is gone on with."""
    toys.dump(cache, {"train": toys.loader(SAMPLES), "v" if is_dumped else "w": loader_of_v()})
    with pytest.raises(WorkerLostError) as caught:
        train(cache, Data(v=loader()), check_val_every_n_epoch=2)
    text = str(caught.value)
    # The second where PyTorch's signal comes late: it raises wherever Python is by then.
    sets = ("of validation set 'v' (num_workers=2)", "of a validation set")
    assert any(f"A worker process of the DataLoader {one} ended before" in text for one in sets)
    assert caught.value.resume == cache.parent / "run"
    assert text.endswith(
        f'Its last checkpoint is of step 30. Go on with resume="{cache.parent / "run"}".'
    )


def loader_of_v():
    return toys.loader(SAMPLES)


class Trained:
    """For the command line."""

    def train_dataloader(self):
        return loader(os.environ.get("HOW", ""))


def test_on_the_command_line(cache, capsys):
    data = [
        "--data.class_path",
        "tests.data.samples.test_lost_workers.Trained",
        "--progress",
        "false",
    ]
    model = "tests.data.toys.make_teacher"
    toys.dump(cache, SAMPLES)
    command = ["train-student", *data, "--student.class_path", model, "--cache", str(cache)]
    assert cli.main([*command, "--trainer.accelerator", "cpu"]) == 1
    shown = capsys.readouterr().err
    assert "WorkerLostError: training stopped in epoch 0" in shown
    assert "The same command begins anew." in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Caught RuntimeError in DataLoader worker process 0."),
        RuntimeError("CUDA out of memory"),
        ValueError("DataLoader worker (pid 7) is killed by signal: Killed."),
    ],
)
def test_other_errors_are_no_lost_worker(error):
    assert lost_worker(error, 2, "") is None


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 17, 18) exited unexpectedly",
        "DataLoader worker (pid 17) exited unexpectedly with exit code 3. Details are lost",
        "DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that",
    ],
)
def test_what_pytorch_says_of_one(text):
    assert text in lost_worker(RuntimeError(text), 2, "of split 'a'")
