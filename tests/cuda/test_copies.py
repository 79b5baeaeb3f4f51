"""Batches on their way to the device: pinned, without waits, beside what it computes."""

import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch.utils.data import DataLoader

import kdcache
from kdcache.dump.preparation.teacher import TeacherForward
from tests.train import small

CODECS = {"dense": kdcache.DenseCodec(), "topk": kdcache.TopKCodec(k=3)}


@pytest.fixture(params=CODECS)
def joined(request, tmp_path):
    """A loader of joined batches that pins."""
    cache = kdcache.dump_teacher(
        small.net(7),
        small.loader(),
        tmp_path / "teacher.zarr",
        codec=CODECS[request.param],
        accelerator="cpu",
        progress=False,
    )
    user = DataLoader(small.dataset(small.NUM_TRAIN), batch_size=16, pin_memory=True)
    return kdcache.CachedDataset(user.dataset, cache["train"]).loader_like(user)


def leaves(batch):
    """Every tensor of a joined batch, by name."""
    (inputs, labels), targets = batch
    own = {name: value for name, value in vars(targets).items() if isinstance(value, torch.Tensor)}
    return {"inputs": inputs, "labels": labels, **own}


def test_a_loader_pins_targets_and_batch(joined):
    for batch in joined:
        assert {name for name, value in leaves(batch).items() if not value.is_pinned()} == set()


def test_a_dumps_loader_pins_what_the_teacher_gets(tmp_path, monkeypatch):
    pinned = []
    run = TeacherForward.__call__

    def spy(self, batch):
        pinned.append(all(value.is_pinned() for value in batch))
        return run(self, batch)

    monkeypatch.setattr(TeacherForward, "__call__", spy)
    user = DataLoader(small.dataset(64), batch_size=16, pin_memory=True)
    options = {"accelerator": "cuda", "pilot": False, "progress": False}
    kdcache.dump_teacher(small.net(7), user, tmp_path / "teacher.zarr", **options)
    # Before them the teacher is looked at once, with a batch that no loader made.
    assert pinned[-4:] == [True] * 4


def test_pinned_batches_move_without_a_wait(joined, no_waits, device):
    for batch in joined:
        wanted = leaves(batch)
        with no_waits:
            moved = move_data_to_device(batch, torch.device(device, 0))
        found = leaves(moved)
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            assert value.is_cuda, name
            assert torch.equal(value.cpu(), wanted[name]), name


def test_copies_beside_the_computation(joined, device):
    """On a stream of their own, one batch ahead of the step, as prefetchers do it."""
    copies = torch.cuda.Stream()
    work = torch.randn(2048, 2048, device=device)
    found, wanted = [], []
    for batch in joined:
        wanted.append({name: value.clone() for name, value in leaves(batch).items()})
        with torch.cuda.stream(copies):
            (inputs, labels), targets = batch
            moved = kdcache.JoinedBatch(
                [value.to(device, non_blocking=True) for value in (inputs, labels)],
                targets.to(device, non_blocking=True),
            )
        del batch, inputs, labels, targets  # pinned memory may be used again once it is copied
        for _ in range(8):
            work = (work @ work).clamp(-1, 1)
        torch.cuda.current_stream().wait_stream(copies)
        for value in leaves(moved).values():
            value.record_stream(torch.cuda.current_stream())
        found.append({name: value.clone() for name, value in leaves(moved).items()})
    assert len(found) == small.NUM_TRAIN // 16
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(one[name].cpu(), other[name]) for name in other)
