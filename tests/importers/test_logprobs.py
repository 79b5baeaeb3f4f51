"""Imported log-probabilities are what the codec would have made of the logits themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from kdcache.codecs import TopKCodec
from kdcache.data.samples.fingerprint import fingerprint
from kdcache.errors import MismatchError
from kdcache.importers import logprobs as tool
from kdcache.store import ViewWriter, open_cache
from kdcache.store.sums import totals
from kdcache.tools.merge import merge_caches
from kdcache.tools.verify import verify_cache
from tests.importers.teacher_files import (
    CODEC,
    LENGTHS,
    VOCABULARY,
    K,
    dumped,
    full_logits,
    joined,
    make_sequences,
    run,
    topk_record,
    vllm_records,
    write_lines,
    write_parquet,
)

SAMPLES = make_sequences()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "teacher.zarr"


@pytest.fixture
def lines(tmp_path):
    return write_lines(tmp_path / "train.jsonl", vllm_records(SAMPLES))


def columns_of(cache, split="train"):
    """All columns of a split, whole."""
    view = open_cache(cache)[split]
    shards = [view.read_shard(commit) for commit in view.commits]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def assert_holds(cache, samples, codec=CODEC, split="train"):
    """Columns are those of the codec on the logits that have a next token."""
    found = columns_of(cache, split)
    logits = torch.cat([full_logits(ids)[:-1] for ids in samples])
    wanted = codec.encode(logits, torch.zeros(len(logits), 2))
    assert found["num_positions"].tolist() == [len(ids) - 1 for ids in samples]
    assert np.array_equal(found["ids"], wanted["ids"].numpy())
    assert found["log_p"].dtype == wanted["log_p"].numpy().dtype
    # One log_softmax of each sequence and one of all: the next number of the type that is stored.
    torch.testing.assert_close(
        torch.from_numpy(found["log_p"]).double(),
        wanted["log_p"].double(),
        rtol=torch.finfo(wanted["log_p"].dtype).eps,
        atol=4 * torch.finfo(torch.float32).eps,
    )
    np.testing.assert_allclose(
        np.exp(found["tail_log_sums"]), wanted["tail_log_sums"].exp().numpy(), atol=1e-6, rtol=0
    )
    assert found.keys() - {"fingerprint", "num_positions"} == {"ids", "log_p", "tail_log_sums"}


# Every way to write the same content: a function of a folder gives file and settings.
STRUCT = pa.struct({"logprob": pa.float64(), "rank": pa.int64(), "decoded_token": pa.string()})
TOKEN_STRUCT = pa.struct({"token_id": pa.int64(), "logprob": pa.float64(), "rank": pa.int64()})
IDS = pa.list_(pa.int32())


def _elements(make):
    """Parquet columns of what ``make`` makes of every element of the records."""
    records = vllm_records(SAMPLES)
    said = [
        [None if e is None else make(e) for e in record["prompt_logprobs"]] for record in records
    ]
    return {
        "prompt_token_ids": [record["prompt_token_ids"] for record in records],
        "prompt_logprobs": said,
    }


def json_lines(folder):
    return write_lines(folder / "a.jsonl", vllm_records(SAMPLES)), {}


def compressed(folder):
    return write_lines(folder / "a.jsonl.gz", vllm_records(SAMPLES)), {}


def bare_numbers(folder):
    records = vllm_records(SAMPLES, value=lambda logprob, rank: logprob)
    return write_lines(folder / "a.ndjson", records), {}


def mixed(folder):
    """Entries of several kinds in one record: read one by one, not at once."""

    def value(logprob, rank):
        return logprob if rank % 2 else {"logprob": logprob, "rank": None if rank < 4 else rank}

    return write_lines(folder / "a.jsonl", vllm_records(SAMPLES, value=value)), {}


def pairs(folder):
    columns = _elements(lambda e: [[int(c), v["logprob"]] for c, v in reversed(e.items())])
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return write_lines(folder / "a.json", records), {}


def nested(folder):
    records = [
        {"choices": [{"token_ids": r["prompt_token_ids"], "said": r["prompt_logprobs"]}]}
        for r in vllm_records(SAMPLES)
    ]
    fields = {"ids_field": "choices.0.token_ids", "logprobs_field": "choices.0.said"}
    return write_lines(folder / "a.jsonl", records), fields


def several_files(folder):
    records = vllm_records(SAMPLES)
    # In the order that they are given in, which is not the alphabet's.
    parts = [("b.jsonl", records[:4]), ("a.jsonl.gz", records[4:5]), ("c.jsonl", records[5:])]
    return [write_lines(folder / name, part) for name, part in parts], {}


def parquet_map(folder):
    columns = _elements(lambda e: [(int(c), v) for c, v in e.items()])
    types = {"prompt_token_ids": IDS, "prompt_logprobs": pa.list_(pa.map_(pa.int64(), STRUCT))}
    return write_parquet(folder / "a.parquet", columns, types), {}


def parquet_structs(folder):
    columns = _elements(lambda e: [{"token_id": int(c), **v} for c, v in e.items()])
    for elements in columns["prompt_logprobs"]:
        for element in elements[1:]:
            for entry in element:
                entry.pop("decoded_token")
    types = {"prompt_token_ids": IDS, "prompt_logprobs": pa.list_(pa.list_(TOKEN_STRUCT))}
    return write_parquet(folder / "a.pq", columns, types), {}


def parquet_text(folder):
    records = vllm_records(SAMPLES)
    columns = {name: [json.dumps(record[name]) for record in records] for name in records[0]}
    return write_parquet(folder / "a.parquet", columns, dict.fromkeys(columns, pa.string())), {}


def parquet_lists(folder):
    records = [topk_record(ids, full_logits(ids)) for ids in SAMPLES]
    columns = {name: [record[name] for record in records] for name in records[0]}
    types = {
        "tokens": IDS,
        "ids": pa.list_(pa.list_(pa.uint16())),
        "log_p": pa.list_(pa.list_(pa.float32())),
    }
    names = {"ids_field": "tokens", "logprobs_field": "log_p", "top_ids_field": "ids"}
    return write_parquet(folder / "a.parquet", columns, types), {**names, "shift": 0}


def without_the_last(folder):
    records = [topk_record(ids, full_logits(ids)) for ids in SAMPLES]
    records = [{**r, "ids": r["ids"][:-1], "log_p": r["log_p"][:-1]} for r in records]
    names = {"ids_field": "tokens", "logprobs_field": "log_p", "top_ids_field": "ids"}
    return write_lines(folder / "a.jsonl", records), {**names, "shift": 0}


FORMS = [
    json_lines,
    compressed,
    bare_numbers,
    mixed,
    pairs,
    nested,
    several_files,
    parquet_map,
    parquet_structs,
    parquet_text,
    parquet_lists,
    without_the_last,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_is_what_the_codec_makes_of_the_logits(tmp_path, cache, form):
    """Position t holds what the logits at t say of token t + 1: one place off, and ids differ."""
    files, options = form(tmp_path)
    run(files, cache, **options)
    assert_holds(cache, SAMPLES)
    keys = [fingerprint(np.asarray(ids)) for ids in SAMPLES]
    assert columns_of(cache)["fingerprint"].tolist() == keys


def test_fewer_may_be_kept(lines, cache):
    run(lines, cache, k=2, dtype="float32")
    assert_holds(cache, SAMPLES, TopKCodec(k=2, dtype="float32", temperatures=(1,), offset=False))


@pytest.mark.parametrize("options", [{}, {"k": VOCABULARY}, {"k": 50}])
def test_all_classes_may_be_kept(tmp_path, cache, options):
    """K = C: what vLLM gives for prompt_logprobs=-1; there is no tail, and any T can be served."""
    lines = write_lines(tmp_path / "a.jsonl", vllm_records(SAMPLES, VOCABULARY))
    run(lines, cache, **options)
    assert np.all(columns_of(cache)["tail_log_sums"] == -np.inf)
    assert_holds(cache, SAMPLES, TopKCodec(k=VOCABULARY, temperatures=(1,), offset=False))


def test_ranks_that_say_nothing_do_no_harm(tmp_path, cache):
    """Some writers give every entry the rank 1."""
    records = vllm_records(SAMPLES, value=lambda logprob, rank: {"logprob": logprob, "rank": 1})
    run(write_lines(tmp_path / "a.jsonl", records), cache)
    assert_holds(cache, SAMPLES)


def test_masked_tokens_and_rounding_are_no_errors(tmp_path, cache):
    """-inf, and vLLM's -9999 for it, are probability 0; a little above 0 is 1."""
    sure = {"4": 1e-5, "2": float("-inf"), "1": -9999.0}
    half = {"4": -0.6932, "2": -0.6932, "1": -1e5, "7": float("-inf")}
    record = {"prompt_token_ids": [3, 4, 2], "prompt_logprobs": [None, sure, half]}
    run(write_lines(tmp_path / "a.jsonl", [record]), cache, k=3)
    found = columns_of(cache)
    assert found["ids"].tolist() == [[4, 1, 2], [4, 2, 1]]
    assert found["log_p"].tolist() == [[0, -10000, -np.inf], [*[np.float16(-0.6932)] * 2, -np.inf]]
    assert np.exp(found["tail_log_sums"]).ravel() == pytest.approx(
        [1.19e-7, 1 - 2 * math.exp(-0.6932)], rel=0.01
    )
    targets = next(iter(joined(cache, [torch.tensor([3, 4, 2])]))).targets
    assert targets.bucket_log_p(1.0).exp().sum(-1).tolist() == pytest.approx([1, 1])


