"""Shards that are unlike the pilot are noted; shards that are as they should be never are."""

from __future__ import annotations

import numpy as np
import pytest

from kdcache.store import ViewWriter, open_cache
from kdcache.store.sums import deviation
from kdcache.tools.fidelity import fidelity_notes
from kdcache.tools.verify import verify_cache
from tests.data import toys
from tests.store.synthetic import make_shards, manifest

PILOT = {
    "samples": 32.0,
    "entropy": 0.5,
    "entropy_deviation": 0.3,
    "divergence": 1e-7,
    "divergence_deviation": 2e-7,
}
SAMPLES, PER_SHARD = 600, 50


def sums_of(entropy, divergence, positions=1):
    """A commit's statistics from one number a position."""
    count = float(len(entropy) * positions)
    return {
        "positions": count,
        "entropy": float(entropy.sum()) * positions,
        "entropy_squared": float(np.square(entropy).sum()) * positions,
        "compared": count,
        "divergence": float(divergence.sum()) * positions,
        "divergence_squared": float(np.square(divergence).sum()) * positions,
    }


def view_of(path, change=lambda shard, entropy, divergence: (entropy, divergence), pilot=PILOT):
    """Twelve shards of 50 samples, drawn as the pilot was but for what ``change`` does."""
    rng = np.random.default_rng(0)
    wanted = manifest(num_samples=SAMPLES, samples_per_shard=PER_SHARD, pilot=pilot)
    writer = ViewWriter.create(path, wanted, {})
    for shard, columns in make_shards(wanted).items():
        # Skewed, as entropies and divergences are; mean and deviation about the pilot's.
        entropy = rng.gamma(2.8, 0.18, PER_SHARD)
        divergence = rng.gamma(0.25, 4e-7, PER_SHARD)
        entropy, divergence = change(shard, entropy, divergence)
        writer.write_shard(shard, columns, sums_of(entropy, divergence))
    writer.finish()
    return open_cache(path)["train"]


def notes_of(*arguments, **options):
    view = view_of(*arguments, **options)
    return fidelity_notes(view.manifest, view.commits)


def test_shards_like_the_pilot_are_not_noted(tmp_path):
    assert notes_of(tmp_path / "c") == []


def test_a_shard_whose_targets_lost_more_is_named(tmp_path):
    def change(shard, entropy, divergence):
        return entropy, divergence + 0.01 * (shard == 7)

    (note,) = notes_of(tmp_path / "c", change)
    assert note.startswith("train: far from the pilot in mean KL(teacher || stored), nats: pilot 1")
    assert note.endswith("; shard 7 (samples 350 to 399) 0.01")


@pytest.mark.parametrize("factor", [0.01, 5.0])
def test_a_shard_of_other_entropy_is_named(tmp_path, factor):
    def change(shard, entropy, divergence):
        return entropy * (factor if shard == 2 else 1), divergence

    (note,) = notes_of(tmp_path / "c", change)
    assert "train: far from the pilot in mean entropy of the teacher" in note
    assert "shard 2 (samples 100 to 149)" in note


def test_less_divergence_than_the_pilots_is_no_news(tmp_path):
    pilot = PILOT | {"divergence": 0.5, "divergence_deviation": 0.01}
    assert notes_of(tmp_path / "c", pilot=pilot) == []


def test_all_shards_off_are_noted_in_one_line_the_worst_first(tmp_path):
    def change(shard, entropy, divergence):
        return entropy, divergence + 0.01 + 1e-4 * shard

    (note,) = notes_of(tmp_path / "c", change)
    assert "; shard 11 (samples 550 to 599) 0.0111, shard 10 " in note
    assert note.endswith("and 9 more shards")


def test_a_dataset_sorted_by_class_is_not_noted(tmp_path):
    """Its shards lie apart from one another, all of them."""

    def change(shard, entropy, divergence):
        return entropy * (0.4 + 0.1 * shard), divergence

    assert notes_of(tmp_path / "c", change) == []


def test_a_pilot_that_met_no_rare_sample_accuses_nobody(tmp_path):
    """One sample in fifty is hard: a pilot of 32 sees none of them more often than not."""

    def change(shard, entropy, divergence):
        rare = np.zeros(PER_SHARD)
        rare[0] = 2.0
        return entropy * 0 + rare, divergence * 0 + rare * 1e-3

    pilot = dict.fromkeys(PILOT, 0.0) | {"samples": 32.0}
    assert notes_of(tmp_path / "c", change, pilot) == []


@pytest.mark.parametrize(
    "pilot", [{}, {"samples": 0.0, "entropy": 0.0}, {"drift": 1.0, "samples": 4.0}]
)
def test_without_a_pilots_numbers_there_is_nothing_to_hold_against(tmp_path, pilot):
    def change(shard, entropy, divergence):
        return entropy + 50 * shard, divergence + 50 * shard

    assert notes_of(tmp_path / "c", change, pilot) == []


def test_commits_without_sums_are_left_out(tmp_path):
    wanted = manifest(pilot=PILOT)
    writer = ViewWriter.create(tmp_path / "c", wanted, {})
    for shard, columns in make_shards(wanted).items():
        writer.write_shard(shard, columns, {"positions": 0.0} if shard else {})
    writer.finish()
    view = open_cache(tmp_path / "c")["train"]
    assert fidelity_notes(view.manifest, view.commits) == []


def test_deviation():
    values = np.array([1.0, 2.0, 4.0])
    sums = sums_of(values, values)
    assert deviation(sums, "entropy", "positions") == pytest.approx(values.std())
    assert deviation({}, "entropy", "positions") == 0
    assert deviation({"positions": 3.0, "entropy": 1.0}, "entropy", "positions") == 0


def test_a_dump_and_its_verification(tmp_path):
    """Some samples are far larger than the others: the teacher is sure of them, and of no other."""
    samples = toys.vectors(240)
    samples[100:120] *= 20
    for name, inputs in (("even", toys.vectors(240)), ("uneven", samples)):
        toys.dump(tmp_path / name, list(inputs), samples_per_shard=20, pilot=True)
    even, uneven = (verify_cache(tmp_path / name) for name in ("even", "uneven"))
    assert even.is_sound
    assert uneven.is_sound
    assert even.notes == ()
    (note,) = uneven.notes
    assert note.startswith("train: far from the pilot in mean entropy of the teacher, nats: ")
    assert "(32 samples); shard 5 (samples 100 to 119) 0.2" in note
