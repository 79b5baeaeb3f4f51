"""Loading weights: what is loaded, and that nothing else is."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from kdcache.errors import DataError, UsageError
from kdcache.weights import load_weights


class Tied(nn.Module):
    """Two names for one tensor, as in most language models."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight


def write_safetensors(model, path):
    save_model(model, str(path))


def write_state_dict(model, path):
    torch.save(model.state_dict(), path)


def write_checkpoint(model, path):
    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_safetensors, "w.safetensors"),
        (write_state_dict, "w.pt"),
        (write_state_dict, "w.bin"),
        (write_checkpoint, "last.ckpt"),
    ],
)
@pytest.mark.parametrize("make", [Tied, lambda seed: nn.Linear(seed + 3, 2)])
def test_loads_what_was_saved(write, name, make, tmp_path):
    saved = make(1)
    write(saved, tmp_path / name)
    loaded = make(1)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    load_weights(loaded, tmp_path / name)
    for ours, theirs in zip(loaded.parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_may_call_a_part_of_its_own_student(tmp_path):
    saved, loaded = (nn.ModuleDict({"student": nn.Linear(2, 2)}) for _ in range(2))
    write_state_dict(saved, tmp_path / "w.pt")
    load_weights(loaded, tmp_path / "w.pt")
    assert torch.equal(saved["student"].weight, loaded["student"].weight)


class _Mark:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_code(path):
    with path.open("wb") as stream:
        pickle.dump({"weight": _Mark(path.with_name("ran"))}, stream)


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("code.pt", write_code, "cannot be loaded into Linear"),
        ("cut.safetensors", lambda p: p.write_bytes(b"\x10"), "cannot be loaded into Linear"),
        ("text.pt", lambda p: p.write_text("hello"), "cannot be loaded into Linear"),
        ("other.pt", lambda p: write_state_dict(nn.Linear(3, 3), p), "size mismatch"),
        ("names.pt", lambda p: torch.save({"w": torch.ones(1)}, p), "Missing key"),
        ("list.pt", lambda p: torch.save([1, 2], p), "no state dict"),
        ("text_in.pt", lambda p: torch.save({"weight": "3"}, p), "no state dict"),
    ],
)
def test_anything_else_is_refused(name, write, says, tmp_path):
    path = tmp_path / name
    write(path)
    with pytest.raises(DataError, match=says):
        load_weights(nn.Linear(3, 2), path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*nothing\.pt"):
        load_weights(nn.Linear(1, 1), tmp_path / "nothing.pt")
