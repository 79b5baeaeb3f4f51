"""What is no log-probabilities of all tokens is refused, by name of file, line and element."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest

import kdcache
from kdcache.errors import DataError, UsageError
from kdcache.importers import files
from kdcache.store import open_cache
from tests.importers.teacher_files import make_sequences, vllm_records, write_lines

NAN, INF = float("nan"), float("inf")
FIRST, SECOND = {"1": -0.5, "2": -1.5}, {"3": -0.4, "2": -2.0}


def record(tokens=(5, 1, 2), elements=(None, FIRST, SECOND)):
    return {"prompt_token_ids": tokens, "prompt_logprobs": elements}


def run(path, **options):
    given = {"num_classes": 10, "k": 2, **options}
    return kdcache.import_logprobs(path, path.parent / "teacher.zarr", **given)


def element(value, **options):
    """A record whose third element is this."""
    return record(elements=[None, FIRST, value]), options


def ranked(*entries):
    return {str(token): {"logprob": log_p, "rank": rank} for token, log_p, rank in entries}


REFUSED = {
    # What an element is.
    "a number": (element(-0.5), "prompt_logprobs[2] is -0.5: an element is null"),
    "bare numbers": (element([-0.5, -1.0]), "need a field of ids (top_ids_field)"),
    "triples": (element([[-0.5, 3, "a"]]), "prompt_logprobs[2] is [[-0.5, 3, 'a']]"),
    "pairs the wrong way round": (element([[-0.5, 3]]), "names -0.5, which is no token id"),
    "a token's text": (element({"cat": -0.5}), "names 'cat', which is no token id"),
    "digits with a sign": (element({"+3": -0.5}), "names '+3', which is no token id"),
    "other digits": (element({"\u0663": -0.5}), "which is no token id"),
    "a boolean id": (element([[True, -0.5]]), "names True"),
    "no log-probability": (element({"3": {"rank": 1}}), "the log-probability None"),
    "a text": (element({"3": "-0.5"}), "the log-probability '-0.5', which is no number"),
    "a truth": (element({"3": True}), "the log-probability True"),
    "too large a number": (element({"3": 10**400}), "int too large"),
    "a rank that is none": (element({"3": {"logprob": -1, "rank": "1"}}), "the rank '1'"),
    # What a position is.
    "a null": (element(None), "prompt_logprobs[2] is null: of this token nothing is known"),
    "nothing": (element({}), "has 0 of the 2 most probable tokens"),
    "too few": (element({"3": -0.4}), "prompt_logprobs[2] has 1 of the 2 most probable tokens"),
    "the actual token instead of the second": (
        element(ranked((3, -0.4, 1), (2, -4.0, 7))),
        "has 1 of the 2 most probable tokens. Keep fewer (k)",
    ),
    "no class": (element({"10": -0.4, "2": -2.0}), "names the token 10, and there are 10 classes"),
    "a negative class": (element([[-1, -0.4], [2, -2.0]]), "names the token -1"),
    "twice": (element({"3": -2.0, "03": -2.0}), "has the token 3 twice"),
    "NaN": (element({"3": -0.4, "2": NAN}), "has a log-probability of NaN"),
    "infinity": (element({"3": INF, "2": -1.0}), "sum up to inf"),
    "no distribution": (element({"3": -0.1, "2": -0.2}), "sum up to 1.72357"),
    "logits": (element({"3": 12.5, "2": 11.0}), "no log-probabilities at temperature 1"),
    "not all classes": (
        element({str(c): -3.0 for c in range(10)}, k=10),
        "prompt_logprobs[1] has 2 of the 10",
    ),
    "all classes, and no distribution": (
        (record((5, 1), [None, {str(c): -3.0 for c in range(10)}]), {"k": None}),
        "sum up to 0.497871",
    ),
    # What a record is.
    "one too few": ((record(elements=[None, FIRST]), {}), "3 tokens have 2 elements in prompt_log"),
    "the null left out": ((record(elements=[FIRST, SECOND]), {}), "left out, give shift 0"),
    "one too many": ((record(elements=[None, *[FIRST] * 3]), {}), "have 4 elements"),
    "of the next token": (
        (record(elements=[FIRST, SECOND, FIRST]), {}),
        "prompt_logprobs[0] is not null, so it seems to be of the next token",
    ),
    "of its own token": ((record(), {"shift": 0}), "prompt_logprobs[0] is null"),
    "other lengths": ((record(elements=[None]), {"shift": 0}), "wanted are 3 or 2"),
    "a token that is no class": ((record((5, 1, 10)), {}), "token 2 is 10, and there are 10"),
    "a negative token": ((record((5, -100, 1)), {}), "token 1 is -100"),
    "a token that is no number": ((record((5, 1.0, 2)), {}), "prompt_token_ids[1] is 1.0, not a"),
    "a huge token": ((record((5, 1 << 63, 2)), {}), "not a token id"),
    "no list": ((record(elements={"start": [0], "token_ids": [1]}), {}), "wanted is a list with"),
    "no list of ids": ((record(tokens=None), {}), "prompt_token_ids is None"),
    "a text that is no JSON": ((record(elements="[null,"), {}), "is a text that is no JSON"),
    "another field": (
        (record(), {"ids_field": "token_ids"}),
        "field 'token_ids' leads nowhere: a mapping of 'prompt_token_ids', 'prompt_logprobs'",
    ),
    "only the actual tokens": (
        (record(elements=[None, ranked((1, -0.5, 1)), ranked((2, -4.0, 9))]), {"k": None}),
        "only the actual tokens have log-probabilities",
    ),
    "ids of another length": (
        (
            {**record(elements=[None, [-0.5, -1], [-0.5]]), "top": [None, [1, 2], [3, 4]]},
            {"top_ids_field": "top"},
        ),
        "prompt_logprobs[2] is [-0.5] beside ids that are [3, 4]",
    ),
    "ids of other positions": (
        ({**record(elements=[None, [-0.5], [-0.5]]), "top": [None, [1]]}, {"top_ids_field": "top"}),
        "top has 2 elements, prompt_logprobs has 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    (wrong, options), said = REFUSED[name]
    path = write_lines(tmp_path / "a.jsonl", [wrong])
    with pytest.raises(DataError) as caught:
        run(path, **options)
    assert f"{path}, line 1: " in str(caught.value)
    assert said in str(caught.value)
    assert not (tmp_path / "teacher.zarr").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt_token_ids": [1', "line 3 is no JSON (Expecting"),
        (b"[1, 2]", "line 3 is a JSON list: wanted is one object a line"),
        (b"\xff\xfe\xff", "line 3 is no JSON ("),
        (b"[" * 100_000, "line 3 is no JSON ("),
    ],
)
def test_a_line_that_is_no_record(tmp_path, content, said):
    """Lines are counted with blank ones, as an editor does."""
    path = write_lines(tmp_path / "a.jsonl", [record()])
    path.write_bytes(path.read_bytes() + b"\n" + content)
    with pytest.raises(DataError) as caught:
        run(path)
    assert said in str(caught.value)


def test_what_is_wrong_late_leaves_whole_shards_and_a_way_out(tmp_path):
    samples = make_sequences((3,) * 40)
    records = vllm_records(samples)
    records[37]["prompt_logprobs"][1] = None
    path = write_lines(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError) as caught:
        run(path, num_classes=11, samples_per_shard=4)
    for part in (f"{path}, line 38: prompt_logprobs[1] is null", "The 36 samples before", "remove"):
        assert part in str(caught.value)
    assert len(open_cache(tmp_path / "teacher.zarr")["train"].commits) == 9


def test_a_file_that_is_being_written_is_found(tmp_path, monkeypatch):
    from kdcache.importers import logprobs as tool

    path = write_lines(tmp_path / "a.jsonl", vllm_records(make_sequences((3,) * 5)))
    real = tool.look_at

    def grows(file):
        found = real(file)
        path.write_bytes(path.read_bytes() + path.read_bytes())
        return found

    monkeypatch.setattr(tool, "look_at", grows)
    with pytest.raises(DataError, match="had 5 records when it was looked through, and now has 10"):
        run(path, num_classes=11)


def test_too_few_for_what_the_first_records_promise(tmp_path):
    """The first ones have 3 and, with the actual token, 4; a later one has but 2."""
    records = [*vllm_records(make_sequences((5,) * 40)), *vllm_records(make_sequences((4,)), 2)]
    path = write_lines(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=r"line 41: .* of the 3 most probable tokens"):
        run(path, num_classes=11, k=None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_classes": 1}, "num_classes is the size of the vocabulary, not 1"),
        ({"num_classes": "10"}, "not '10'"),
        ({"shift": 2}, "shift is 1 .* or 0 .*, not 2"),
        ({"shift": True}, "not True"),
        ({"k": 0}, "k is 0"),
        ({"dtype": "float61"}, "Did you mean 'float16'"),
        ({"key": "contents"}, "Did you mean 'content'"),
        ({"key": "field:id"}, "key: 'field:id' is none here"),
        ({"fingerprint": "inputs"}, "Give tokens:<path>"),
        ({"samples_per_shard": 0}, "at least one"),
    ],
)
def test_settings(tmp_path, options, said):
    path = write_lines(tmp_path / "a.jsonl", [record()])
    with pytest.raises(UsageError, match=said):
        run(path, **options)


def test_files(tmp_path):
    good = write_lines(tmp_path / "a.jsonl", [record()])
    cache = tmp_path / "teacher.zarr"

    def refused(files, error, said):
        with pytest.raises(error, match=said):
            kdcache.import_logprobs(files, cache, num_classes=10)

    refused([], UsageError, "there is no file")
    refused([good, good.parent / "." / "a.jsonl"], UsageError, "named twice")
    refused(tmp_path / "b.jsonl", UsageError, r"b.jsonl cannot be read \(No such file")
    refused(tmp_path, UsageError, "what kind of file")
    for name in ("a.csv", "a", "a.parquet.gz", "a.gz"):
        refused(tmp_path / name, UsageError, "its name has to say")
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n\n")
    refused(empty, DataError, "there is no record in")
    whole = gzip.compress(good.read_bytes() * 50)
    for content in (whole[:-20], b"not gzip", whole[:30] + b"\x00" * 30 + whole[60:]):
        (tmp_path / "c.jsonl.gz").write_bytes(content)
        refused(tmp_path / "c.jsonl.gz", DataError, "damaged or cut short")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 but no more")
    refused(tmp_path / "d.parquet", DataError, "no Parquet file, or damaged")
    short = write_lines(tmp_path / "short.jsonl", [record([5], [None])])
    refused(short, UsageError, "how many classes to keep has to be said: give k")
    assert not cache.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(kdcache.KdcacheError, match="is no teacher cache"):
        kdcache.import_logprobs(good, tmp_path / "other", num_classes=10)


def test_parquet_columns_are_named(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"prompt_token_id": [[1]], "prompt_logprobs": ["[null]"]}), path)
    with pytest.raises(
        DataError, match=r"no column 'prompt_token_ids'\. Did you mean 'prompt_token"
    ):
        run(path)
    wrong = pa.table({"prompt_token_ids": [[1]], "prompt_logprobs": [json.dumps([None, {}])]})
    parquet.write_table(wrong, path)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: 1 tokens have 2 elements"):
        run(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow.*pip install 'kdcache\[parquet\]'"):
        run(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_without_an_end_is_never_read_whole(tmp_path, monkeypatch, suffix):
    """A few kilobytes of .gz may hold a line of gigabytes."""
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / f"long{suffix}"
    opened = gzip.open if suffix.endswith(".gz") else open
    with opened(path, "wb") as file:
        file.write(b"\n")
        for _ in range(64):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"long.jsonl.*line 2 is longer than 1 MiB"):
        files.look_at(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_line_of_the_greatest_length_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 64)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}' + b" " * 55 + b"\n{}\n")
    assert files.look_at(path).num_records == 2
