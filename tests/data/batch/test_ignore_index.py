"""``batch: {ignore_index: 255}``: void pixels are to be as if they carried -100, in both stages."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import kdcache
from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.batch.section import parse_mapping
from kdcache.errors import DataError, UsageError
from tests.data import toys
from tests.train import small

N, SIDE, CLASSES, VOID = 10, 6, 4, 255
SPEC = {"class_dim": 1, "ignore_index": VOID}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Segmenter(nn.Conv2d):
    """(B, 3, H, W) -> (B, C, H, W)."""

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(3, CLASSES, 3, padding=1)


def masks(dtype, void):
    """(N, H, W) with a border of void pixels; sample 3 is void as a whole."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(CLASSES, (N, SIDE, SIDE), generator=generator)
    found[:, 0], found[:, :, -1], found[3] = void, void, void
    return found.to(dtype)


def loader(labels, batch_size=4):
    images = torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return toys.loader(list(zip(images, labels, strict=True)), batch_size)


def run(folder, labels, spec, *, batch_size=4, **options):
    """A dump and a training with every loss and a validation: what came out, and the cache."""
    source = loader(labels, batch_size)
    cache = toys.dump(folder / "t.zarr", {"train": source, "test": source}, Segmenter(), batch=spec)
    found = kdcache.train_student(
        Segmenter(1),
        small.Data(source, test=source),
        folder / "t.zarr",
        batch=spec,
        losses={"kd_loss": 0.5, "student_loss": 0.5},
        output=folder / "run",
        progress=False,
        trainer={"max_epochs": 2, "accelerator": "cpu", **options},
    )
    return found, cache["train"]


@pytest.mark.parametrize("mask", [None, "labelled"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
def test_both_stages_are_those_of_labels_with_minus_100(tmp_path, dtype, mask):
    """Sample 3 has no label; with the mask ``labelled`` it has no position either."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    spec = SPEC | ({"mask": mask} if mask else {})
    found, view = run(tmp_path / "a", masks(dtype, VOID), spec)
    wanted, other = run(tmp_path / "b", masks(torch.int64, -100), {**spec, "ignore_index": -100})
    assert found.metrics == wanted.metrics
    assert [c.statistics for c in view.commits] == [c.statistics for c in other.commits]
    totals = [sum(c.statistics[name] for c in view.commits) for name in ("positions", "labelled")]
    num_labelled = (N - 1) * (SIDE - 1) ** 2
    assert totals == [num_labelled if mask else N * SIDE**2, num_labelled]


def test_batches_that_are_void_as_a_whole(tmp_path):
    found, view = run(
        tmp_path, masks(torch.uint8, VOID), {**SPEC, "mask": "labelled"}, batch_size=1
    )
    assert all(map(torch.isfinite, map(torch.tensor, found.metrics.values())))
    joined = kdcache.CachedDataset(
        loader(masks(torch.uint8, VOID)).dataset, view, batch={**SPEC, "mask": "labelled"}
    )
    assert joined.collate_fn(joined.__getitems__([3])).targets.num_positions.tolist() == [0]


def test_each_side_may_have_its_own(tmp_path):
    """The student's labels mark void pixels by another number than the teacher's."""
    spec = {"teacher": SPEC, "student": {**SPEC, "ignore_index": 200}}
    toys.dump(tmp_path / "t.zarr", loader(masks(torch.uint8, VOID)), Segmenter(), batch=spec)
    for void, is_said in ((200, True), (VOID, False)):
        dataset = loader(masks(torch.uint8, void)).dataset
        joined = kdcache.CachedDataset(dataset, tmp_path / "t.zarr", batch=spec)
        samples = joined.__getitems__([0, 3])
        with contextlib.nullcontext() if is_said else pytest.raises(DataError, match="label 255"):
            joined.collate_fn(samples)


def test_without_it_the_refusal_says_it(tmp_path):
    with pytest.raises(DataError, match=r"sample 0 has the label 255.*batch: \{ignore_index: 255}"):
        toys.dump(
            tmp_path / "t.zarr",
            loader(masks(torch.uint8, VOID)),
            Segmenter(),
            batch={"class_dim": 1},
        )


def test_other_labels_that_are_no_class_are_still_refused(tmp_path):
    labels = masks(torch.uint8, VOID)
    labels[5, 2, 2] = 254
    with pytest.raises(DataError, match="sample 5 has the label 254"):
        toys.dump(tmp_path / "t.zarr", loader(labels), Segmenter(), batch=SPEC)


def test_with_causal_labels_shift_with_it():
    """Of labels that a collator padded with 0, next to the shift by one token."""
    ids = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 4, 3, 2]], dtype=torch.uint8)
    mapping = BatchMapping(
        inputs={"input_ids": "input_ids"},
        labels="labels",
        mask="labelled",
        causal=True,
        ignore_index=0,
    )
    found = mapping.select({"input_ids": ids, "labels": ids})
    assert found.labels.tolist() == [[6, 7, -100, -100, -100], [9, 4, 3, 2, -100]]
    assert found.mask.sum(1).tolist() == [2, 4]


def test_the_users_own_batch_is_left_alone():
    batch = (torch.zeros(2, 3), torch.tensor([1, 255], dtype=torch.uint8))
    mapping = BatchMapping(ignore_index=VOID).resolve(batch)
    assert mapping.select(batch).labels.tolist() == [1, -100]
    assert batch[1].tolist() == [1, 255]


@pytest.mark.parametrize("labels", [None, torch.tensor([0.5, 255.0]), torch.tensor([True, False])])
def test_labels_that_are_no_class_numbers_are_left_alone(labels):
    batch = (torch.zeros(2, 3), labels)
    mapping = BatchMapping(inputs=[0], labels=1, ignore_index=1)
    assert mapping.select(batch).labels is labels


def test_the_description_mentions_it_only_where_it_was_asked_for():
    plain = BatchMapping(inputs=[0]).describe()
    assert BatchMapping(inputs=[0], ignore_index=-100).describe() == plain
    assert BatchMapping(inputs=[0], ignore_index=255).describe() == f"{plain} ignore_index=255"


@pytest.mark.parametrize("value", ["255", 255.0, True, [255]])
def test_another_kind_of_value_is_refused(value):
    with pytest.raises(UsageError, match=r"batch\.ignore_index is the label that marks none"):
        parse_mapping({"ignore_index": value}, "teacher")
