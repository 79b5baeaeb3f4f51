"""Log-probabilities as a server writes them, made by hand from full logits."""

from __future__ import annotations

import gzip
import json

import torch
from torch.utils.data import DataLoader

import kdcache
from kdcache.codecs import TopKCodec
from tests.data import toys
from tests.data.sequences import VOCABULARY, CausalNet, pad_right, sequences

LENGTHS = (5, 2, 7, 1, 3, 9, 4, 6, 2, 8)
K = 3
CODEC = TopKCodec(k=K, temperatures=(1,), offset=False)
CAUSAL = {"causal": True}


def make_sequences(lengths=LENGTHS, seed=0):
    return sequences(lengths, seed)


def full_logits(ids, teacher=None):
    """(L, C): position t says which token is next."""
    with torch.no_grad():
        return (teacher or CausalNet())(ids[None])["logits"][0]


def vllm_record(ids, logits, k=K, *, value=None):
    """As vLLM gives it: element t is of token t, the token itself first, then the k best.

    Args:
        ids: (L,) token ids.
        logits: (L, C) of all positions.
        k: of ``prompt_logprobs=k``.
        value: from (log-probability, rank) to what stands for it.
    """
    value = value or (lambda logprob, rank: {"logprob": logprob, "rank": rank, "decoded_token": ""})
    elements = [None]
    for t in range(1, len(ids)):
        log_p = logits[t - 1].log_softmax(-1)
        best = log_p.sort(descending=True, stable=True).indices.tolist()
        token = int(ids[t])
        ranked = [(token, best.index(token) + 1)] + [(c, n + 1) for n, c in enumerate(best[:k])]
        elements.append({str(c): value(float(log_p[c]), rank) for c, rank in ranked})
    return {"prompt_token_ids": ids.tolist(), "prompt_logprobs": elements}


def vllm_records(samples, k=K, **options):
    return [vllm_record(ids, full_logits(ids), k, **options) for ids in samples]


def topk_record(ids, logits, k=K):
    """As ``topk`` of a model's logits: element t is what was said after token t."""
    found = logits.log_softmax(-1).topk(k, dim=-1)
    return {"tokens": ids.tolist(), "ids": found.indices.tolist(), "log_p": found.values.tolist()}


def write_lines(path, records):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path, columns, types):
    """Columns of values with their Arrow types, in row groups of 3."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(list(types.items()))
    parquet.write_table(pa.table(columns, schema=schema), path, row_group_size=3)
    return path


def run(files, cache, **options):
    """Import, in shards of three samples."""
    return kdcache.import_logprobs(
        files, cache, **{"num_classes": VOCABULARY, "samples_per_shard": 3, **options}
    )


def collate(samples, pad=pad_right):
    """A student's own: dicts with ids of any kind, padded."""
    return pad([torch.as_tensor(sample["input_ids"]) for sample in samples])


def joined(cache, samples, *, collate_fn=collate, make=torch.as_tensor):
    """Joined batches of a student whose samples hold what ``make`` makes of the ids."""
    dataset = toys.Samples([{"input_ids": make(ids)} for ids in samples])
    dataset = kdcache.CachedDataset(dataset, cache, batch=CAUSAL, collate_fn=collate_fn)
    return DataLoader(dataset, batch_size=4, collate_fn=dataset.collate_fn)


def dumped(folder, samples, **options):
    """The same teacher's cache, by stage one."""
    dataset = toys.Samples([{"input_ids": ids} for ids in samples])
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate)
    return toys.dump(folder, loader, CausalNet(), codec=CODEC, batch=CAUSAL, **options)
