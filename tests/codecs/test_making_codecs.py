"""Names to codecs: built-in, of the user's own, and found in somebody's cache."""

import sys

import pytest

from kdcache.codecs import DenseCodec, TopKCodec, codec_settings, make_codec, stored_codec
from kdcache.errors import CacheError, UsageError

OWN = """
from pathlib import Path

from kdcache.codecs import DenseCodec

Path(__file__).with_suffix(".imported").touch()


class Mine(DenseCodec):
    name = "codec_of_mine.Mine"


class NoCodec:
    pass


def function(): ...
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module that leaves a trace where it is imported; returns where the trace would be."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "codec_of_mine", raising=False)
    (tmp_path / "codec_of_mine.py").write_text(OWN)
    return tmp_path / "codec_of_mine.imported"


def test_built_in_names():
    assert make_codec("dense", {}) == DenseCodec()
    assert make_codec("topk", {"k": 3, "temperatures": [1, 2]}).temperatures == (1.0, 2.0)


def test_a_class_path_in_a_cache_is_not_imported(own):
    stored = {"name": "codec_of_mine.Mine", "dtype": "float32"}
    for trusted in ((), ("codec_of_mine.Other", "dense")):
        with pytest.raises(CacheError, match=r"'codec_of_mine\.Mine', .*not built in.*trust"):
            stored_codec(stored, trusted)
    assert not own.exists()


def test_a_class_path_that_the_caller_names_is(own):
    stored = {"name": "codec_of_mine.Mine", "dtype": "float32"}
    codec = stored_codec(stored, ["codec_of_mine.Mine"])
    assert own.exists()
    assert type(codec).__name__ == "Mine"
    assert codec_settings(codec) == stored
    assert make_codec("codec_of_mine.Mine", {"dtype": "float32"}) == codec


@pytest.mark.parametrize("stored", [{}, {"name": None}, {"name": 3}, {"name": "Dense"}])
def test_a_manifest_without_a_known_codec(stored):
    with pytest.raises(CacheError, match="not built in"):
        stored_codec(stored)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("topK", "no codec 'topK'. Did you mean 'topk'"),
        ("codec_of_mine.Other", r"no codec .*\(module 'codec_of_mine' has no attribute 'Other'\)"),
        ("codec_of_mine.NoCodec", "'codec_of_mine.NoCodec' is not a codec"),
        ("codec_of_mine.function", "there is no codec"),
        ("no_such_module_here.Codec", r"\(No module named 'no_such_module_here'\)"),
        ("..topk", r"no codec '\.\.topk'\."),
        ("", "no codec ''"),
    ],
)
def test_names_that_are_no_codec(own, name, said):
    with pytest.raises(UsageError, match=said):
        make_codec(name, {})


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("topk", {"kk": 3}, r"does not take \{'kk': 3\}.*Did you mean 'k'"),
        ("dense", {"temperature": 2}, "Known: dtype"),
        ("topk", {"temperatures": 4}, "does not take"),
        ("topk", {"temperatures": ["warm"]}, "does not take.*warm"),
        ("topk", {"k": "3"}, "k is '3'"),
    ],
)
def test_settings_that_a_codec_does_not_take(name, settings, said):
    with pytest.raises(UsageError, match=said):
        make_codec(name, settings)


def test_default_settings_are_spelled_out():
    assert codec_settings(TopKCodec()) == {
        "name": "topk",
        "k": 32,
        "dtype": "float16",
        "temperatures": [1.0, 2.0, 4.0, 8.0],
    }
    assert codec_settings(DenseCodec()) == {"name": "dense", "dtype": "float16"}
