"""The codec protocol with all that it allows: dump, store, join and decode a user's own codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdcache import CachedDataset
from kdcache.codecs import Codec, make_codec
from kdcache.data.samples.fingerprint import fingerprint
from kdcache.errors import CacheError, MismatchError
from kdcache.store import open_cache
from tests.data import toys
from tests.dump.adaptive_codec import AdaptiveCodec, toss

LENGTHS = toys.Tokens.LENGTHS
NAME = AdaptiveCodec.name


def source():
    return toys.loader(toys.Tokens(), collate_fn=toys.pad_right)


def expected(sample, draws_key):
    """Log-probabilities (P, C), -inf where not kept, and coins, from the definition."""
    logits = toys.TokenTeacher().table(toys.Tokens()[sample]["input_ids"]).detach()
    log_p = logits.log_softmax(-1)
    kept = (log_p.exp() >= 0.15) | (log_p == log_p.amax(-1, keepdim=True))
    keys = torch.full((len(logits),), draws_key)
    draws = torch.stack([keys, torch.arange(len(logits))], dim=-1)
    return torch.where(kept, log_p, -torch.inf), toss(draws)


def check(joined, draws_key):
    loader = toys.joined_loader(joined, shuffle=True)
    seen = 0
    for batch, targets in loader:
        at = 0
        for row, count in enumerate(targets.num_positions.tolist()):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            sample = next(
                n for n in range(len(LENGTHS)) if torch.equal(toys.Tokens()[n]["input_ids"], ids)
            )
            log_p, coins = expected(sample, draws_key(sample))
            rows = slice(at, at + count)
            torch.testing.assert_close(targets.dense_log_p()[rows], log_p, rtol=1e-5, atol=1e-5)
            assert targets.coin[rows].tolist() == coins.tolist()
            at, seen = at + count, seen + 1
        assert at == targets.num_rows()
    assert seen == len(joined)


def test_is_a_codec():
    assert isinstance(make_codec(NAME, {"threshold": 0.2}), Codec)


def test_entries_tables_and_draws_from_dump_to_join(cache):
    view = toys.dump(cache, source(), toys.TokenTeacher(), codec=AdaptiveCodec())["train"]
    # The pilot is the whole of so small a dataset, in its order.
    tokens = torch.cat([toys.Tokens()[n]["input_ids"] for n in range(len(LENGTHS))])
    means = toys.TokenTeacher().table(tokens).detach().log_softmax(-1).mean(0)
    np.testing.assert_allclose(view.read_tables()["means"], means, atol=1e-6)
    entries = [view.read_shard(commit)["num_entries"] for commit in view.commits]
    assert len(set(np.concatenate(entries).tolist())) > 1, "entries do not vary: the test is weak"
    joined = CachedDataset(toys.Tokens(), cache, collate_fn=toys.pad_left, codecs=[NAME])
    check(joined, draws_key=lambda sample: sample)


def test_draws_follow_the_key_and_not_the_place(cache):
    toys.dump(cache, source(), toys.TokenTeacher(), codec=AdaptiveCodec(), key="content")
    joined = CachedDataset(toys.Tokens(), cache, collate_fn=toys.pad_right, codecs=[NAME])
    # The source is all of the sample's inputs that stand before collation: the tokens.
    key = np.asarray([joined.source(toys.Tokens()[n]) for n in range(len(LENGTHS))], np.uint64)
    check(joined, draws_key=lambda sample: int(key.view(np.int64)[sample]))


def test_draws_by_a_field(cache):
    records = [{"x": x, "name": f"n{n}"} for n, x in enumerate(toys.vectors(9))]
    view = toys.dump(
        cache, records, codec=AdaptiveCodec(), batch={"inputs": ["x"]}, key="field:name"
    )["train"]
    keys = np.asarray([fingerprint(record["name"]) for record in records], np.uint64)
    draws = torch.stack(
        [torch.from_numpy(keys.view(np.int64)), torch.zeros(9, dtype=torch.int64)], dim=-1
    )
    coins = np.concatenate([view.read_shard(commit)["coin"] for commit in view.commits])
    assert coins.tolist() == toss(draws).tolist()


def test_other_jobs_use_the_first_ones_tables(cache, tmp_path):
    """A second job whose pilot comes out differently still encodes with the tables of the cache."""

    class Drifting(AdaptiveCodec):
        def fit(self, logits):
            fitted = super().fit(logits)
            return type(self)(threshold=self.threshold, means=fitted.means + 0.25)

    toys.dump(cache, source(), toys.TokenTeacher(), codec=AdaptiveCodec(), part="0/2")
    toys.dump(cache, source(), toys.TokenTeacher(), codec=Drifting(), part="1/2")
    joined = CachedDataset(toys.Tokens(), cache, collate_fn=toys.pad_right, codecs=[NAME])
    check(joined, draws_key=lambda sample: sample)


def test_is_imported_only_where_the_reader_names_it(cache):
    toys.dump(cache, source(), toys.TokenTeacher(), codec=AdaptiveCodec())
    with pytest.raises(CacheError, match=r"not built in\. If you trust it, name it yourself"):
        CachedDataset(toys.Tokens(), cache, collate_fn=toys.pad_right)


def test_its_settings_are_part_of_the_cache(cache):
    toys.dump(cache, source(), toys.TokenTeacher(), codec=AdaptiveCodec())
    with pytest.raises(MismatchError, match=r"codec\.threshold +cache 0\.15 +this run 0\.3"):
        toys.dump(cache, source(), toys.TokenTeacher(), codec=AdaptiveCodec(threshold=0.3))


def test_a_pilot_with_bad_logits_names_the_sample(cache):
    class Echo(nn.Module):
        def forward(self, x):
            return x

    samples = [x.clone() for x in toys.vectors(10)]
    samples[7][0] = float("nan")
    with pytest.raises(Exception, match="sample 7 are NaN"):
        toys.dump(cache, samples, Echo(), codec=AdaptiveCodec())
    assert not cache.exists()


def test_a_decoder_that_fails_is_found_before_the_dump(cache):
    class Broken(AdaptiveCodec):
        def decode(self, columns, num_positions, num_classes):
            raise ZeroDivisionError("no decoder yet")

    with pytest.raises(ZeroDivisionError):
        toys.dump(cache, source(), toys.TokenTeacher(), codec=Broken())
    assert not cache.exists()
    with pytest.raises(Exception, match="does not exist"):
        open_cache(cache)
