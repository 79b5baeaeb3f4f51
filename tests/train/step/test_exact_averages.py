"""One optimiser step is one joint batch, however it was cut into micro-batches and ranks."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

import kdcache
from kdcache.data.batch.forward import forward
from kdcache.data.batch.mapping import BatchMapping
from kdcache.errors import UsageError
from kdcache.train.step.step_counts import StepCounter
from tests.data.sequences import PACKED, CausalNet, loader
from tests.hang import HANG_S
from tests.train import small
from tests.train.step import uneven
from tests.train.step.uneven import SAMPLES, expected, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


@pytest.fixture(scope="module")
def token_cache(tmp_path_factory):
    return uneven.dump(tmp_path_factory.mktemp("uneven") / "t.zarr")


def assert_same(found, wanted):
    before = small.weights(uneven.student())
    assert (wanted - before).norm() > 0.1  # there was something to learn
    assert (found - wanted).norm() <= 1e-5 * (wanted - before).norm()


@pytest.mark.parametrize(
    ("batch_size", "options", "steps"),
    [
        (12, {}, [SAMPLES]),
        (3, {"accumulate_grad_batches": 4}, [SAMPLES]),
        (1, {"accumulate_grad_batches": 12}, [SAMPLES]),
        (2, {"accumulate_grad_batches": 3}, [SAMPLES[:6], SAMPLES[6:]]),
        (2, {"accumulate_grad_batches": 4}, [SAMPLES[:8], SAMPLES[8:]]),  # a shorter last window
        (2, {"accumulate_grad_batches": 4, "limit_train_batches": 3}, [SAMPLES[:6]]),
        (5, {}, [SAMPLES[:5], SAMPLES[5:10], SAMPLES[10:]]),
    ],
)
def test_micro_batches_are_one_batch(token_cache, batch_size, options, steps):
    assert_same(trained(token_cache, batch_size, **options), expected(*steps))


INPUTS = {"inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"}}
LAYOUTS = {
    "padded left": (SAMPLES, functools.partial(uneven.collate, side="left"), {"causal": True}),
    "packed": (uneven.packed_rows(), None, PACKED),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_on_the_left_and_packing_change_nothing(layout, tmp_path):
    """The same sequences laid out otherwise are the same step as each sequence by itself."""
    samples, collate_fn, mapping = LAYOUTS[layout]
    user = loader(samples, collate_fn, batch_size=2)
    cache = kdcache.dump_teacher(
        CausalNet(seed=5),
        user,
        tmp_path / "t.zarr",
        codec=kdcache.DenseCodec(dtype="float32"),
        batch=mapping,
        accelerator="cpu",
        progress=False,
    )
    joined = small.joined_loader(cache, user=user, collate_fn=user.collate_fn, batch=mapping)
    net = uneven.student()
    module = uneven.module(net, batch=mapping)
    trainer = small.trainer(accumulate_grad_batches=100)
    trainer.fit(module, module.windowed(joined))
    assert_same(small.weights(net), expected(SAMPLES))


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint", "ignore:.*ckpt_path")
def test_an_epoch_that_is_resumed_has_fewer_batches(token_cache, tmp_path):
    """It goes on with the batches that are left."""
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    step_of_four = {"accumulate_grad_batches": 4}
    trained(token_cache, 2, enable_checkpointing=True, callbacks=[keep], **step_of_four)
    net = uneven.student()
    module = uneven.module(net)
    small.trainer(**step_of_four).fit(
        module,
        module.windowed(uneven.joined(token_cache, 2)),
        ckpt_path=tmp_path / "step=1.ckpt",
        weights_only=False,
    )
    assert_same(small.weights(net), expected(SAMPLES[:8], SAMPLES[8:]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(SAMPLES)


@pytest.fixture(scope="module")
def stream_cache(tmp_path_factory):
    return uneven.dump(tmp_path_factory.mktemp("stream") / "t.zarr", key="content")


def streamed(cache, **options):
    net = uneven.student()
    module = uneven.module(net)
    joined = kdcache.CachedStream(
        Stream(), cache["train"], batch={"causal": True}, collate_fn=uneven.collate
    )
    loader = joined.loader_like(DataLoader(Stream(), batch_size=2, collate_fn=uneven.collate))
    small.trainer(**options).fit(module, module.windowed(loader))
    return small.weights(net)


def test_a_stream_looks_ahead_as_well(stream_cache):
    """It has no length: the last window of an epoch is shorter without a warning."""
    found = streamed(stream_cache, accumulate_grad_batches=4)
    assert_same(found, expected(SAMPLES[:8], SAMPLES[8:]))


@pytest.mark.parametrize("to", ["dataset", "stream"])
def test_accumulation_may_change_from_epoch_to_epoch(token_cache, stream_cache, to):
    schedule = GradientAccumulationScheduler(scheduling={1: 4})
    options = {"callbacks": [schedule], "max_epochs": 2, "accumulate_grad_batches": 1}
    if to == "stream":
        found = streamed(stream_cache, **options)
    else:
        found = trained(token_cache, 2, **options)
    pairs = [SAMPLES[n : n + 2] for n in range(0, 12, 2)]
    wanted = expected(*pairs, SAMPLES[:8], SAMPLES[8:])
    before = small.weights(uneven.student())
    assert (found - wanted).norm() <= 1e-4 * (wanted - before).norm()  # of eight steps


def test_a_stream_that_looked_ahead_for_another_number_is_refused(stream_cache):
    """Lightning fetches a stream's first batch before its callbacks change anything."""
    schedule = GradientAccumulationScheduler(scheduling={0: 4})
    with pytest.raises(UsageError, match=r"4 batches a step.*looked ahead for another number"):
        streamed(stream_cache, callbacks=[schedule])


