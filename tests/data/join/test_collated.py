"""A change inside collate_fn passes every fingerprint; the reference samples tell of it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

import kdcache
from kdcache.data.join.probes import check_join
from kdcache.errors import AlignmentError
from tests.data import toys

N = 48


def pairs(samples):
    return default_collate(samples)


def changed(change, target=0):
    def collate(samples):
        batch = list(default_collate(samples))
        batch[target] = change(batch[target])
        return tuple(batch)

    return collate


CHANGES = {
    "a flip": lambda x: x.flip(-1),
    "another mean": lambda x: x - 0.5,
    "another scale": lambda x: x * 1.1,
    "one value": lambda x: x.index_fill(-1, torch.tensor([2]), 0.0),
    "rolled": lambda x: x.roll(1, dims=-1),
}
HARMLESS = {
    "the same": lambda x: x,
    "a copy": lambda x: x.clone(),
    "negative zeros": lambda x: x * 1.0 - 0.0,
}


def dumped(path, samples=None, collate=pairs, **options):
    samples = toys.labelled(N) if samples is None else samples
    loader = DataLoader(toys.Samples(samples), batch_size=4, collate_fn=collate)
    return toys.dump(path, loader, **options)


def joined(cache, collate, samples=None, **options):
    samples = toys.Samples(toys.labelled(N) if samples is None else samples)
    return kdcache.CachedDataset(samples, cache["train"], collate_fn=collate, **options)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("key", ["index", "content"])
def test_another_collation_is_refused_before_the_first_step(tmp_path, name, key):
    cache = dumped(tmp_path / "t.zarr", key=key)
    with pytest.raises(AlignmentError, match=r"sample \d+, collated alone, is not what"):
        check_join(joined(cache, changed(CHANGES[name])))


@pytest.mark.parametrize("name", CHANGES)
def test_a_plain_loop_is_told_too(tmp_path, name):
    cache = dumped(tmp_path / "t.zarr")
    with pytest.raises(AlignmentError, match=r"test_collated.changed.*collate"):
        next(iter(toys.joined_loader(joined(cache, changed(CHANGES[name])))))


@pytest.mark.parametrize("name", HARMLESS)
def test_another_function_with_the_same_effect(tmp_path, name, caplog):
    cache = dumped(tmp_path / "t.zarr")
    check_join(joined(cache, changed(HARMLESS[name])))
    assert "collated alone" not in caplog.text


def test_labels_may_be_collated_otherwise(tmp_path, caplog):
    cache = dumped(tmp_path / "t.zarr")
    check_join(joined(cache, changed(lambda y: torch.where(y == 0, -100, y), target=1)))
    assert "collated alone" not in caplog.text


def test_a_subset_of_a_cache_keyed_by_content(tmp_path):
    samples = toys.labelled(N)
    cache = dumped(tmp_path / "t.zarr", key="content")
    part = samples[N // 2 :] + samples[: N // 4]
    check_join(joined(cache, pairs, part))
    with pytest.raises(AlignmentError, match="collated alone"):
        check_join(joined(cache, changed(CHANGES["a flip"]), part))


def test_a_student_that_sees_another_form_is_warned(tmp_path, caplog):
    cache = dumped(tmp_path / "t.zarr")
    check_join(joined(cache, changed(lambda x: x[..., :2])))
    assert "shape of input 0 was [1, 4], is [1, 2]" in caplog.text
    caplog.clear()
    check_join(joined(cache, changed(lambda x: x.double())))
    assert "dtype of input 0 was float32, is float64" in caplog.text


def test_low_bits_are_another_processors(tmp_path, caplog):
    cache = dumped(tmp_path / "t.zarr")
    check_join(joined(cache, changed(lambda x: x * (1 + 1e-5))))
    assert "differ by up to" in caplog.text


def names(samples, *, flip=False, drop=False):
    x, y = default_collate(samples)
    batch = {"large": x, "small": x[:, :2].flip(-1) if flip else x[:, :2], "label": y}
    if drop:
        del batch["large"]
    return batch


LARGE = {"inputs": ["large"], "labels": "label"}
SMALL = {"inputs": ["small"], "labels": "label"}


def test_teacher_and_student_take_other_leaves(tmp_path, caplog):
    cache = dumped(tmp_path / "t.zarr", collate=names, batch=LARGE)
    check_join(joined(cache, names, batch=SMALL))
    # What only the student sees is its own affair, and what is gone cannot be compared.
    check_join(joined(cache, lambda s: names(s, flip=True), batch=SMALL))
    check_join(joined(cache, lambda s: names(s, drop=True), batch=SMALL))
    assert "collated alone" not in caplog.text


def test_padding_alone_is_no_other_input(tmp_path):
    """One by one, dynamic padding pads nothing, whatever batches are made of."""
    data = toys.Tokens()
    batch = None
    loader = DataLoader(data, batch_size=4, collate_fn=toys.pad_right)
    cache = kdcache.dump_teacher(
        toys.TokenTeacher(), loader, tmp_path / "t.zarr", batch=batch, progress=False
    )
    other = kdcache.CachedDataset(data, cache["train"], batch=batch, collate_fn=toys.pad_left)
    check_join(other)


def test_an_older_cache_has_nothing_to_compare(tmp_path, monkeypatch):
    cache = dumped(tmp_path / "t.zarr")
    found = joined(cache, changed(CHANGES["a flip"]))
    for reference in found.view.manifest.references:
        del reference["collated"]
    check_join(found)


def test_the_override_takes_all_of_it(tmp_path):
    cache = dumped(tmp_path / "t.zarr")
    found = joined(cache, changed(CHANGES["a flip"]), check_fingerprints=False)
    assert next(iter(toys.joined_loader(found))) is not None


def with_ids(samples, field):
    return [{"x": x, "y": y, "id": field(n)} for n, (x, y) in enumerate(samples)]


FIELDS = {"inputs": {"input": "x"}, "labels": "y"}


def field_dump(path, field, **options):
    loader = DataLoader(toys.Samples(with_ids(toys.labelled(N), field)), batch_size=4)
    return toys.dump(path, loader, batch=FIELDS, **options)


def test_a_fingerprint_that_is_the_same_for_all_is_refused(tmp_path):
    from kdcache.errors import UsageError

    with pytest.raises(UsageError, match="'field:id' is the same for all 32 samples"):
        field_dump(tmp_path / "t.zarr", lambda n: 7, fingerprint="field:id")
    with pytest.raises(UsageError, match="is the same for all"):
        field_dump(tmp_path / "t.zarr", lambda n: n, fingerprint=lambda sample: 1)
    assert not (tmp_path / "t.zarr").exists()


def test_one_that_tells_few_apart_is_warned_of(tmp_path, caplog):
    field_dump(tmp_path / "t.zarr", lambda n: n % 3, fingerprint="field:id")
    assert "has 3 values for 32 samples that differ" in caplog.text


@pytest.mark.parametrize(
    ("samples", "fingerprint"),
    [
        (lambda: [toys.labelled(1)[0]] * N, "inputs"),  # all samples are alike
        (lambda: [toys.labelled(1)[0]] * N, "field:0"),
        (lambda: toys.labelled(N), "field:0"),
        (lambda: toys.labelled(N), "sample"),
        (lambda: toys.labelled(1), "field:0"),
    ],
)
def test_what_may_agree(tmp_path, samples, fingerprint, caplog):
    dumped(tmp_path / "t.zarr", samples(), fingerprint=fingerprint)
    assert "has 1 values" not in caplog.text


def test_an_older_cache_with_one_fingerprint_is_warned_of(tmp_path, monkeypatch, caplog):
    from kdcache.dump.preparation import plan

    monkeypatch.setattr(plan, "check_distinct", lambda *_: "")
    cache = field_dump(tmp_path / "t.zarr", lambda n: 7, fingerprint="field:id")
    samples = toys.Samples(with_ids(toys.labelled(N), lambda n: 7))
    caplog.set_level(logging.WARNING, "kdcache")
    check_join(kdcache.CachedDataset(samples, cache["train"], batch=FIELDS))
    assert "all 48 samples of the cache have one fingerprint (field:id)" in caplog.text


def test_a_function_that_needs_several_samples(tmp_path):
    def several(samples):
        assert len(samples) > 1
        return default_collate(samples)

    cache = dumped(tmp_path / "t.zarr", collate=several)
    assert all("collated" not in one for one in cache["train"].manifest.references)
    check_join(joined(cache, several))
    check_join(joined(dumped(tmp_path / "other.zarr"), several))
