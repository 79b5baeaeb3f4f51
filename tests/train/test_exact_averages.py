"""One optimiser step is one joint batch, however it was cut into micro-batches and ranks."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DistributedSampler

import kdcache
from kdcache.errors import UsageError
from tests.data.sequences import PACKED, CausalNet, loader
from tests.train import small, uneven
from tests.train.uneven import SAMPLES, expected, trained

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
    """Lightning deals out samples with a sampler of its own: batches of 2, two of them a step and
    rank, so 8 samples together, then the last 4."""
    # Seeds the sampler, where another test of this process has seeded everything.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PL_GLOBAL_SEED": "0"}
    subprocess.run(
        [sys.executable, str(Path(uneven.__file__)), str(token_cache.path), str(tmp_path / "w.pt")],
        check=True,
        env=environment,
        timeout=240,
        capture_output=True,
    )
    found = torch.load(tmp_path / "w.pt", weights_only=True)
    dealt = [list(DistributedSampler(SAMPLES, 2, rank, seed=0)) for rank in range(2)]
    steps = [[SAMPLES[n] for one in dealt for n in one[part]] for part in (slice(4), slice(4, 6))]
    assert [len(step) for step in steps] == [8, 4]
    assert_same(found, expected(*steps))


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


def test_labels_that_only_the_model_can_count_are_not_accumulated(tmp_path):
    mapping = {
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"},
        "labels": "labels",
        "mask": "output:mask",
        "causal": False,
    }
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
