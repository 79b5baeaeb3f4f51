"""Loading weights: what is loaded, and that nothing else is."""

from __future__ import annotations

import os
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from kdcache.errors import DataError, UsageError
from kdcache.weights import load_weights, save_weights, unwrapped
from tests.weights.wrapped import WRAPPINGS, Own, one_process


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
        ("code.pt", write_code, "pickle of another kind"),
        ("cut.safetensors", lambda p: p.write_bytes(b"\x10"), "damaged, or no safetensors"),
        ("text.pt", lambda p: p.write_text("hello"), "damaged"),
        (
            "other.pt",
            lambda p: write_state_dict(nn.Linear(3, 3), p),
            r"weight is \(2, 3\) in the model and \(3, 3\) in the file",
        ),
        (
            "names.pt",
            lambda p: torch.save({"w": torch.ones(1)}, p),
            r"2 of the model's tensors are not in the file \(weight, bias\)",
        ),
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


@pytest.fixture
def group(tmp_path):
    one_process(tmp_path)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_is_saved_loads_into_the_plain_model(wrapping, tmp_path):
    """With safetensors' own loader, strictly."""
    saved = Own(seed=1)
    save_weights(WRAPPINGS[wrapping](saved), tmp_path / "w.safetensors", {"note": "hello"})
    loaded = Own(seed=2)
    load_model(loaded, str(tmp_path / "w.safetensors"), strict=True)
    assert_same(loaded, Own(seed=1))
    with safe_open(tmp_path / "w.safetensors", "pt") as opened:
        assert opened.metadata()["note"] == "hello"


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("write", [write_safetensors, write_state_dict, write_checkpoint])
@pytest.mark.parametrize("of_model", WRAPPINGS)
@pytest.mark.parametrize("of_file", WRAPPINGS)
def test_files_and_models_may_be_wrapped(of_file, of_model, write, tmp_path):
    path = tmp_path / ("w.safetensors" if write is write_safetensors else "w.pt")
    write(WRAPPINGS[of_file](Own(seed=1)), path)
    loaded = Own(seed=2)
    load_weights(WRAPPINGS[of_model](loaded), path)
    assert_same(loaded, Own(seed=1), unwrap=True)


def assert_same(model, other, *, unwrap=False):
    with unwrapped(model) if unwrap else nullcontext(model) as plain:
        found, expected = plain.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_of_tied_weights_is_enough(tmp_path):
    """As in Hugging Face's files."""
    saved, loaded = Own(seed=1), Own(seed=2)
    state = saved.state_dict()
    del state["head.weight"]
    torch.save(state, tmp_path / "w.bin")
    load_weights(loaded, tmp_path / "w.bin")
    assert_same(loaded, saved)
    assert loaded.head.weight is loaded.first.weight


class WithPart(nn.Module):
    """A buffer that is a part of a parameter."""

    def __init__(self, value):
        super().__init__()
        self.whole = nn.Parameter(torch.full((4,), float(value)))
        self.register_buffer("part", self.whole.detach()[1:3])


class Overlapping(nn.Module):
    """Neither is a part of the other: safetensors' own function refuses them."""

    def __init__(self, value):
        super().__init__()
        both = torch.full((4,), float(value))
        self.register_buffer("first", both[:3])
        self.register_buffer("last", both[1:])


@pytest.mark.parametrize("kind", [WithPart, Overlapping])
def test_tensors_that_share_memory_are_saved(kind, tmp_path):
    save_weights(kind(1), tmp_path / "w.safetensors", {})
    loaded = kind(2)
    load_weights(loaded, tmp_path / "w.safetensors")
    assert_same(loaded, kind(1))


def test_overlapping_tensors_load_with_pytorch_alone(tmp_path):
    save_weights(Overlapping(1), tmp_path / "w.safetensors", {})
    loaded = Overlapping(2)
    loaded.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    assert_same(loaded, Overlapping(1))


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_what_is_no_tensor_is_left_out_and_said(tmp_path, caplog):
    save_weights(WithExtraState(2, 2), tmp_path / "w.safetensors", {})
    assert "_extra_state of WithExtraState is left out" in caplog.text
    assert set(load_file(tmp_path / "w.safetensors")) == {"weight", "bias"}


def test_what_safetensors_cannot_hold_is_told(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(DataError, match="the weights of Linear cannot be written"):
        save_weights(model, tmp_path / "w.safetensors", {})


def checkpoint(**parts):
    return lambda path: torch.save({"epoch": 1, **parts}, path)


def test_the_one_state_dict_of_a_file_is_found(tmp_path):
    saved, loaded = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.Adam(saved.parameters())
    checkpoint(model_state_dict=saved.state_dict(), optimizer=optimizer.state_dict())(
        tmp_path / "w.pt"
    )
    load_weights(loaded, tmp_path / "w.pt")
    assert_same(loaded, saved)


def test_two_state_dicts_are_named(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    checkpoint(model=state, ema=state)(tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"more than one state dict.*2 parts .*\(model, ema\)"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")


def test_weights_of_another_model_are_listed(tmp_path):
    torch.save({"module.weight": torch.ones(2, 3), "module.other": torch.ones(1)}, tmp_path / "w")
    with pytest.raises(DataError, match=r"2 of the model's .*weight, bias.*2 in the file are not"):
        load_weights(nn.Linear(3, 2), tmp_path / "w")


@pytest.mark.parametrize(
    ("names", "given", "says"),
    [
        (
            ["model.safetensors", "config.json"],
            ".",
            r"Give the file .*model\.safetensors\. A folder",
        ),
        (["pytorch_model.bin"], ".", r"Give the file .*pytorch_model\.bin\."),
        (["a-1.safetensors", "a-2.safetensors"], ".", r"not a file\. A folder .* from_pretrained"),
        (
            ["m.safetensors.index.json"],
            "m.safetensors.index.json",
            "several files.*from_pretrained",
        ),
    ],
)
def test_folders_of_save_pretrained_are_told_apart(names, given, says, tmp_path):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=says):
        load_weights(nn.Linear(1, 1), tmp_path / given)


def test_a_model_that_is_not_initialised_takes_them(tmp_path):
    saved, loaded = nn.Linear(3, 2), nn.LazyLinear(2)
    write_state_dict(saved, tmp_path / "w.pt")
    load_weights(loaded, tmp_path / "w.pt")
    assert_same(loaded, saved)


def test_a_model_without_memory_is_no_excuse_for_missing_tensors(tmp_path):
    """All of its tensors are at address 0."""
    torch.save({"weight": torch.ones(2, 3)}, tmp_path / "w.pt")
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    with pytest.raises(DataError, match=r"1 of the model's tensors are not in the file \(bias\)"):
        load_weights(model, tmp_path / "w.pt")


def test_integers_are_no_weights(tmp_path):
    state = {name: value.to(torch.int8) for name, value in nn.Linear(3, 2).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"are integers where Linear has fractions, in 2 tensors"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_weights(dtype, tmp_path):
    """Counters too, where somebody has converted everything."""
    state = {name: value.to(dtype) for name, value in nn.BatchNorm1d(3).state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(nn.BatchNorm1d(3), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!DOCTYPE html>\n<html>404</html>", "It is text, and begins with '<!DOCTYPE html>'"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7\n", "with git lfs pull"),
    ],
)
def test_text_instead_of_weights_is_told(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=says):
        load_weights(nn.Linear(1, 1), tmp_path / name)
