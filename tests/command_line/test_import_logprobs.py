"""``kdcache import-logprobs``: arguments arrive, the report is printed, errors are short."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kdcache.cli import main
from kdcache.store import open_cache
from tests.importers.teacher_files import make_sequences, vllm_records, write_lines

SAMPLES = make_sequences()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "train.jsonl", vllm_records(SAMPLES))
    write_lines(tmp_path / "val.jsonl.gz", vllm_records(SAMPLES[:4]))
    return tmp_path


WORDS = ["import-logprobs", "train.jsonl", "--into", "t.zarr", "--num_classes", "11"]


def test_two_splits_and_their_report(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(WORDS) == 0
    capsys.readouterr()
    assert main([*WORDS[:1], "val.jsonl.gz", *WORDS[2:], "--split", "val"]) == 0
    text = capsys.readouterr().out
    codec = "codec topk (dtype=float16, k=3, offset=False, temperatures=[1.0])"
    assert f"{codec}, classes 11, key content" in " ".join(text.split())
    rows = {line[:22].strip(): line[22:].split() for line in text.splitlines()[3:]}
    assert rows["samples"] == ["10", "4"]
    assert rows["positions"] == ["37", "11"]
    assert "probability kept" in rows
    assert "teacher cross-entropy" in rows
    assert "teacher entropy" not in rows  # it cannot be known
    assert main(["verify", "t.zarr"]) == 0
    assert main(["inspect", "t.zarr", "--json"]) == 0


def test_every_option_arrives(folder):
    records = [
        {"a": r["prompt_token_ids"], "b": [[-0.7, -0.8]] * 3, "c": [[1, 2]] * 3}
        for r in vllm_records(make_sequences((3, 3)))
    ]
    write_lines(folder / "train.jsonl", records)
    words = "--split s --k 1 --shift 0 --ids_field a --logprobs_field b --top_ids_field c"
    words += " --key index --fingerprint tokens:ids --dtype float32 --teacher Big"
    assert main([*WORDS, *words.split(), "--samples_per_shard", "1"]) == 0
    manifest = open_cache("t.zarr")["s"].manifest
    assert dict(manifest.codec) == {
        "name": "topk",
        "k": 1,
        "dtype": "float32",
        "temperatures": [1.0],
        "offset": False,
    }
    assert (manifest.num_shards, manifest.key, manifest.num_classes) == (2, "index", 11)
    assert manifest.fingerprint["source"] == "tokens:ids"
    assert manifest.identity["teacher.class"] == "Big"
    assert manifest.identity["dataset.shift"] == "0"


def test_errors(folder, capsys):
    assert main(["import-logprobs", "train.jsonl"]) == 2
    assert "the following arguments are required: --into, --num_classes" in capsys.readouterr().err
    assert main([*WORDS, "--shift", "2"]) == 2
    assert "--shift: invalid choice" in capsys.readouterr().err
    (folder / "bad.jsonl").write_text(json.dumps({"prompt_token_ids": [1]}))
    assert main([WORDS[0], "bad.jsonl", *WORDS[2:]]) == 1
    text = capsys.readouterr().err
    assert text.startswith("DataError: bad.jsonl, line 1: field 'prompt_logprobs' leads nowhere")
    assert main(WORDS) == 0
    capsys.readouterr()
    assert main([*WORDS, "--k", "2"]) == 1
    assert text.count("\n") == 1
    assert "codec.k" in capsys.readouterr().err


def test_help_says_what_is_understood_and_loads_no_torch():
    code = (
        "import sys\nfrom kdcache.cli import main\n"
        "assert main(['import-logprobs', '--help']) == 0\n"
        "assert not {'torch', 'pyarrow'} & sys.modules.keys()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for part in ('"rank": 1', '"token_id": 42', "--shift 0", "--top_ids_field", "Parquet map"):
        assert part in found.stdout
