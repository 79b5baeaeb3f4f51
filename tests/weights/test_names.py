"""Names without wrappers: by type in a model, by what is left in a file."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kdcache.weights import plain_state, state_for, unwrapped
from kdcache.weights.names import matched
from tests.weights.wrapped import WRAPPINGS, Own, compiled, one_process

OWN = list(Own().state_dict())


@pytest.fixture(autouse=True)
def _process_group(tmp_path):
    one_process(tmp_path)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_names_of_a_wrapped_model_are_the_models_own(wrapping):
    model = Own()
    wrapped = WRAPPINGS[wrapping](model)
    state = wrapped.state_dict()
    plain = plain_state(wrapped, state)
    assert list(plain) == OWN
    assert list(map(id, plain.values())) == list(map(id, state.values()))
    assert list(state_for(wrapped, plain)) == list(state)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_are_put_back(wrapping):
    model = Own()
    wrapped = WRAPPINGS[wrapping](model)
    before = [(name, type(module)) for name, module in wrapped.named_modules()]
    with unwrapped(wrapped) as plain:
        assert plain is model
        assert list(plain.state_dict()) == OWN
        assert plain.head.weight is plain.first.weight
    assert [(name, type(module)) for name, module in wrapped.named_modules()] == before


def test_wrappers_are_put_back_after_an_error():
    wrapped = WRAPPINGS["all at once"](Own())
    before = list(wrapped.state_dict())
    with pytest.raises(ValueError, match="full"), unwrapped(wrapped):
        raise ValueError("full")
    assert list(wrapped.state_dict()) == before


def test_a_part_is_no_wrapper_because_of_its_name():
    class Likeness(nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod, self.module = nn.Linear(1, 1), nn.Linear(1, 1)

    likeness = Likeness()
    for wrapped in (likeness, compiled(likeness)):
        assert list(plain_state(wrapped, wrapped.state_dict())) == list(likeness.state_dict())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_names_in_a_file_are_matched(wrapping):
    wrapped = WRAPPINGS[wrapping](Own())
    names = list(wrapped.state_dict())
    assert list(matched(names, OWN).values()) == OWN
    # As another module, such as a LightningModule, had it.
    assert list(matched([f"student.{name}" for name in names], OWN).values()) == OWN


def test_a_state_dict_that_fits_is_given_back():
    """With what PyTorch has written into it beside tensors."""
    state = Own().state_dict()
    assert state_for(Own(), state) is state


CASES = [
    # found, own, what it is
    (["a", "b"], ["a", "b"], ["a", "b"]),
    (["module.a"], ["module.a", "b"], ["module.a"]),
    (["module.module.a", "module.b"], ["module.a", "b"], ["module.a", "b"]),
    (["module.module.a", "module.a"], ["module.a", "a"], ["module.a", "a"]),
    (["net.a", "net.b"], ["a", "b"], ["a", "b"]),
    (["_orig_mod.module.net.a"], ["a"], ["a"]),
    (["net._orig_mod.enc.module.a"], ["enc.a"], ["enc.a"]),
    (["student.a"], ["student.a"], ["student.a"]),
    (["a", "b"], ["net.a", "net.b"], ["net.a", "net.b"]),
    (["old.a", "old.b"], ["new.a", "new.b"], ["new.a", "new.b"]),
    (["_orig_mod.enc.a"], ["net.enc.a", "net.b"], ["net.enc.a"]),
    # Nothing is guessed where parts of the names fit only.
    (["net.a", "other.b"], ["a", "b"], ["net.a", "other.b"]),
    (["module.a", "b"], ["a"], ["module.a", "b"]),
    (["module.a", "a"], ["a"], ["module.a", "a"]),
    (["module.a", "_orig_mod.a"], ["a"], ["module.a", "_orig_mod.a"]),
    (["net.a", "net.c"], ["a", "b"], ["net.a", "net.c"]),
    (["weight"], ["a"], ["weight"]),
    (["a"], ["net.a", "other.a"], ["a"]),
    (["a", "b"], ["net.a", "net.c"], ["a", "b"]),
    ([], ["a"], []),
    ([".".join(["module"] * 40 + ["a"])], ["a"], ["a"]),
    ([".".join(["x", *["module"] * 40, "a"]), "b"], ["x.a", "b"], None),
]


@pytest.mark.parametrize(("found", "own", "expected"), CASES)
def test_matching(found, own, expected):
    assert list(matched(found, own)) == found
    assert list(matched(found, own).values()) == (found if expected is None else expected)


def test_a_wrapped_model_computes_as_before():
    model = Own().eval()
    wrapped = WRAPPINGS["parallel part"](model)
    inputs = torch.randn(2, 3)
    before = wrapped(inputs)
    with unwrapped(wrapped):
        pass
    assert torch.equal(wrapped(inputs), before)
