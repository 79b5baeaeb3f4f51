"""Labels that changed since the dump are counted; hidden, absent and moved ones are no change."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import kdcache
from kdcache.data.join.probes import check_join
from kdcache.data.samples.label_digests import NUM_KEPT, ChangedLabels, digest_labels, from_commits
from kdcache.errors import CacheCorruptedError
from kdcache.store import open_cache
from kdcache.tools.merge import merge_caches
from tests.data import toys
from tests.store.synthetic import edit_record

IGNORED = -100


def samples_of(number, seed=0):
    """(x, y) with labels that have nothing to do with the teacher: no change of them moves it."""
    labels = np.random.default_rng(seed).integers(toys.NUM_CLASSES, size=number).tolist()
    return list(zip(toys.vectors(number), labels, strict=True))


def relabelled(samples, numbers):
    """The same inputs; some labels are the next class."""
    return [
        (x, (y + 1) % toys.NUM_CLASSES if number in numbers else y)
        for number, (x, y) in enumerate(samples)
    ]


@pytest.fixture
def said(caplog):
    """What a student's start-up says of labels, joined with a cache."""

    def look(data, cache, **options):
        kind = kdcache.CachedStream if isinstance(data, IterableDataset) else kdcache.CachedDataset
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="kdcache"):
            check_join(kind(data, cache, **options))
        lines = [r.getMessage() for r in caplog.records if "labels" in r.getMessage()]
        assert len(lines) <= 1
        return "".join(lines)

    return look


def joined(samples):
    return toys.Samples(samples)


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


SAMPLES = samples_of(60)
CHANGED = (3, 17, 18, 40, 59)


class TestChanged:
    @pytest.mark.parametrize("key", ["index", "content"])
    def test_the_number_and_the_first_are_said(self, cache, said, key):
        toys.dump(cache, SAMPLES, key=key)
        text = said(joined(relabelled(SAMPLES, CHANGED)), cache)
        assert "split 'train': 5 of 60 probed samples have other labels than at the dump" in text
        assert "the first is sample 3" in text

    def test_of_a_large_dataset_those_that_are_probed(self, cache, said):
        samples = samples_of(3000)
        toys.dump(cache, toys.loader(samples, batch_size=100), samples_per_shard=300)
        assert len(from_commits(open_cache(cache)["train"].commits)) == NUM_KEPT
        text = said(joined(relabelled(samples, range(3000))), cache)
        assert f"{NUM_KEPT:,} of {NUM_KEPT:,} probed" in text
        assert said(joined(samples), cache) == ""

    def test_in_a_part_in_another_order(self, cache, said):
        toys.dump(cache, SAMPLES, key="content")
        part = relabelled(SAMPLES, CHANGED)[:50]
        order = np.random.default_rng(0).permutation(50).tolist()
        text = said(joined([part[number] for number in order]), cache)
        assert "4 of 50 probed samples" in text

    def test_of_a_stream(self, cache, said):
        toys.dump(cache, toys.loader(Stream(SAMPLES)), key="content")
        assert "5 of 60" in said(Stream(relabelled(SAMPLES, CHANGED)[::-1]), cache)

    def test_in_a_dataset_that_has_grown(self, cache, said):
        toys.dump(cache, SAMPLES[:30])
        toys.dump(cache, SAMPLES, extend=True)
        assert "5 of 60" in said(joined(relabelled(SAMPLES, CHANGED)), cache)

    def test_after_a_merge(self, cache, said):
        for name, part in (("a", SAMPLES[:30]), ("b", SAMPLES[30:])):
            toys.dump(cache.with_name(name), part, key="content")
        merge_caches([cache.with_name("a"), cache.with_name("b")], cache)
        assert "5 of 60" in said(joined(relabelled(SAMPLES, CHANGED)), cache)

    def test_of_a_validation_set(self, cache, said):
        toys.dump(cache, {"train": toys.loader(SAMPLES), "val": toys.loader(SAMPLES[:20])})
        text = said(joined(relabelled(SAMPLES[:20], (3,))), cache, split="val")
        assert "split 'val': 1 of 20" in text

    def test_one_token(self, cache, said):
        """Of padded sequences, in batches of another size."""
        self.dump_tokens(cache)
        changed = list(toys.Tokens())
        changed[2] = {**changed[2], "labels": changed[2]["labels"].clone()}
        changed[2]["labels"][4] = (changed[2]["labels"][4] + 1) % toys.NUM_CLASSES
        text = said(joined(changed), cache, collate_fn=toys.pad_left)
        assert "1 of 10 probed samples" in text  # one of the eleven has no token

    @staticmethod
    def dump_tokens(cache):
        loader = toys.loader(toys.Tokens(), collate_fn=toys.pad_right)
        toys.dump(cache, loader, toys.TokenTeacher(), fingerprint="field:input_ids")

    def test_a_part_of_the_tokens_is_hidden(self, cache, said):
        self.dump_tokens(cache)
        hidden = [{**sample, "labels": sample["labels"].clone()} for sample in toys.Tokens()]
        for sample in hidden:
            sample["labels"][1::2] = IGNORED
        assert said(joined(hidden), cache, collate_fn=toys.pad_right) == ""
        hidden[0]["labels"][0] = IGNORED
        assert said(joined(hidden), cache, collate_fn=toys.pad_left) == ""


