"""A reader that has never heard of kdcache reads the same logits: FORMAT.md is enough."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import xxhash
import zarr

from kdcache.codecs import DenseCodec, TopKCodec, codec_settings, stored_codec
from kdcache.columns import FINGERPRINT, Column
from kdcache.store import open_cache, open_local_copy
from tests.hang import HANG_S
from tests.store.synthetic import COUNTS, ROOT, make_shards, manifest, write_view

NUM_CLASSES = 12
CODECS = {
    "train": DenseCodec(dtype="float16"),
    "lossless": DenseCodec(dtype="float32"),
    "brain": DenseCodec(dtype="bfloat16"),
    "sparse": TopKCodec(k=4, temperatures=(1.0, 4.0)),
}
TEMPERATURE = 4.0

# Written from FORMAT.md alone, with tensorstore; it decodes by the formulas there.
FOREIGN = """
import json, sys
from pathlib import Path
import numpy as np
import tensorstore as ts
def read(view):
    manifest = json.loads((view / "zarr.json").read_text())["attributes"]["kdcache"]
    parts = {column["name"]: [] for column in manifest["columns"]}
    for shard in range(-(-manifest["num_samples"] // manifest["samples_per_shard"])):
        record = json.loads((view / f"commits/shard-{shard:06d}.json").read_text())
        for name, found in parts.items():
            folder = view / f"shard-{shard:06d}.{record['attempt']}" / name
            store = {"driver": "file", "path": f"{folder}/"}
            array = ts.open({"driver": "zarr3", "kvstore": store}).result()
            found.append(np.moveaxis(array.read().result(), -1, 0))
            assert len(found[-1]) == record["arrays"][name]["rows"]
    return manifest["codec"], {name: np.concatenate(found) for name, found in parts.items()}
cache, results = Path(sys.argv[1]), {}
for split in sys.argv[3:]:
    codec, columns = read(cache / split / "view-000")
    if codec["name"] == "topk":
        s = codec["temperatures"].index(4.0)
        kept = columns["log_p"].astype(np.float32) / 4.0
        bucket = np.concatenate([kept, columns["tail_log_sums"][:, s, None]], axis=1)
        results[split] = bucket - np.log(np.exp(bucket).sum(axis=1, keepdims=True))
        results[f"{split} ids"] = columns["ids"]
        results[f"{split} kept"] = columns["log_p"] + columns["offset"][:, None]
    elif codec["name"] == "dense":
        values = columns["values"]
        if codec["dtype"] == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        results[split] = values.astype(np.float32) + columns.get("offset", np.zeros(1))[..., None]
    else:
        results |= {f"{split} {name}": rows for name, rows in columns.items()}
assert "kdcache" not in sys.modules and "torch" not in sys.modules
np.savez(sys.argv[2], **results)
"""


def encoded(codec, wanted, seed):
    """A split's shards through a real codec."""
    shards = {}
    generator = torch.Generator().manual_seed(seed)
    for shard in range(wanted.num_shards):
        start, stop = wanted.shard_range(shard)
        counts = np.resize(np.asarray([2, 0, 3, 1], np.int32), stop - start)
        logits = 5 * torch.randn(int(counts.sum()), NUM_CLASSES, generator=generator) + 50
        rows = codec.encode(logits, torch.zeros(len(logits), 2, dtype=torch.int64))
        columns = {name: tensor.numpy() for name, tensor in rows.items()}
        fingerprints = np.arange(start, stop, dtype=np.uint64)
        shards[shard] = {**columns, "num_positions": counts, FINGERPRINT: fingerprints}
    return shards


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "teacher.zarr"
    fingerprint = Column(name=FINGERPRINT, per="sample", dtype="uint64")
    for seed, (split, codec) in enumerate(CODECS.items()):
        wanted = manifest(
            split=split,
            num_classes=NUM_CLASSES,
            codec=codec_settings(codec),
            columns=(COUNTS, fingerprint, *codec.columns(NUM_CLASSES)),
        )
        write_view(path, wanted, encoded(codec, wanted, seed))
    synthetic = manifest(split="synthetic")
    write_view(path, synthetic, make_shards(synthetic))
    return path


def run(script, folder, *arguments):
    """Run a script in a folder from which this package cannot be imported by accident."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-I", "-c", script, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def our_targets(cache, split):
    """What a student gets for all samples, in order."""
    view = open_cache(cache)[split]
    rows = open_local_copy(view).take(range(view.manifest.num_samples))
    tensors = {name: torch.from_numpy(array) for name, array in rows.items()}
    codec = stored_codec(view.manifest.codec)
    return codec.decode(tensors, tensors["num_positions"], view.manifest.num_classes)


def test_tensorstore_reads_what_we_read(cache, tmp_path):
    splits = [*CODECS, "synthetic"]
    run(FOREIGN, tmp_path, cache, tmp_path / "found.npz", *splits)
    found = np.load(tmp_path / "found.npz")

    for split in ("train", "lossless", "brain"):
        assert np.array_equal(found[split], our_targets(cache, split).logits().numpy())
    sparse = our_targets(cache, "sparse")
    expected = sparse.bucket_log_p(TEMPERATURE).numpy()
    np.testing.assert_allclose(found["sparse"], expected, rtol=0, atol=1e-6)
    assert np.array_equal(found["sparse ids"], sparse.ids.numpy())
    kept = sparse.log_p.float() + sparse.offset.unsqueeze(-1)
    np.testing.assert_allclose(found["sparse kept"], kept.numpy(), rtol=1e-6)

    for shard, columns in make_shards(manifest()).items():
        view = open_cache(cache)["synthetic"]
        assert view.commits[shard].arrays["ids"].rows == len(columns["ids"])
        for name, rows in columns.items():
            whole = np.concatenate([part[name] for part in make_shards(manifest()).values()])
            assert found[f"synthetic {name}"].dtype == rows.dtype
            assert found[f"synthetic {name}"].tobytes() == whole.tobytes()


def test_example_in_the_specification_runs(cache, tmp_path):
    text = (ROOT / "kdcache" / "store" / "FORMAT.md").read_text()
    *_, example = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    check = (
        "\nimport sys; assert 'kdcache' not in sys.modules"
        "\nnp.savez(sys.argv[1], logits=logits, sample_3=sample_3)"
    )
    run(example + check, cache.parent, tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    targets = our_targets(cache, "train")
    assert np.array_equal(found["logits"], targets.logits().numpy())
    counts = targets.num_positions.tolist()
    assert counts[3] == 1
    first = sum(counts[:3])
    assert np.array_equal(found["sample_3"], targets.logits().numpy()[first : first + 1])


def test_specification_names_every_field(cache):
    text = (ROOT / "kdcache" / "store" / "FORMAT.md").read_text()
    fields = set(manifest().to_json())
    commit = open_cache(cache)["train"].commits[0].to_json()
    fields |= set(commit) | set(commit["arrays"]["values"])
    fields |= {column.name for codec in CODECS.values() for column in codec.columns(NUM_CLASSES)}
    fields |= {key for codec in CODECS.values() for key in codec.settings()}
    assert {name for name in fields if f"`{name}`" not in text and f'"{name}"' not in text} == set()


def test_specification_defines_the_digest(cache):
    """Computed from the files, by its words."""

    def canonical(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    view = cache / "train" / "view-000"
    stored = json.loads((view / "zarr.json").read_text())["attributes"]["kdcache"]
    state = xxhash.xxh3_128()
    left_out = ("created", "references", "pilot")
    state.update(canonical({k: v for k, v in stored.items() if k not in left_out}))
    for file in sorted((view / "commits").iterdir()):
        record = json.loads(file.read_text())
        digests = {
            name: [array["rows"], array["digest"]] for name, array in record["arrays"].items()
        }
        state.update(canonical([record["start"], record["stop"], digests]))
        for name, array in record["arrays"].items():
            stored_objects = (view / f"{file.stem}.{record['attempt']}" / name / "c").rglob("0")
            (content,) = (path.read_bytes() for path in stored_objects if path.is_file())
            assert array["stored_bytes"] == len(content)
            assert array["checksum"] == xxhash.xxh3_64_hexdigest(content)
    assert state.hexdigest() == json.loads((view / "index.json").read_text())["digest"]
    assert state.hexdigest() == open_cache(cache)["train"].digest


def test_zarr_walks_the_whole_tree(cache):
    """All groups and arrays are found; the two plain files of a view are all that it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        members = dict(zarr.open_group(cache, mode="r").members(max_depth=None))
    named = {str(warning.message).split()[2] for warning in caught}
    assert named == {"commits", "index.json"}
    arrays = [name for name, node in members.items() if isinstance(node, zarr.Array)]
    commits = [commit for split in open_cache(cache) for commit in open_cache(cache)[split].commits]
    assert len(arrays) == sum(len(commit.arrays) for commit in commits)
    assert all(members[name].metadata.dimension_names[-1] for name in arrays)
