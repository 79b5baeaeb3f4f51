"""Which files say what a run did: the user's own, and no library's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdcache.tracking.source_code import source_files


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "models.py").write_text("class Net: ...\n")
    (folder / "other.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("my_package.models")
    __import__("my_package.other")
    yield folder
    for name in ("my_package.models", "my_package.other", "my_package"):
        del sys.modules[name]


@pytest.mark.parametrize(
    "text",
    [
        "my_package.models.Net",
        "student: {class_path: my_package.models.Net}",
        "losses/my_package.models.my_loss",
        "mask: function:my_package.models.mask",
        "class_path: my_package.models.Net.from_pretrained",
        "['my_package.models.Net', 3]",
    ],
)
def test_the_module_of_a_class_path(package, text):
    assert source_files([text]) == {"my_package/models.py": package / "models.py"}


@pytest.mark.parametrize(
    "text",
    [
        "torch.optim.Adam",  # a library's
        "pathlib.Path",  # Python's own
        "kdcache.train.module.StudentModule",  # ours: run.json says which version
        "nowhere.to.be.Found",
        "runs/teacher.zarr 0.5 1.0e-3 e.g. 3.x",
        "sys.path",  # has no file
        "",
    ],
)
def test_nothing_else(text):
    assert source_files([text]) == {}


def test_the_script_that_runs(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text("")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    assert source_files([]) == {"train.py": script}
    assert source_files(["__main__.Net"]) == {"train.py": script}


@pytest.mark.parametrize("name", ["kdcache", "torchrun", "missing.py"])
def test_a_command_is_no_script_of_the_users(name, tmp_path, monkeypatch):
    if name != "missing.py":
        (tmp_path / name).write_text("")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / name), raising=False)
    assert source_files([]) == {}


def test_our_own_command_is_none(monkeypatch):
    import kdcache.__main__ as ours

    monkeypatch.setattr(
        sys.modules["__main__"], "__file__", str(Path(ours.__file__)), raising=False
    )
    assert source_files([]) == {}