def sums_of(cache):
    """What the commits of a cache sum up, together."""
    return totals(commit.statistics for commit in open_cache(cache)["train"].commits)


def test_what_the_commits_sum_up(tmp_path, lines, cache):
    """As at a dump of the same teacher, as far as it can be known; nothing else."""
    run(lines, cache)
    sums = sums_of(cache)
    log_p = torch.cat([full_logits(ids)[:-1] for ids in SAMPLES]).double().log_softmax(-1)
    labels = torch.cat([ids[1:] for ids in SAMPLES])
    positions = sum(LENGTHS) - len(LENGTHS)
    assert {
        name: sums.pop(name) for name in ("positions", "labelled", "compared")
    } == dict.fromkeys(("positions", "labelled", "compared"), positions)
    assert sums["correct"] == int((log_p.argmax(-1) == labels).sum())
    kept = log_p.topk(K, dim=-1).values.exp().sum()
    assert sums["kept_mass"] == pytest.approx(float(kept), rel=1e-6)
    nats = -log_p.gather(-1, labels[:, None]).sum()
    assert sums["cross_entropy"] == pytest.approx(float(nats), rel=1e-6)
    other = sums_of(dumped(tmp_path / "dumped.zarr", SAMPLES).path)
    # The smallest tails are below what 1 - sum(p) can tell, and floored (rows.py).
    assert sums == pytest.approx({name: other[name] for name in sums}, rel=5e-3)
    assert {"stored_cross_entropy", "stored_cross_entropy_squared"} < sums.keys()

    report = open_cache(cache).inspect()["splits"]["train"]
    assert report["teacher"].keys() == {"accuracy", "cross_entropy"}
    assert report["fidelity"] == {"kept_mass": pytest.approx(sums["kept_mass"] / positions)}
    assert (report["positions"], report["labelled"]) == (positions, positions)
    found = verify_cache(cache)
    assert (found.problems, found.notes, found.samples) == ((), (), len(SAMPLES))


