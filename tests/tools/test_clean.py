"""``kdcache clean`` and ``kdcache verify``, as typed: what is printed, removed and answered."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from kdcache.cli import main
from kdcache.store import open_cache, open_local_copy
from kdcache.store.local import build as local_build
from tests.store.synthetic import files_below, make_shards, manifest, stored_object, write_view

ATTEMPT = "0123456789ab"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A view with one old attempt that does not count, and a file of somebody else's."""
    monkeypatch.setenv("KDCACHE_LOCAL", str(tmp_path / "local"))
    view = write_view(tmp_path / "cache.zarr", manifest(), make_shards(manifest()))
    source = view.folder / f"shard-000000.{view.commits[0].attempt}"
    attempt = shutil.copytree(source, view.folder / f"shard-000000.{ATTEMPT}")
    for path in (*attempt.rglob("*"), attempt):
        os.utime(path, (time.time() - 7200,) * 2)
    (view.folder / "notes.txt").write_text("mine")
    return view.cache


def run(capsys, *words):
    """Exit code and what was printed."""
    code = main([str(word) for word in words])
    return code, capsys.readouterr().out


def test_lists_without_a_word_and_removes_with_yes(cache, capsys):
    before = files_below(cache)
    code, text = run(capsys, "clean", cache)
    assert code == 0
    lines = text.splitlines()
    attempt = cache / "train" / "view-000" / f"shard-000000.{ATTEMPT}"
    assert lines[0].startswith("attempt, ")
    assert lines[0].endswith(f"2.0 h old: {attempt}")
    assert lines[1] == f"kept, not ours: {cache / 'train' / 'view-000' / 'notes.txt'}"
    assert lines[2].startswith(f"{cache}: 1 leftover, ")
    assert lines[2].endswith("Nothing was removed; with --yes they are.")
    assert files_below(cache) == before

    code, text = run(capsys, "clean", cache, "--yes")
    assert code == 0
    assert "1 leftover removed" in text
    kept = {name: content for name, content in before.items() if ATTEMPT not in name}
    assert files_below(cache) == kept
    assert run(capsys, "clean", cache)[1].endswith(f"{cache}: nothing to remove.\n")
    assert run(capsys, "verify", cache)[0] == 0


def test_older_than(cache, capsys):
    code, text = run(capsys, "clean", cache, "--older-than", "3", "--yes")
    assert code == 0
    assert "kept, recent: attempt, " in text
    assert "nothing to remove" in text
    assert run(capsys, "clean", cache, "--older-than", "0.5", "--yes")[1].count("removed") == 1


@pytest.mark.parametrize("hours", ["-1", "nan", "inf", "soon"])
def test_hours_that_are_none(cache, capsys, hours):
    assert main(["clean", str(cache), f"--older-than={hours}"]) == 2


def test_as_json(cache, capsys):
    code, text = run(capsys, "clean", cache, "--json")
    report = json.loads(text)
    assert code == 0
    (old,) = report["old"]
    assert old["kind"] == "attempt"
    assert report["bytes"] == old["bytes"] > 0
    assert (report["removed"], report["recent"], report["unclear"]) == ([], [], [])
    assert [path.rsplit("/", 1)[1] for path in report["foreign"]] == ["notes.txt"]
    assert json.loads(run(capsys, "clean", cache, "--json", "--yes")[1])["removed"] == [old]


def test_names_cannot_command_the_terminal(cache, capsys):
    (cache / "\x1b[31mred\udcff\n").touch()
    code, text = run(capsys, "clean", cache)
    assert code == 0
    assert "\\x1b[31mred\\udcff" in text
    assert "\x1b" not in text


def test_what_is_no_cache(tmp_path, capsys):
    assert run(capsys, "clean", tmp_path)[0] == 1


def test_builds_of_local_copies_that_died(cache, tmp_path, capsys):
    view = open_cache(cache)["train"]
    dead = tmp_path / "local" / f".{view.digest}.0.{local_build._machine()}.abc"
    dead.mkdir(parents=True)
    (dead / "sample").write_bytes(bytes(1000))
    for path in (dead / "sample", dead):
        os.utime(path, (time.time() - 7200,) * 2)
    assert "local copy, 1,000 bytes, 2.0 h old" in run(capsys, "clean", cache)[1]
    assert dead.exists()
    assert "2 leftovers removed" in run(capsys, "clean", cache, "--yes")[1]
    assert not dead.exists()


class TestVerifyLocalCopy:
    @pytest.fixture
    def copy(self, cache):
        return open_local_copy(open_cache(cache)["train"], in_memory_bytes=0).location

    def test_none(self, cache, capsys, tmp_path):
        assert run(capsys, "verify", cache, "--local-copy")[0] == 0
        assert not (tmp_path / "local").exists()

    def test_a_sound_one_is_counted_apart(self, cache, copy, capsys):
        code, text = run(capsys, "verify", cache, "--local-copy")
        assert code == 0
        assert text.endswith(
            "10 samples in 3 shards, every checksum right. 1 local copy checked.\n"
        )
        report = json.loads(run(capsys, "verify", cache, "--local-copy", "--json")[1])
        assert report["local_copies"] == [str(copy)]
        assert report["sound"]

    @pytest.mark.parametrize("name", ["sample", "position", "entry", "copy.json"])
    def test_a_damaged_one_is_named(self, cache, copy, capsys, name):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        assert run(capsys, "verify", cache)[0] == 0
        code, text = run(capsys, "verify", cache, "--local-copy")
        assert code == 1
        assert text.startswith("- local copy, train: ")
        assert str(copy) in text.splitlines()[0]
        assert "1 problem; 10 samples sound." in text

    def test_of_a_damaged_cache(self, cache, copy, capsys):
        """The copy is what was dumped; the cache is not."""
        stored_object(open_cache(cache)["train"], 1, "values").write_bytes(b"x")
        code, text = run(capsys, "verify", cache, "--local-copy")
        assert code == 1
        assert "1 local copy checked" in text
        assert "- local copy" not in text


def test_verify_as_json_is_complete(cache, capsys):
    stored_object(open_cache(cache)["train"], 1, "values").write_bytes(b"x")
    code, text = run(capsys, "verify", cache, "--repair", "--json")
    report = json.loads(text)
    assert code == 1
    assert not report["sound"]
    (damaged,) = report["damaged"]
    assert (damaged["split"], damaged["shard"], damaged["start"], damaged["stop"]) == (
        "train", 1, 4, 8
    )  # fmt: skip
    assert report["pending"] == {"train": [1]}
    assert len(report["repairs"]) == 2
    assert report["notes"] == report["local_copies"] == report["local_problems"] == []
    assert report["samples"] == 6
