"""What PyTorch will not read is refused in words of ours, and nothing of it runs."""

from __future__ import annotations

import os
import pickle
import traceback

import numpy as np
import pytest
import torch
from torch import nn

from kdcache.errors import DataError
from kdcache.weights import read_plain


class Mine:
    """Somebody's own class, beside the weights."""


class _Mark:
    """Leaves a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(value, **options):
    return lambda path: torch.save(value, path, **options)


def pickled(value):
    return lambda path: path.write_bytes(pickle.dumps(value))


def scripted(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


REFUSED = {
    "a whole model": (saved(nn.Linear(2, 2)), r"holds torch\.nn\.modules\.linear\.Linear beside"),
    "an object": (saved({"w": torch.ones(1), "args": Mine()}), rf"holds {__name__}\.Mine beside"),
    "the old format": (
        saved({"args": Mine()}, _use_new_zipfile_serialization=False),
        rf"holds {__name__}\.Mine beside",
    ),
    "arrays": (saved({"w": np.ones(2)}), r"holds numpy\..* beside"),
    "a pickle": (pickled({"w": Mine()}), "pickle of another kind"),
    "an old pickle": (lambda p: p.write_bytes(pickle.dumps(Mine(), protocol=2)), r"\.Mine beside"),
    "a program": (scripted, "TorchScript archive is a program"),
    "text": (lambda path: path.write_text("hello"), r"damaged, or no file of torch\.save\."),
    "nothing": (lambda path: path.write_bytes(b""), "damaged"),
    "half a file": (
        lambda p: (torch.save({"w": torch.ones(99)}, p), p.write_bytes(p.read_bytes()[:300])),
        "damaged",
    ),
    "a page": (
        lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
        r"damaged, or no file of torch\.save\.",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words_of_ours(name, mmap, tmp_path):
    write, says = REFUSED[name]
    path = tmp_path / "file.pt"
    write(path)
    with pytest.raises(DataError, match=says) as caught:
        read_plain(path, "Ask its author.", mmap=mmap)
    shown = "".join(traceback.format_exception(caught.value))
    assert "weights_only" not in shown
    assert "ikely succeed" not in shown
    assert "add_safe_globals" not in shown
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("write", [saved, pickled])
def test_nothing_runs(write, tmp_path):
    write({"w": _Mark(tmp_path / "ran")})(tmp_path / "file.pt")
    with pytest.raises(DataError, match="not read"):
        read_plain(tmp_path / "file.pt", "")
    assert not (tmp_path / "ran").exists()


def test_plain_values_are_read(tmp_path):
    torch.save({"w": torch.ones(2), "epoch": 3, "names": ["a"]}, tmp_path / "file.pt")
    assert read_plain(tmp_path / "file.pt", "")["epoch"] == 3