def test_a_cross_entropy_that_is_not_known_is_not_invented(tmp_path, cache):
    """Plain top-k lists do not have the actual token; the targets' cross-entropy is known."""
    files, options = parquet_lists(tmp_path)
    run(files, cache, **options)
    report = open_cache(cache).inspect()["splits"]["train"]
    assert report["teacher"].keys() == {"accuracy"}
    dump = sums_of(dumped(tmp_path / "dumped.zarr", SAMPLES).path)
    found = sums_of(cache)
    assert found["stored_cross_entropy"] == pytest.approx(dump["stored_cross_entropy"], rel=5e-3)
    assert 0 < found["cross_entropy_unknown"] < found["positions"]


def test_an_interrupted_import_goes_on(lines, cache, tmp_path, monkeypatch):
    """Records of shards that are there are not even decoded."""
    write, decoded = ViewWriter.write_shard, []

    def dies(self, shard, *rest):
        if shard == 2:
            raise KeyboardInterrupt
        return write(self, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ViewWriter, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            run(lines, cache)
    assert [commit.shard for commit in open_cache(cache)["train"].commits] == [0, 1]
    read = tool.read_record
    monkeypatch.setattr(
        tool, "read_record", lambda raw, fields: decoded.append(raw.where) or read(raw, fields)
    )
    seen = []
    made = run(lines, cache, progress=lambda *step: seen.append(step))
    after_head = [int(where.split()[-1]) for where in decoded[len(SAMPLES) :]]
    assert after_head == [7, 8, 9, 10]
    assert seen == [("train", n, 4) for n in (1, 2, 3, 4)]
    assert made["train"].digest == run(lines, tmp_path / "other.zarr")["train"].digest
    assert_holds(cache, SAMPLES)
    decoded.clear()
    run(lines, cache)  # complete: only the first records are looked at
    assert len(decoded) == len(SAMPLES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 2}, r"codec\.k +cache 3 +this run 2"),
        ({"dtype": "float32"}, r"codec\.dtype"),
        ({"num_classes": 12}, r"num_classes +cache 11 +this run 12"),
        ({"key": "index"}, "key +cache content +this run index"),
        ({"fingerprint": "tokens:ids"}, r"fingerprint\.source +cache tokens:input_ids"),
        ({"teacher": "Other"}, r"identity\.teacher\.class +cache One +this run Other"),
    ],
)
def test_other_settings_are_refused_field_by_field(lines, cache, options, said):
    run(lines, cache, teacher="One")
    before = sorted(path for path in cache.rglob("*"))
    with pytest.raises(MismatchError, match=said):
        run(lines, cache, **{"teacher": "One", **options})
    assert sorted(path for path in cache.rglob("*")) == before


