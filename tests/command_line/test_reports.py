"""What ``inspect`` and ``verify`` print."""

from __future__ import annotations

import json
import shutil

import pytest

from kdcache.cli import main
from kdcache.commands.verify import verification_text
from kdcache.store import open_cache
from kdcache.store.report import report_text
from kdcache.tables import aligned, size_text
from kdcache.tools.verify import Verification

CACHE = "runs/teacher.zarr"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_report_is_aligned_and_fits(here, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["inspect", CACHE]) == 0
    printed = capsys.readouterr().out
    assert all(line == line.rstrip() for line in printed.splitlines())
    title, *blocks = printed.rstrip().split("\n\n")
    assert title.startswith(f"{CACHE}  ")
    codec = "codec topk (dtype=float16, k=2, temperatures=[1.0, 2.0]), classes 3, key index"
    assert " ".join(title.splitlines()[1:]) == codec
    # Two columns alone may need more than a narrow terminal; together they never exceed it.
    assert len(blocks) == {"40": 2, "80": 1, "200": 1}[columns]
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1
    assert blocks[0].splitlines()[0].split() == (
        ["train", "test"] if len(blocks) == 1 else ["train"]
    )


def test_values_of_the_report(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["inspect", CACHE])
    rows = {
        line[:22].strip(): line[22:].split("  ")
        for line in capsys.readouterr().out.splitlines()[3:]
    }
    cells = {name: [cell.strip() for cell in row if cell.strip()] for name, row in rows.items()}
    assert cells["samples"] == ["64", "32"]
    assert cells["shards"] == ["4", "2"]
    report = open_cache(CACHE).inspect()["splits"]
    assert cells["digest"] == [report[name]["digest"][:16] for name in ("train", "test")]
    sizes = [size_text(report[name]["bytes"]) for name in ("train", "test")]
    assert [f"({cell})" for cell in cells["size"]] == [text.split(" bytes ")[1] for text in sizes]


def test_an_incomplete_split_says_so(here, capsys):
    view = here / CACHE / "train" / "view-000"
    (view / "index.json").unlink()
    (view / "commits" / "shard-000001.json").unlink()
    assert main(["inspect", CACHE]) == 0
    text = capsys.readouterr().out
    assert "48 of 64" in text
    assert "3 of 4" in text
    assert "incomplete" in text


def test_a_cache_without_a_split(here, capsys):
    shutil.rmtree(here / CACHE / "train")
    shutil.rmtree(here / CACHE / "test")
    assert main(["inspect", CACHE]) == 0
    assert "no split was begun" in capsys.readouterr().out
    assert main(["verify", CACHE]) == 1
    assert "has no split" in capsys.readouterr().out


def test_json_is_one_object(here, capsys):
    assert main(["inspect", CACHE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == open_cache(CACHE).inspect()
    assert main(["verify", CACHE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound"]
    assert (found["path"], found["samples"], found["shards"]) == (CACHE, 96, 6)
    assert found["problems"] == found["damaged"] == []


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1536, "1,536 bytes (1.5 KiB)"),
        (3 << 40, "3,298,534,883,328 bytes (3.0 TiB)"),
        (5 << 50, "5,629,499,534,213,120 bytes (5,120.0 TiB)"),
    ],
)
def test_sizes(num_bytes, text):
    assert size_text(num_bytes) == text


def test_unlabelled_splits_have_no_rows_of_labels(here):
    report = open_cache(CACHE).inspect()
    for split in report["splits"].values():
        split["teacher"] = {"entropy": 0.5}
    text = report_text(report, 200)
    assert "accuracy" not in text
    assert "0.5000 nats" in text


def test_columns_that_do_not_fit_follow_in_blocks():
    rows = [["", "a", "bb", "ccc"], ["x", "1", "22", "333"]]
    assert aligned(rows, 80) == "   a  bb  ccc\nx  1  22  333"
    assert aligned(rows, 8) == "   a  bb\nx  1  22\n\n   ccc\nx  333"
    assert aligned(rows, 1) == "   a\nx  1\n\n   bb\nx  22\n\n   ccc\nx  333"


def test_a_damaged_cache_ends_with_1(here, capsys):
    values = next((here / CACHE / "train").rglob("ids/c/0/0"))
    values.write_bytes(values.read_bytes()[:-1])
    assert main(["verify", CACHE]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("- train: shard ")
    assert f"{CACHE}: 1 problem; 80 samples sound. --repair marks" in shown.out
    assert shown.err == ""


def found(*problems, shards=1, samples=2):
    return Verification(path="t.zarr", shards=shards, samples=samples, problems=problems)


def test_texts_of_a_verification():
    assert verification_text(found()) == (
        "t.zarr: sound. 2 samples in 1 shard, every checksum right."
    )
    assert verification_text(found(shards=1000, samples=12345)) == (
        "t.zarr: sound. 12,345 samples in 1,000 shards, every checksum right."
    )
    assert verification_text(found("a", "b")) == "- a\n- b\nt.zarr: 2 problems; 2 samples sound."