def test_labels_that_are_not_there_are_named_as_such(token_cache):
    mapping = {"inputs": ["input_ids"], "causal": True, "mask": "attention_mask"}
    module = uneven.module(uneven.student(), batch=mapping)
    joined = small.joined_loader(
        token_cache, user=uneven.user_loader(3), collate_fn=uneven.collate, batch=mapping,
        check_fingerprints=False,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"'student_loss' needs labels, and the batch has none"):
        small.trainer(accumulate_grad_batches=2).fit(module, module.windowed(joined))


def test_a_mean_of_means_would_be_another_step(token_cache):
    """The control: what the tests above would find if batches were averaged one by one."""
    net = uneven.student()
    optimizer = torch.optim.SGD(net.parameters(), lr=uneven.RATE)
    parts = [SAMPLES[n : n + 3] for n in range(0, 12, 3)]
    (sum(uneven.joint_objective(net, part) for part in parts) / len(parts)).backward()
    optimizer.step()
    wanted = expected(SAMPLES)
    moved = (wanted - small.weights(uneven.student())).norm()
    assert (small.weights(net) - wanted).norm() > 0.05 * moved


def test_two_ranks_that_accumulate_are_one_batch(token_cache, tmp_path):
    """Batches of 2, two of them a step and rank, so 8 samples together, then the last 4."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(Path(uneven.__file__)), str(token_cache.path), str(tmp_path / "w.pt")],
        check=True,
        env=environment,
        timeout=HANG_S,
        capture_output=True,
    )
    found = torch.load(tmp_path / "w.pt", weights_only=True)
    assert_same(found, expected(SAMPLES[:8], SAMPLES[8:]))


def test_accumulation_needs_a_loader_that_looks_ahead(token_cache):
    module = uneven.module(CausalNet(seed=1))
    with pytest.raises(UsageError, match=r"adds up 2 batches a step.*module\.windowed\(loader\)"):
        small.trainer(accumulate_grad_batches=2).fit(module, uneven.joined(token_cache, 3))


def test_an_epochs_mean_is_over_positions(token_cache):
    """What is logged of an epoch does not depend on the batches either."""
    found = []
    for batch_size in (12, 5):
        module = uneven.module(uneven.student(), rate=0.0)
        trainer = small.trainer()
        trainer.fit(module, module.windowed(uneven.joined(token_cache, batch_size)))
        found.append({k: float(v) for k, v in trainer.callback_metrics.items() if "epoch" in k})
    names = ("train_kd_loss_epoch", "train_student_loss_epoch")
    assert [found[0][n] for n in names] == pytest.approx([found[1][n] for n in names], rel=1e-5)


class Masked(torch.nn.Module):
    """Its output decides which positions count."""

    def __init__(self):
        super().__init__()
        self.net = CausalNet(seed=1)

    def forward(self, **inputs):
        mask = inputs["attention_mask"] & (inputs["input_ids"] != 2)
        return {"logits": self.net(**inputs)["logits"], "mask": mask}


def trained_without_targets(batch_size, losses, mapping, net=None):
    """Weights after one step on all of the user's own batches."""
    net = net or uneven.student()
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    module = kdcache.StudentModule(net, losses=losses, batch=mapping, optimizer=sgd)
    trainer = small.trainer(accumulate_grad_batches=len(SAMPLES) // batch_size)
    trainer.fit(module, module.windowed(uneven.user_loader(batch_size)))
    return small.weights(net)


def unlike_two(batch):
    """A mask of tokens that leaves out labelled ones."""
    return batch["input_ids"] != 2


@pytest.mark.parametrize("mask", [None, unlike_two])
def test_batches_without_targets_are_counted_by_their_labels(mask):
    mapping = BatchMapping(labels="labels", mask=mask, causal=True)
    found, wanted = (
        trained_without_targets(size, {"student_loss": 1.0}, mapping) for size in (3, 12)
    )
    assert_same(found, wanted)


class Returning(CausalNet):
    """Returns losses of its own."""

    def __init__(self, name):
        super().__init__(seed=1)
        self.name = name

    def forward(self, input_ids, attention_mask):
        logits = super().forward(input_ids, attention_mask)["logits"]
        mask = attention_mask & (input_ids != 2)
        return {"logits": logits, "loss": {self.name: logits.square().mean()}, "mask": mask}


@pytest.mark.parametrize("name", ["router", "student_loss"])
def test_what_a_student_returns_counts_once_a_batch(name):
    """Also where nobody could count labels, which a student_loss of its own has no use for."""
    mapping = {**INPUTS, "labels": "labels", "mask": "output:mask", "causal": False}
    found = trained_without_targets(3, {name: 1.0}, mapping, Returning(name))
    net = Returning(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for batch in uneven.user_loader(3):
        (net(batch["input_ids"], batch["attention_mask"])["loss"][name] / 4).backward()
    optimizer.step()
    assert_same(found, small.weights(net))


def test_labels_of_the_users_batches_that_only_the_model_can_count():
    mapping = {**INPUTS, "labels": "labels", "mask": "output:mask", "causal": False}
    with pytest.raises(UsageError, match="cannot be counted before the model has run"):
        trained_without_targets(3, {"student_loss": 1.0}, mapping, Returning("router"))


def test_ranks_that_do_not_accumulate_add_up_what_they_have():
    """Without a window, each step's own positions, labels and batches."""
    summed = []

    def reduce(counts, reduce_op):
        summed.append(counts.tolist())
        return counts * 2

    trainer = SimpleNamespace(
        accumulate_grad_batches=1, world_size=2, strategy=SimpleNamespace(reduce=reduce)
    )
    batch = uneven.collate(SAMPLES)
    output = forward(uneven.student(), BatchMapping(labels="labels", causal=True), batch)
    counts = StepCounter(needs_labels=True)(trainer, None, output)
    labelled = int((output.labels != -100).sum())
    assert 0 < labelled < output.num_rows
    assert summed == [[output.num_rows, labelled, 12, 1]]
    assert (counts.positions, counts.labelled, counts.batches) == (
        2 * output.num_rows, 2 * labelled, 2
    )  # fmt: skip


def test_labels_that_only_the_model_can_count_are_not_accumulated(tmp_path):
    mapping = {**INPUTS, "labels": "labels", "mask": "output:mask", "causal": False}
    user = uneven.user_loader(3)
    cache = kdcache.dump_teacher(
        Masked(), user, tmp_path / "t.zarr", batch=mapping, accelerator="cpu", progress=False
    )
    for losses, accumulate in ((uneven.LOSSES, 1), ({"kd_loss": 1.0}, 2), (uneven.LOSSES, 2)):
        module = kdcache.StudentModule(Masked(), losses=losses, batch=mapping)
        joined = small.joined_loader(cache, user=user, collate_fn=uneven.collate, batch=mapping)
        trainer = small.trainer(accumulate_grad_batches=accumulate)
        if len(losses) == 1 or accumulate == 1:
            trainer.fit(module, module.windowed(joined))
            continue
        with pytest.raises(UsageError, match="cannot be counted before the model has run"):
            trainer.fit(module, module.windowed(joined))