def test_other_files_are_refused(lines, cache, tmp_path):
    run(lines, cache)
    content = lines.read_text()
    lines.write_text(content.replace('"decoded_token": ""', '"decoded_token": "x"', 1))
    with pytest.raises(MismatchError, match=r"(?s)identity\.dataset\.file\.0 .*other samples, or"):
        run(lines, cache)
    lines.write_text(content)
    renamed = lines.rename(tmp_path / "renamed.jsonl")
    with pytest.raises(MismatchError, match=r"cache train\.jsonl xxh3.* this run renamed"):
        run(renamed, cache)
    more = write_lines(tmp_path / "more.jsonl", vllm_records(make_sequences((4,), seed=1)))
    with pytest.raises(MismatchError, match=r"dataset\.file\.1 +cache \(none\) +this run more"):
        run([renamed.rename(lines), more], cache)


def test_a_second_split_leaves_the_first_alone(lines, cache, tmp_path):
    digest = run(lines, cache)["train"].digest
    others = make_sequences((4, 5), seed=1)
    files = write_lines(tmp_path / "val.jsonl", vllm_records(others))
    made = run(files, cache, split="val")
    assert list(made) == ["train", "val"]
    assert made["train"].digest == digest
    assert_holds(cache, others, split="val")


def test_imported_caches_can_be_merged(tmp_path):
    halves = [SAMPLES[:5], SAMPLES[5:]]
    made = []
    for number, half in enumerate(halves):
        lines = write_lines(tmp_path / f"{number}.jsonl", vllm_records(half))
        made.append(run(lines, tmp_path / f"{number}.zarr").path)
    merge_caches(made, tmp_path / "all.zarr")
    assert_holds(tmp_path / "all.zarr", SAMPLES)


def test_shards_are_of_a_size_that_fits_into_memory(lines, cache):
    """Few small records are one shard; the size is of about N / 256 samples otherwise."""
    made = run(lines, cache, samples_per_shard=None)
    assert made["train"].manifest.num_shards == 1
    sizes = [
        tool._samples_per_shard(_Layout(bytes_), _samples(positions), count)
        for bytes_, positions, count in [(200, 1000, 10**6), (200, 1000, 1000), (6, 0, 10**6)]
    ]
    assert sizes == [167, 5, 87381]


class _Layout:
    def __init__(self, position_bytes):
        self.position_bytes = lambda: position_bytes


def _samples(positions):
    class Sample:
        class rows:  # noqa: N801
            ids = np.zeros((positions, 1))

    return [Sample]


def test_a_vocabulary_stands_in_the_cache(lines, cache):
    class Tokenizer:
        def get_vocab(self):
            return {"a": 0, "b": 1}

    run(lines, cache, tokenizer=Tokenizer())
    assert open_cache(cache)["train"].manifest.identity["vocabulary"].startswith("xxh3:")
