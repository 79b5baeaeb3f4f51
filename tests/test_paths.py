"""A URL never becomes a folder, wherever a path comes in; odd names of real folders still do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from kdcache import cli
from kdcache.errors import UsageError
from kdcache.paths import local_path
from kdcache.weights import load_weights

posix = pytest.mark.skipif(os.name != "posix", reason="there, they are paths")
URL = "s3://bucket/x.zarr"
URLS = [
    *(URL, "gs://b/x", "az://b/x", "abfss://c@a.dfs/x", "https://host/x", "file:///tmp/x"),
    *("hf://datasets/x", "memory://x", "S3://b/x", "s3:/bucket/x", "s3:bucket/x", "GS:b/x"),
    *("simplecache::s3://b/x", "zip::file:///a.zip", "unheard-of://b/x"),
    Path(URL),
]


@pytest.mark.parametrize("url", URLS, ids=str)
def test_urls(url):
    with pytest.raises(UsageError, match=r"cache: .* is a URL"):
        local_path(url, "cache")


@pytest.mark.parametrize(
    "name",
    ["x.zarr", "/a/b", "C:x", "a:b.zarr", "runs/2026:11/x", "s3.x", "runs/s3:x", "lr=1e-3:b"],
)
def test_names_of_this_machine(name):
    assert local_path(name, "cache") == Path(name)
    assert local_path(Path(name), "cache") == Path(name)


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x.zarr", "cache") == tmp_path / "x.zarr"


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("", "empty path"),
        ("  ", "empty path"),
        ("$SCRATCH/x", r"\$SCRATCH, and environment variables are not"),
        ("${SCRATCH}/x", "environment variables are not"),
        (3, "cache is a path, not 3"),
        (None, "cache is a path, not None"),
        (b"x", "cache is a path, not"),
        (["x"], "cache is a path, not"),
        ("~nobody-of-this-name/x", "there is no such user"),
        ("a\0b", "NUL character"),
        pytest.param("C:/x", "path of Windows", marks=posix),
        pytest.param("C:\\runs\\a", "path of Windows", marks=posix),
    ],
)
def test_what_is_no_path(value, match):
    with pytest.raises(UsageError, match=match):
        local_path(value, "cache")


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(torch.randn(8, 3), torch.zeros(8).long()), batch_size=4)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; nothing may have been made in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def cache(tmp_path, loader):
    return kdcache.dump_teacher(
        nn.Linear(3, 2), loader, tmp_path / "t.zarr", progress=False, accelerator="cpu"
    )


PYTHON = {
    "dump": lambda loader, _: kdcache.dump_teacher(nn.Linear(3, 2), loader, URL),
    "train": lambda loader, _: kdcache.train_student(nn.Linear(3, 2), loader, URL),
    "output": lambda loader, cache: kdcache.train_student(
        nn.Linear(3, 2), loader, cache.path, output=URL
    ),
    "local_copy": lambda loader, cache: kdcache.train_student(
        nn.Linear(3, 2), loader, cache.path, local_copy=URL
    ),
    "resume": lambda loader, cache: kdcache.train_student(
        nn.Linear(3, 2), loader, cache.path, resume=URL
    ),
    "open": lambda *_: kdcache.open_cache(URL),
    "joined": lambda loader, _: kdcache.CachedDataset(loader.dataset, URL),
    "joined copy": lambda loader, cache: kdcache.CachedDataset(
        loader.dataset, cache, local_copy=URL
    ),
    "predecessor": lambda loader, _: kdcache.KnowledgeDistillationTraining(
        train_data_loader=loader,
        val_data_loaders={"test": loader},
        student_model=nn.Linear(3, 2),
        teacher_model=nn.Linear(3, 2),
        cache=URL,
    ),
    "weights": lambda *_: load_weights(nn.Linear(3, 2), URL),
    "import": lambda *_: kdcache.import_logprobs("x.jsonl", URL, num_classes=4),
    "import from": lambda *_: kdcache.import_logprobs(URL, "x.zarr", num_classes=4),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_refuses_urls(name, loader, cache, here):
    with pytest.raises(UsageError, match="is a URL"):
        PYTHON[name](loader, cache)


def test_the_folder_of_local_copies(monkeypatch, loader, cache, here):
    monkeypatch.setenv("KDCACHE_LOCAL", URL)
    with pytest.raises(UsageError, match=r"KDCACHE_LOCAL.*is a URL"):
        _ = kdcache.CachedDataset(loader.dataset, cache).copy


FILE = "data: {class_path: m.D}\nteacher: {class_path: m.T}\nstudent: {class_path: m.S}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["dump-teacher", "-c", "FILE", "--cache", URL],
        ["train-student", "-c", "FILE", "--cache", URL],
        ["dump-teacher", "-c", "https://host/x.yaml"],
        ["inspect", URL],
        ["verify", URL],
        ["clean", URL],
        ["merge", URL, URL, "--into", "x.zarr"],
        ["import-logprobs", "x.jsonl", "--into", URL, "--num_classes", "4"],
    ],
    ids=" ".join,
)
def test_the_command_line_refuses_urls(words, tmp_path, here, capsys):
    (tmp_path / "x.yaml").write_text(FILE)
    given = [str(tmp_path / "x.yaml") if word == "FILE" else word for word in words]
    assert cli.main(given) == 2
    assert "is a URL" in capsys.readouterr().err
