"""Keys other than the number: samples find their targets wherever they now stand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from kdcache import CachedDataset
from kdcache.data.samples.keys import CONTENT, KeyIndex, check_key_source, field_key
from kdcache.errors import AlignmentError, DataError, FingerprintMismatchError, UsageError
from tests.data import toys

N = 20
PAIRS = toys.labelled(N)
RECORDS = [{"x": x, "name": f"image {n}", "y": y} for n, (x, y) in enumerate(PAIRS)]
FIELDS = {"inputs": ["x"], "labels": "y"}


def live(batch):
    return toys.make_teacher()(batch["x"]), torch.ones(len(batch["x"]))


class TestContent:
    @pytest.fixture
    def dumped(self, cache):
        return toys.dump(cache, PAIRS, key="content")

    @pytest.mark.parametrize(
        "numbers",
        [range(N), range(N - 1, -1, -1), [4, 4, 19, 0, 4], [3]],
        ids=["same", "reversed", "duplicates", "one"],
    )
    def test_subset_order_and_repeats_are_free(self, dumped, numbers):
        joined = CachedDataset(Subset(toys.Samples(PAIRS), list(numbers)), dumped)
        toys.assert_joined_equals_live(toys.joined_loader(joined, shuffle=True), toys.live_linear)

    def test_other_labels_are_no_other_content(self, dumped):
        joined = CachedDataset(toys.Samples([(x, 0) for x, _ in PAIRS]), dumped)
        toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)

    def test_what_was_never_dumped(self, dumped):
        others = [*PAIRS[:5], (torch.zeros(toys.WIDTH), 0)]
        joined = CachedDataset(toys.Samples(others), dumped)
        with pytest.raises(AlignmentError, match=r"sample 5 is not in split 'train'.*\n.*edited"):
            joined.__getitems__(range(6))

    def test_duplicates_in_the_dumped_dataset_share_targets(self, cache):
        toys.dump(cache, [*PAIRS, *PAIRS], key="content")
        joined = CachedDataset(toys.Samples(PAIRS), cache)
        toys.assert_joined_equals_live(toys.joined_loader(joined), toys.live_linear)


class TestField:
    @pytest.fixture
    def dumped(self, cache):
        return toys.dump(cache, RECORDS, batch=FIELDS, key="field:name")

    def test_reordered_subset(self, dumped):
        order = [7, 3, 19, 3]
        joined = CachedDataset(toys.Samples([RECORDS[n] for n in order]), dumped, batch=FIELDS)
        toys.assert_joined_equals_live(toys.joined_loader(joined), live)

    def test_other_content_under_the_same_name(self, dumped):
        edited = {**RECORDS[3], "x": RECORDS[3]["x"] + 1e-6}
        joined = CachedDataset(toys.Samples([RECORDS[5], edited]), dumped, batch=FIELDS)
        with pytest.raises(
            FingerprintMismatchError, match=r"sample 1 of split 'train'.*\n.*edited"
        ):
            joined.__getitems__([0, 1])

    def test_swapped_names_are_not_called_a_reordered_dataset(self, dumped):
        swapped = [{**RECORDS[1], "name": "image 0"}]
        joined = CachedDataset(toys.Samples(swapped), dumped, batch=FIELDS)
        with pytest.raises(FingerprintMismatchError) as caught:
            joined.__getitems__([0])
        assert "reordered" not in str(caught.value)

    def test_a_name_that_was_never_dumped(self, dumped):
        other = {**RECORDS[0], "name": "image 99"}
        joined = CachedDataset(toys.Samples([other]), dumped, batch=FIELDS)
        with pytest.raises(AlignmentError, match=r"sample 0 is not in .*field:name"):
            joined.__getitems__([0])

    def test_a_field_that_is_not_unique_is_refused_before_the_dump(self, cache):
        with pytest.raises(AlignmentError, match=r"samples \d+ and \d+ have the same key"):
            toys.dump(cache, RECORDS, batch=FIELDS, key="field:y")
        assert not cache.exists()

    def test_two_equal_keys_that_no_probe_saw_are_found_at_the_join(self, cache):
        many = [{"x": x, "name": n} for n, x in enumerate(toys.vectors(200))]
        many[101]["name"] = 100
        toys.dump(cache, many, batch={"inputs": ["x"]}, key="field:name")
        joined = CachedDataset(toys.Samples(many), cache, batch={"inputs": ["x"]})
        with pytest.raises(AlignmentError, match="samples 100 and 101 have the same key"):
            joined.__getitems__([0])

    def test_no_such_field(self, cache):
        with pytest.raises(DataError, match=r"key field 'nmae' leads nowhere.*Did you mean 'name'"):
            toys.dump(cache, RECORDS, batch=FIELDS, key="field:nmae")


def test_a_key_source_that_is_none():
    with pytest.raises(UsageError, match="Did you mean 'content'"):
        check_key_source("contents")


def test_field_keys_follow_the_value():
    assert field_key("field:a.0", {"a": [5]}) != field_key("field:a.0", {"a": [6]})


def test_rows_of_keys():
    index = KeyIndex(np.asarray([9, 2, 7, 2], np.uint64), CONTENT)
    assert index.rows(np.asarray([2, 8, 9, 7, 0, 100], np.uint64)).tolist() == [1, -1, 0, 2, -1, -1]


class TestFingerprintOfAField:
    """What counts as seen is the user's choice: raw bytes or ids instead of decoded pixels."""

    RAW = tuple({**record, "raw": bytes([n] * 9)} for n, record in enumerate(RECORDS))

    def test_decoding_may_differ_but_the_field_not(self, cache):
        toys.dump(cache, list(self.RAW), batch=FIELDS, fingerprint="field:raw")
        decoded = [{**record, "x": record["x"] + 1e-6} for record in self.RAW]
        joined = CachedDataset(toys.Samples(decoded), cache, batch=FIELDS)
        assert len(list(toys.joined_loader(joined))) == 7
        edited = [{**record, "raw": record["raw"][::-1] + b"!"} for record in self.RAW]
        joined = CachedDataset(toys.Samples(edited), cache, batch=FIELDS)
        with pytest.raises(FingerprintMismatchError, match="sample 4"):
            joined.__getitems__([4])

    def test_a_field_that_is_not_there(self, cache):
        with pytest.raises(DataError, match="leads nowhere"):
            toys.dump(cache, list(self.RAW), batch=FIELDS, fingerprint="field:rwa")
        assert not cache.exists()
