"""What is written is what is read: any columns, counts and shard sizes, to the bit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.columns import DTYPES, Column
from kdcache.store import Manifest, open_local_copy
from kdcache.store.format.arrays import CHUNK_BYTES, chunk_rows
from tests.store.synthetic import (
    COUNTS,
    ENTRY_COUNTS,
    concatenated,
    equal_bits,
    expected_take,
    make_shards,
    manifest,
    write_view,
)

# (64, 64) of 8 bytes is a quarter of a chunk, so that some arrays have several chunks.
SHAPES = st.sampled_from([(), (1,), (5,), (2, 3), (1, 2, 2), (64, 64)])


@st.composite
def column_sets(draw: st.DrawFn) -> tuple[Column, ...]:
    drawn = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["sample", "position", "entry"]),
                st.sampled_from(sorted(DTYPES)),
                SHAPES,
            ),
            max_size=5,
        )
    )
    columns = [
        Column(name=f"c{number}", per=per, dtype=dtype, shape=shape)
        for number, (per, dtype, shape) in enumerate(drawn)
    ]
    columns.append(COUNTS)
    if any(column.per == "entry" for column in columns) or draw(st.booleans()):
        columns.append(ENTRY_COUNTS)
    return tuple(draw(st.permutations(columns)))


@settings(max_examples=30, deadline=None)
@given(
    columns=column_sets(),
    num_samples=st.integers(1, 9),
    samples_per_shard=st.integers(1, 11),
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 30),
    data=st.data(),
)
def test_any_columns_come_back_to_the_bit(
    columns, num_samples, samples_per_shard, counts, seed, data
):
    wanted = manifest(columns=columns, num_samples=num_samples, samples_per_shard=samples_per_shard)
    shards = make_shards(wanted, seed, counts)
    with tempfile.TemporaryDirectory() as folder:
        view = write_view(Path(folder) / "cache.zarr", wanted, shards)
        assert view.manifest == Manifest.from_json(wanted.to_json(), "here")
        for commit in view.commits:
            assert equal_bits(view.read_shard(commit), shards[commit.shard])

        whole = concatenated(shards)
        assert view.read_num_positions().tolist() == whole["num_positions"].tolist()
        samples = data.draw(st.lists(st.integers(0, num_samples - 1), max_size=12))
        for in_memory_bytes in (1 << 30, 0):
            copy = open_local_copy(view, Path(folder), in_memory_bytes=in_memory_bytes)
            assert equal_bits(copy.take(samples), expected_take(columns, whole, samples))
            for column in columns:
                if column.per == "sample":
                    assert copy.column(column.name).tobytes() == whole[column.name].tobytes()


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("uint8", (32,)), ("uint8", (130,)), ("float16", (10,)), ("float32", ()), ("int64", (2, 3))],
)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_arrays_of_several_chunks(tmp_path, dtype, shape, extra):
    column = Column(name="v", per="sample", dtype=dtype, shape=shape)
    assert CHUNK_BYTES // 2 < chunk_rows(column) * column.row_bytes <= CHUNK_BYTES
    num_samples = 2 * chunk_rows(column) + extra
    wanted = manifest(
        columns=(COUNTS, column), num_samples=num_samples, samples_per_shard=num_samples
    )
    shards = make_shards(wanted)
    view = write_view(tmp_path / "cache.zarr", wanted, shards)
    assert equal_bits(view.read_shard(view.commits[0]), shards[0])


def test_zeros_are_stored_like_anything_else(tmp_path):
    column = Column(name="v", per="sample", dtype="float32", shape=(8,))
    wanted = manifest(columns=(COUNTS, column), num_samples=4, samples_per_shard=4)
    zeros = {"num_positions": np.zeros(4, np.int32), "v": np.zeros((4, 8), np.float32)}
    view = write_view(tmp_path / "cache.zarr", wanted, {0: zeros})
    assert equal_bits(view.read_shard(view.commits[0]), zeros)
    assert all(stored.stored_bytes > 0 for stored in view.commits[0].arrays.values())


def test_stored_bytes_counts_every_file_of_a_finished_view(tmp_path):
    view = write_view(tmp_path / "cache.zarr", manifest(), make_shards(manifest()))
    everything = sum(path.stat().st_size for path in view.folder.rglob("*") if path.is_file())
    # An array without rows has an object with nothing but an index; no reader needs it.
    assert view.stored_bytes == everything