class TestNoChange:
    @pytest.mark.parametrize("key", ["index", "content"])
    def test_the_same(self, cache, said, key):
        toys.dump(cache, SAMPLES, key=key)
        assert said(joined(SAMPLES), cache) == ""

    @pytest.mark.parametrize("number", [1, 30, 60])
    def test_hidden_from_the_student(self, cache, said, number):
        toys.dump(cache, SAMPLES)
        hidden = [(x, IGNORED if n < number else y) for n, (x, y) in enumerate(SAMPLES)]
        assert said(joined(hidden), cache) == ""

    def test_that_only_the_student_has(self, cache, said):
        toys.dump(cache, [(x, IGNORED if n % 2 else y) for n, (x, y) in enumerate(SAMPLES)])
        assert said(joined(SAMPLES), cache) == ""

    def test_none_at_the_dump(self, cache, said):
        toys.dump(cache, toys.loader([x for x, _ in SAMPLES]), fingerprint="sample")
        assert all(not commit.labels for commit in open_cache(cache)["train"].commits)
        assert said(joined([x for x, _ in SAMPLES]), cache) == ""

    def test_none_of_the_student(self, cache, said):
        toys.dump(cache, SAMPLES)
        assert said(joined([(x,) for x, _ in SAMPLES]), cache) == ""

    def test_of_another_type(self, cache, said):
        toys.dump(cache, SAMPLES)
        small = [(x, torch.tensor(y, dtype=torch.int16)) for x, y in SAMPLES]
        assert said(joined(small), cache) == ""

    def test_equal_samples_with_labels_of_their_own(self, cache, said):
        """By content they share the first one's targets, and its label is not the other's."""
        twins = [*SAMPLES[:40], *relabelled(SAMPLES[:20], range(20))]
        toys.dump(cache, twins, key="content")
        assert said(joined(twins), cache) == ""
        assert "1 of 60" in said(joined(relabelled(twins, (5, 30))), cache)

    def test_in_batches_and_padding_of_another_kind(self, cache, said):
        TestChanged.dump_tokens(cache)
        assert said(toys.Tokens(), cache, collate_fn=toys.pad_left) == ""

    def test_resumed_and_in_parts(self, cache, said):
        for part in ("0/2", "1/2"):
            toys.dump(cache, SAMPLES, part=part)
        assert len(from_commits(open_cache(cache)["train"].commits)) == 60
        assert said(joined(SAMPLES), cache) == ""

    def test_labels_that_are_no_class_of_a_position(self, cache, said):
        """Soft labels, which nothing is compared for."""
        soft = [(x, torch.full((toys.NUM_CLASSES,), 1 / toys.NUM_CLASSES)) for x, _ in SAMPLES]
        toys.dump(cache, soft)
        assert said(joined(SAMPLES), cache) == ""


class TestRecords:
    def test_a_label_more_costs_few_bytes(self, tmp_path):
        sizes = []
        for name, samples in (("a", SAMPLES), ("b", [(x, IGNORED) for x, _ in SAMPLES])):
            view = toys.dump(tmp_path / name, samples)["train"]
            sizes.append(sum(p.stat().st_size for p in (view.folder / "commits").iterdir()))
        assert sizes[0] - sizes[1] < 60 * 4 + 8 * 64

    @pytest.mark.parametrize(
        "labels",
        [
            {"values": "00"}, {"values": "zz" * 16}, {"values": 3}, {"samples": [0]},
            {"values": "0000", "samples": [8]}, {"values": "0000", "samples": ["0"]},
            {"values": "0000", "samples": [0], "places": "0"}, {"values": "-000", "samples": [0]},
        ],
    )  # fmt: skip
    def test_that_cannot_be(self, cache, labels):
        view = toys.dump(cache, SAMPLES)["train"]
        (view.folder / "index.json").unlink()
        record = view.folder / "commits" / "shard-000000.json"
        edit_record(record, lambda value: {**value, "labels": labels})
        with pytest.raises(CacheCorruptedError, match="labels of shard 0"):
            ChangedLabels(open_cache(cache)["train"].commits)

    def test_digests_tell_labels_and_places_apart(self):
        rows = [[], [0], [1], [IGNORED], [0, IGNORED], [IGNORED, 0], [0, 0], [0, 1], [1, 0]]
        found = [digest_labels(np.asarray(row, np.int64)) for row in rows]
        assert (found[0], found[1]) == (found[3], found[4])
        assert len(set(found)) == len(rows) - 2
        assert found[1].places == found[2].places != found[5].places

    def test_dropped_labels_leave_the_digest_of_the_targets_alone(self, tmp_path):
        """Labels are no part of what the view's digest is of, as statistics are not."""
        first, second = (
            toys.dump(tmp_path / name, samples)["train"]
            for name, samples in (("a", SAMPLES), ("b", relabelled(SAMPLES, CHANGED)))
        )
        assert first.digest == second.digest


def test_the_student_says_it(cache, tmp_path, caplog):
    toys.dump(cache, SAMPLES)
    kdcache.train_student(
        nn.Linear(toys.WIDTH, toys.NUM_CLASSES),
        toys.loader(relabelled(SAMPLES, CHANGED)),
        cache,
        trainer={"max_steps": 1},
        output=tmp_path / "out",
    )
    assert "5 of 60 probed samples have other labels" in caplog.text
