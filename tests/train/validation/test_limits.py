"""limit_train_batches and limit_val_batches as in Lightning: a number of batches, or a share."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import kdcache
from kdcache.errors import UsageError
from kdcache.train.validation.first_batches import FirstBatches, first_batches
from tests.train import small


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    loaders = {"train": small.loader(), "test": small.loader(small.NUM_TEST, seed=1)}
    path = tmp_path_factory.mktemp("limits") / "t.zarr"
    return kdcache.dump_teacher(small.net(7), loaders, path, progress=False, accelerator="cpu")


def train(cache, tmp_path, student=None, data=None, **options):
    trainer = {"max_epochs": 1, "accelerator": "cpu", **options.pop("trainer", {})}
    return kdcache.train_student(
        student or small.net(),
        data or small.data(),
        cache.path,
        output=tmp_path / "run",
        progress=False,
        trainer=trainer,
        **options,
    )


class Seen:
    """A pipeline that keeps what it was given."""

    def run_inference_pipeline(self, model, data_loader):
        self.batches = [x for x, _ in data_loader]
        self.length, self.samples = len(data_loader), len(data_loader.dataset)
        self.batch_size = data_loader.batch_size
        return {"inference_result": 0.5}


@pytest.mark.parametrize(("limit", "batches"), [(1, 1), (2, 2), (0.5, 1), (0.7, 2), (3, 3), (9, 3)])
def test_a_pipeline_gets_a_shorter_loader(cache, tmp_path, limit, batches):
    seen = Seen()
    trainer = {"limit_val_batches": limit}
    run = train(cache, tmp_path, pipelines={"test": seen}, trainer=trainer)
    samples = min(16 * batches, small.NUM_TEST)
    assert (len(seen.batches), seen.length, seen.samples) == (batches, batches, samples)
    assert seen.batch_size == 16
    assert torch.equal(
        torch.cat(seen.batches), small.dataset(small.NUM_TEST, 1).tensors[0][:samples]
    )
    part = {} if batches == 3 else {"test": f"{batches} of 3 batches ({samples} of 40 samples)"}
    assert run.parts == part
    assert json.loads((run.output / "run.json").read_text())["parts"] == part
    assert ("scores of a part" in run.summary(100)) == bool(part)


def test_scores_and_the_teachers_own_are_of_the_same_part(cache, tmp_path):
    run = train(cache, tmp_path, trainer={"limit_val_batches": 1})
    inputs, labels = (t[:16] for t in small.dataset(small.NUM_TEST, 1).tensors)
    right = small.net(7)(inputs).argmax(-1) == labels
    assert run.scores["test"]["teacher_accuracy"] == pytest.approx(right.float().mean().item())


def test_none_at_all(cache, tmp_path):
    run = train(cache, tmp_path, trainer={"limit_val_batches": 0}, pipelines={"test": Seen()})
    assert run.scores == {}
    assert run.student.is_file()


@pytest.mark.parametrize(
    ("limit", "match"),
    [
        (0.01, "is less than one. Give 0.333 or more"),
        (1.5, "a share from 0.0 to 1.0, not 1.5"),
        (-1, "not -1"),
        ("2", "not '2'"),
        (True, "not True"),
        (math.nan, "not nan"),
    ],
)
def test_no_such_limit(cache, tmp_path, limit, match):
    with pytest.raises(UsageError, match=match):
        train(cache, tmp_path, trainer={"limit_val_batches": limit})


@pytest.mark.parametrize(("limit", "steps"), [(2, 2), (0.5, 3), (4, 4), (1.0, 6), (1, 1)])
def test_fewer_training_batches(cache, tmp_path, limit, steps):
    trainer = {"limit_train_batches": limit, "max_epochs": 2}
    assert train(cache, tmp_path, trainer=trainer).steps == 2 * steps


def test_a_schedule_by_step_ends_with_the_shorter_training(cache, tmp_path):
    from kdcache.train.optimization.schedules import Schedule, linear_decay_with_warm_up

    seen = []

    def make(optimizer, total):
        seen.append(total)
        return linear_decay_with_warm_up(optimizer, total)

    trainer = {"limit_train_batches": 2, "max_epochs": 3}
    train(cache, tmp_path, trainer=trainer, scheduler=Schedule(make=make, interval="step"))
    assert seen == [6]


def test_accumulated_steps_end_within_the_limit(cache, tmp_path):
    trainer = {"limit_train_batches": 3, "accumulate_grad_batches": 2}
    assert train(cache, tmp_path, trainer=trainer).steps == 2  # of 2 micro-batches and 1


def test_a_limited_training_is_resumed_exactly(cache, tmp_path):
    data = small.Data(DataLoader(small.dataset(96), batch_size=16, shuffle=True))

    def part(name, epochs, **options):
        student = small.net(3)
        trainer = {"limit_train_batches": 2, "max_epochs": epochs}
        run = train(
            cache, tmp_path / name, student=student, data=data, seed=1, trainer=trainer, **options
        )
        return run, small.weights(student)

    _, whole = part("whole", 4)
    first, _ = part("first", 2)
    _, resumed = part("second", 4, resume=first.output)
    assert torch.equal(whole, resumed)


def test_nothing_to_train_on(cache, tmp_path):
    with pytest.raises(UsageError, match="nothing would be trained"):
        train(cache, tmp_path, trainer={"limit_train_batches": 0})


@pytest.mark.parametrize("name", ["limit_test_batches", "limit_predict_batches"])
def test_limits_that_would_change_nothing(cache, tmp_path, name):
    with pytest.raises(UsageError, match="would change nothing"):
        train(cache, tmp_path, trainer={name: 2})


@pytest.mark.parametrize(
    ("options", "steps", "batches"),
    [({"fast_dev_run": True}, 1, 1), ({"fast_dev_run": 2}, 2, 2), ({"overfit_batches": 2}, 2, 2)],
)
def test_short_trials(cache, tmp_path, options, steps, batches):
    run = train(cache, tmp_path, trainer=options)
    assert run.steps == steps
    assert run.parts["test"].startswith(f"{batches} of 3 batches")


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_a_trainer_of_ones_own_limits_batches_not_sets(cache):
    seen, other = Seen(), Seen()
    module = kdcache.StudentModule(
        small.net(),
        validation={"a": small.loader(40, 1), "b": small.loader(40, 2)},
        pipelines={"a": seen, "b": other},
    )
    trainer = small.trainer(limit_val_batches=1, num_sanity_val_steps=0)
    trainer.fit(module, module.windowed(small.joined_loader(cache)))
    assert (seen.length, other.length) == (1, 1)
    small.trainer().validate(module, verbose=False)
    assert (seen.length, other.length) == (3, 3)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(small.dataset(40, 1))


def test_a_set_without_a_length():
    loader = DataLoader(Stream(), batch_size=16)
    part = first_batches(loader, 2, "test")
    assert isinstance(part, FirstBatches)
    assert len(list(part)) == 2
    assert not hasattr(part, "dataset")
    assert str(part) == "2 batches"
    with pytest.raises(UsageError, match="has no length"):
        first_batches(loader, 0.5, "test")


def test_a_shuffled_set_has_no_first_samples():
    part = first_batches(DataLoader(small.dataset(40), batch_size=16, shuffle=True), 2, "test")
    assert not hasattr(part, "dataset")
    assert str(part) == "2 of 3 batches"
