"""One dump: how the teacher is run, what is written beside its targets, what is refused later."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import kdcache
from kdcache import CachedDataset, DenseCodec, TopKCodec
from kdcache.dump.measurements.statistics import NAMES
from kdcache.errors import CacheError, MismatchError
from tests.data import toys

N = 21
SAMPLES = toys.labelled(N)


def stored_logits(view):
    parts = [view.read_shard(commit)["values"] for commit in view.commits]
    return torch.from_numpy(np.concatenate(parts))


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def live():
    """What the default teacher says of all samples."""
    with torch.no_grad():
        return toys.make_teacher()(toys.vectors(N))


class Moody(nn.Module):
    """Dropout and BatchNorm: another answer in training mode, and other statistics after it."""

    def __init__(self):
        super().__init__()
        self.inner = toys.make_teacher()
        self.norm = nn.BatchNorm1d(toys.WIDTH)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        assert torch.is_inference_mode_enabled() or self.training
        return self.inner(self.dropout(self.norm(x)))


class TestTeacher:
    def test_is_run_in_eval_mode_and_left_frozen(self, cache):
        teacher = Moody().train()
        teacher(toys.vectors(9, seed=3))  # running statistics of its own
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        view = toys.dump(cache, SAMPLES, teacher)["train"]
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, before[name]), name
        with torch.inference_mode():
            torch.testing.assert_close(stored_logits(view), teacher(toys.vectors(N)))

    def test_may_use_its_output_buffer_again(self, cache):
        """As a compiled teacher with CUDA graphs does: rows wait in the queue while it runs on."""

        class Buffered(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = toys.make_teacher()
                self.buffer = torch.zeros(4, toys.NUM_CLASSES)

            def forward(self, x):
                return torch.add(self.inner(x), 0, out=self.buffer[: len(x)])

        view = toys.dump(cache, SAMPLES, Buffered())["train"]
        torch.testing.assert_close(stored_logits(view), live())

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
    def test_runs_at_the_precision_that_is_recorded(self, cache, precision):
        teacher = toys.make_teacher()
        for _ in range(2):  # the same teacher object again, which is bfloat16 by now
            view = toys.dump(cache, SAMPLES, teacher, precision=precision)["train"]
        assert view.manifest.identity["precision"] == precision
        difference = (stored_logits(view) - live()).abs().max()
        assert 1e-4 < difference < 0.05
        with pytest.raises(MismatchError, match=r"identity\.precision +cache bf16"):
            toys.dump(cache, SAMPLES, toys.make_teacher())

    def test_a_factory_is_not_called_for_a_complete_cache(self, cache, caplog):
        calls = []

        def factory():
            calls.append(1)
            return toys.make_teacher()

        toys.dump(cache, SAMPLES, factory)
        before = files_below(cache)
        with caplog.at_level(logging.INFO):
            toys.dump(cache, SAMPLES, factory)
        assert calls == [1]
        assert files_below(cache) == before
        assert "reused without its teacher" in caplog.text

    def test_is_needed_for_one_more_split(self, cache):
        toys.dump(cache, SAMPLES)
        loaders = {"train": toys.loader(SAMPLES), "val": toys.loader(SAMPLES[:5])}
        assert toys.dump(cache, loaders, toys.make_teacher).splits == ("train", "val")

    def test_a_later_batch_with_other_rows_or_classes(self, cache):
        class Fickle(nn.Module):
            def forward(self, x):
                if x[0, 0] != SAMPLES[8][0][0]:
                    return x
                return x[1:] if self.drops else x[:, 1:]

        for drops, says in ((True, "samples 8 to 11: 4 samples gave 4 .* 3 rows"), (False, "3 cl")):
            teacher = Fickle()
            teacher.drops = drops
            with pytest.raises(kdcache.KdcacheError, match=says):
                toys.dump(cache, [(x, 0) for x, _ in SAMPLES], teacher)


def wrong_now_and_then():
    """Samples of which some are unlabelled or labelled wrong, and the sums to expect."""
    samples = [(x, (y + n % 3) % 5 if n % 4 else -100) for n, (x, y) in enumerate(SAMPLES)]
    logits = live().double()
    labels = torch.tensor([y for _, y in samples])
    log_p = logits.log_softmax(-1)
    nats = nn.functional.cross_entropy(logits, labels, reduction="none")[labels >= 0]
    return samples, {
        "positions": N,
        "entropy": -(log_p.exp() * log_p).sum().item(),
        "labelled": int((labels >= 0).sum()),
        "correct": int((logits.argmax(-1) == labels).sum()),
        "cross_entropy": nats.sum().item(),
        "stored_cross_entropy": nats.sum().item(),
        "stored_cross_entropy_squared": nats.square().sum().item(),
    }


class TestStatistics:
    @pytest.mark.parametrize(("codec", "tolerance"), [(toys.LOSSLESS, 1e-6), (DenseCodec(), 1e-3)])
    def test_are_sums_over_positions(self, cache, codec, tolerance):
        samples, wanted = wrong_now_and_then()
        view = toys.dump(cache, samples, codec=codec)["train"]
        for name, expected in wanted.items():
            found = sum(commit.statistics[name] for commit in view.commits)
            assert found == pytest.approx(expected, rel=tolerance), name

    def test_of_truncated_targets_tell_both(self, cache):
        samples, wanted = wrong_now_and_then()
        view = toys.dump(cache, samples, codec=TopKCodec(k=1))["train"]
        sums = {name: sum(c.statistics[name] for c in view.commits) for name in NAMES}
        assert sums["cross_entropy"] == pytest.approx(wanted["cross_entropy"], rel=1e-6)
        assert abs(sums["stored_cross_entropy"] - wanted["cross_entropy"]) > 0.1

    def test_without_labels(self, cache):
        view = toys.dump(cache, list(toys.vectors(N)))["train"]
        assert sum(commit.statistics["labelled"] for commit in view.commits) == 0


RUNS = {
    "teacher.weights": {"teacher": toys.make_teacher(seed=1)},
    "teacher.class": {"teacher": nn.Sequential(toys.make_teacher())},
    "codec.dtype": {"codec": DenseCodec(dtype="float16")},
    "codec.name": {"codec": TopKCodec(k=2)},
    "precision": {"precision": "bf16-mixed"},
    "batch ": {"batch": {"inputs": [0]}},
    "key": {"key": "content"},
    "fingerprint.source": {"fingerprint": "sample"},
    "class_names": {"class_names": list("abced")},
    "dataset.probe": {"samples": toys.labelled(N, seed=1)},
    "num_samples": {"samples": SAMPLES[:-1]},
    "batch_size": {"samples": toys.loader(SAMPLES, batch_size=5)},
    "collate": {"samples": toys.loader(SAMPLES, collate_fn=toys.stack_pairs)},
    "dataset.class": {"samples": toys.loader(toys.BatchedFetch(SAMPLES))},
}


class TestMismatch:
    """A second run that would write other targets: each field by name, and nothing is written."""

    @pytest.fixture
    def dumped(self, cache):
        toys.dump(cache, SAMPLES, part="0/2", class_names=list("abcde"))
        return cache

    @pytest.mark.parametrize("field", RUNS)
    def test_of_an_unfinished_dump(self, dumped, field):
        run = {"samples": SAMPLES, "class_names": list("abcde"), **RUNS[field]}
        before = files_below(dumped)
        with pytest.raises(MismatchError, match=rf"{field}.* cache .*this run") as caught:
            toys.dump(dumped, **run)
        assert "Nothing was written" in str(caught.value)
        assert files_below(dumped) == before

    @pytest.mark.parametrize("field", [f for f in RUNS if not f.startswith("teacher")])
    def test_of_a_complete_dump_whose_teacher_is_not_built(self, cache, field):
        toys.dump(cache, SAMPLES, class_names=list("abcde"))
        run = {"samples": SAMPLES, "class_names": list("abcde"), **RUNS[field]}
        before = files_below(cache)
        with pytest.raises(MismatchError, match=rf"{field}.* cache .*this run"):
            toys.dump(cache, **{**run, "teacher": never})
        assert files_below(cache) == before

    def test_more_samples_per_shard_are_no_other_targets(self, dumped):
        view = toys.dump(dumped, SAMPLES, class_names=list("abcde"), samples_per_shard=4)["train"]
        assert view.manifest.samples_per_shard == 8
        assert not view.pending

    def test_an_inferred_mask_is_the_same_with_and_without_its_teacher(self, cache):
        source = toys.loader(toys.Tokens(), collate_fn=toys.pad_right)
        toys.dump(cache, source, toys.TokenTeacher())
        toys.dump(cache, source, never)

    def test_an_inferred_mask_that_did_not_fit_is_so_too(self, cache):
        class Classifier(toys.TokenTeacher):
            def forward(self, input_ids, attention_mask):
                return super().forward(input_ids, attention_mask).logits.mean(dim=1)

        source = toys.loader([{"input_ids": torch.arange(3), "attention_mask": torch.ones(3)}] * 5)
        toys.dump(cache, source, Classifier())
        toys.dump(cache, source, never)


def never():
    raise AssertionError("the teacher was built")


@pytest.mark.parametrize("what", ["file", "folder", "Zarr group"])
def test_a_path_that_holds_something_else(cache, what):
    if what == "file":
        cache.write_text("mine")
    else:
        cache.mkdir()
        (cache / "mine.txt").write_text("mine")
        if what == "Zarr group":
            (cache / "zarr.json").write_text('{"zarr_format": 3, "attributes": {}}')
    with pytest.raises(CacheError, match=r"is no teacher cache\. Nothing was written"):
        toys.dump(cache, SAMPLES, never)
    assert cache.is_file() or "train" not in [path.name for path in cache.iterdir()]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_the_loader_are_used(tmp_path):
    """Two forked workers, a shuffled loader that drops its last batch: the same columns."""
    source = DataLoader(
        toys.Samples(SAMPLES), batch_size=4, shuffle=True, drop_last=True, num_workers=2
    )
    view = toys.dump(tmp_path / "workers", source)["train"]
    alone = toys.dump(tmp_path / "alone", SAMPLES)["train"]
    assert view.manifest.identity == alone.manifest.identity
    for mine, other in zip(view.commits, alone.commits, strict=True):
        assert {n: a.digest for n, a in mine.arrays.items()} == {
            n: a.digest for n, a in other.arrays.items()
        }


def test_every_split_has_its_own_structure(cache):
    """A validation set may hold dicts where training has pairs; each is inferred for itself."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toys.make_teacher()

        def forward(self, x=None, pixel_values=None):
            return self.inner(pixel_values if x is None else x)

    loaders = {
        "train": toys.loader(SAMPLES),
        "val": toys.loader([{"pixel_values": x, "label": y} for x, y in SAMPLES]),
    }
    made = toys.dump(cache, loaders, Both())
    assert "pixel_values" in made["val"].manifest.identity["batch"]
    for split, given in loaders.items():
        joined = CachedDataset(given.dataset, made, split=split)
        batch = joined.collate_fn(joined.__getitems__([20, 3]))
        expected = toys.make_teacher()(toys.vectors(N)[[20, 3]])
        torch.testing.assert_close(batch.targets.logits(), expected.detach())
