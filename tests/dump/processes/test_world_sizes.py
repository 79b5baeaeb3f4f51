"""However many processes share a dump, each key is dumped once, and the decoded result is one."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.data.samples.keys import field_key
from kdcache.store import open_cache
from tests.data import toys

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    # As `srun -n` leaves them, without --ntasks-per-node.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}
KEY = "field:2"
MAPPING = {"inputs": [0], "labels": 1}


def dump_part(cache, samples, *, number, count, launcher, **options):
    """What one of several processes does, in this one."""
    options |= {"batch": MAPPING, "key": KEY}
    if launcher == "part":
        toys.dump(cache, samples, part=f"{number}/{count}", **options)
        return
    names = LAUNCHERS[launcher]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(names, (number, count, number), strict=True):
            patch.setenv(name, str(value))
        patch.setenv("SLURM_NTASKS", str(count))
        toys.dump(cache, samples, **options)


def columns(view):
    """Every column of the whole view, in sample order."""
    shards = [view.read_shard(commit) for commit in view.commits]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


@pytest.fixture(scope="module", autouse=True)
def _no_launcher():
    """None around these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            patch.delenv(name)
        yield


@settings(deadline=None, max_examples=12)
@given(
    num_samples=st.integers(1, 30),
    batch_size=st.integers(1, 4),
    batches=st.integers(1, 3),
    launcher=st.sampled_from(["part", *LAUNCHERS]),
    orders=st.lists(
        st.integers(1, 5).flatmap(lambda n: st.permutations(range(n))), min_size=1, max_size=2
    ),
    data=st.data(),
)
def test_of_one_to_five(tmp_path_factory, num_samples, batch_size, batches, launcher, orders, data):
    """In any order, some of a first world size's processes missing, then all of a second one's."""
    folder = tmp_path_factory.mktemp("worlds")
    samples = [(x, y, 1000 + n) for n, (x, y) in enumerate(toys.labelled(num_samples))]
    loader = toys.loader(samples, batch_size=batch_size)
    options = {"samples_per_shard": batch_size * batches}
    dump_part(folder / "one", loader, number=0, count=1, launcher="part", **options)
    whole = open_cache(folder / "one")["train"]

    *first, second = orders
    started = [n for order in first for n in order if data.draw(st.booleans(), f"starts {n}")]
    for number in started:
        count = len(first[0])
        dump_part(folder / "c", loader, number=number, count=count, launcher=launcher, **options)
    for number in second:
        count = len(second)
        dump_part(folder / "c", loader, number=number, count=count, launcher=launcher, **options)

    view = open_cache(folder / "c")["train"]
    assert view.digest == whole.digest
    attempts = sorted(path.name[:12] for path in view.folder.glob("shard-*"))
    assert attempts == [f"shard-{n:06}" for n in range(view.manifest.num_shards)]
    found, wanted = columns(view), columns(whole)
    assert found["key"].tolist() == [field_key(KEY, sample) for sample in samples]
    assert {name: rows.tobytes() for name, rows in found.items()} == {
        name: rows.tobytes() for name, rows in wanted.items()
    }
