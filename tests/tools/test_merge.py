"""Several caches as one: nothing is decoded anew, all samples are found, no disagreement."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import ConcatDataset

import kdcache
from kdcache.cli import main
from kdcache.errors import AlignmentError, CacheError, MismatchError, UsageError
from kdcache.store import open_cache
from kdcache.store.format.arrays import object_file
from kdcache.tools import merge
from kdcache.tools.merge import merge_caches
from kdcache.tools.verify import verify_cache
from tests.data import toys

SAMPLES = toys.labelled(60)


def dump(folder, samples, **options):
    return toys.dump(folder, samples, key="content", **options).path


def assert_right(cache, samples):
    joined = kdcache.CachedDataset(toys.Samples(samples), cache)
    toys.assert_joined_equals_live(toys.joined_loader(joined, shuffle=True), toys.live_linear)


@pytest.mark.parametrize("lengths", [(20, 40), (24, 33, 50), (8, 16), (1, 2, 3), (40, 60)])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (4, 12, 8)])
def test_every_sample_is_found(tmp_path, lengths, sizes):
    starts = (0, *lengths[:-1])
    parts = [
        dump(tmp_path / str(stop), SAMPLES[start:stop], samples_per_shard=size)
        for start, stop, size in zip(starts, lengths, sizes, strict=False)
    ]
    merged = merge_caches(parts, tmp_path / "all")
    assert merged["train"].manifest.num_samples == lengths[-1]
    assert verify_cache(merged.path).is_sound
    assert_right(merged, SAMPLES[: lengths[-1]])
    both = ConcatDataset([toys.Samples(SAMPLES[a:b]) for a, b in zip(starts, lengths, strict=True)])
    toys.assert_joined_equals_live(
        toys.joined_loader(kdcache.CachedDataset(both, merged)), toys.live_linear
    )
    sums = [c.statistics["positions"] for c in merged["train"].commits]
    assert sum(sums) == lengths[-1]


def test_of_grown_caches_and_streams(tmp_path):
    first = dump(tmp_path / "a", SAMPLES[:11])
    dump(first, SAMPLES[:19], extend=True)
    again = merge_caches([first, dump(tmp_path / "b", SAMPLES[19:30])], tmp_path / "ab").path
    merged = merge_caches([dump(tmp_path / "c", SAMPLES[30:]), again], tmp_path / "abc")
    assert verify_cache(merged.path).is_sound
    assert_right(merged, SAMPLES)


def test_splits_that_only_one_has(tmp_path):
    test = toys.loader(SAMPLES[50:])
    one = dump(tmp_path / "a", {"train": toys.loader(SAMPLES[:9]), "test": test})
    merged = merge_caches([one, dump(tmp_path / "b", SAMPLES[9:20])], tmp_path / "all")
    assert merged.splits == ("test", "train")
    assert merged["test"].manifest.num_samples == 10


def test_goes_on_after_an_interruption(tmp_path, monkeypatch):
    parts = [dump(tmp_path / "a", SAMPLES[:30]), dump(tmp_path / "b", SAMPLES[30:])]
    adopt, calls = merge.adopt_shard, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise OSError("the power went out")
        return adopt(*arguments)

    monkeypatch.setattr(merge, "adopt_shard", failing)
    with pytest.raises(OSError, match="power"):
        merge_caches(parts, tmp_path / "all")
    assert len(open_cache(tmp_path / "all")["train"].commits) == 3
    merged = merge_caches(parts, tmp_path / "all")
    assert len(calls) == 4 + 5
    assert_right(merged, SAMPLES)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"teacher": toys.make_teacher(seed=4)}, "identity.teacher.weights"),
        ({"codec": kdcache.DenseCodec()}, "codec.dtype"),
        ({"precision": "bf16-true"}, "identity.precision"),
        ({"fingerprint": "sample"}, "fingerprint.source"),
    ],
)
def test_caches_that_disagree(tmp_path, options, named):
    parts = [dump(tmp_path / "a", SAMPLES[:30]), dump(tmp_path / "b", SAMPLES[30:], **options)]
    with pytest.raises(MismatchError) as caught:
        merge_caches(parts, tmp_path / "all")
    assert named in str(caught.value)
    assert not (tmp_path / "all").exists()


def test_keys_by_number(tmp_path):
    parts = [toys.dump(tmp_path / name, SAMPLES).path for name in "ab"]
    with pytest.raises(UsageError, match="keyed by number"):
        merge_caches(parts, tmp_path / "all")


def test_the_same_field_twice(tmp_path):
    records = [{"x": x, "name": n, "y": y} for n, (x, y) in enumerate(SAMPLES)]
    mapping = {"inputs": ["x"], "labels": "y"}
    parts = [
        toys.dump(tmp_path / name, records[at], batch=mapping, key="field:name").path
        for name, at in (("a", slice(0, 12)), ("b", slice(10, 20)))
    ]
    with pytest.raises(AlignmentError, match="2 samples stand in more than one"):
        merge_caches(parts, tmp_path / "all")


def test_the_same_content_twice_shares_targets(tmp_path):
    parts = [dump(tmp_path / "a", SAMPLES[:12]), dump(tmp_path / "b", SAMPLES[6:20])]
    assert_right(merge_caches(parts, tmp_path / "all"), SAMPLES[:20])


def test_a_damaged_source_stops_at_its_shard(tmp_path):
    parts = [dump(tmp_path / "a", SAMPLES[:30]), dump(tmp_path / "b", SAMPLES[30:])]
    view = open_cache(parts[1])["train"]
    commit, column = view.commits[1], view.manifest.columns[0]
    file = object_file(view.folder / f"shard-000001.{commit.attempt}", column)
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CacheError, match="shard-000001"):
        merge_caches(parts, tmp_path / "all")
    assert not open_cache(tmp_path / "all")["train"].is_complete


def test_wrong_calls(tmp_path):
    one = dump(tmp_path / "a", SAMPLES[:9])
    with pytest.raises(UsageError, match="two caches or more"):
        merge_caches([one], tmp_path / "all")
    with pytest.raises(UsageError, match="one of the caches"):
        merge_caches([one, dump(tmp_path / "b", SAMPLES[9:20])], one)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="no teacher cache"):
        merge_caches([one, tmp_path / "b"], tmp_path / "file")


def test_command(tmp_path, capsys):
    one, two = dump(tmp_path / "a", SAMPLES[:9]), dump(tmp_path / "b", SAMPLES[9:20])
    capsys.readouterr()
    assert main(["merge", str(one), str(two), "--into", str(tmp_path / "all")]) == 0
    printed = capsys.readouterr().out
    assert "samples" in printed
    assert main(["inspect", str(tmp_path / "all"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["samples"] == 20
    assert main(["merge", str(one), str(two)]) == 2
    assert "--into" in capsys.readouterr().err


def test_targets_are_the_sources(tmp_path):
    parts = [dump(tmp_path / "a", SAMPLES[:13]), dump(tmp_path / "b", SAMPLES[13:29])]
    merged = merge_caches(parts, tmp_path / "all")
    found = [merged["train"].read_shard(c)["values"] for c in merged["train"].commits]
    expected = [
        open_cache(part)["train"].read_shard(commit)["values"]
        for part in parts
        for commit in open_cache(part)["train"].commits
    ]
    assert torch.equal(
        torch.cat([torch.from_numpy(v) for v in found]),
        torch.cat([torch.from_numpy(v) for v in expected]),
    )
