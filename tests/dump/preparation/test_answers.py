"""A teacher of the same class and weights that says something else does not go on with a dump."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

from kdcache.dump.preparation.answers import ANSWERS, answers_of, check_answers, first_log_p
from kdcache.errors import MismatchError
from kdcache.store import open_cache
from tests.data import toys

N = 24
SAMPLES = toys.labelled(N)
SAYS = r"has the class and the weights of the one that began split 'train'.*Nothing was written"


class Adjusted(nn.Module):
    """The default teacher; what changes it is in no state dict."""

    def __init__(self, *, sign=1.0, temperature=1.0, shift=0.0, hides=False):
        super().__init__()
        self.inner = toys.make_teacher()
        self.sign, self.temperature, self.hides = sign, temperature, hides
        offsets = torch.linspace(0, 1, toys.NUM_CLASSES)
        self.register_buffer("shift", shift * offsets, persistent=False)

    def forward(self, x):
        logits = self.sign * self.inner(x) / self.temperature + self.shift
        return logits.index_fill(-1, torch.tensor([0]), -torch.inf) if self.hides else logits


OTHERS = [{"sign": -1.0}, {"temperature": 2.0}, {"shift": 3.0}, {"hides": True}]
others = pytest.mark.parametrize("arguments", OTHERS, ids=str)


def parts(cache, number, **arguments):
    return toys.dump(cache, SAMPLES, Adjusted(**arguments), part=f"{number}/2")


@others
def test_another_part(tmp_path, arguments):
    parts(tmp_path / "c", 0)
    before = open_cache(tmp_path / "c")["train"]
    with pytest.raises(MismatchError, match=SAYS):
        parts(tmp_path / "c", 1, **arguments)
    assert len(open_cache(tmp_path / "c")["train"].commits) == len(before.commits)
    assert parts(tmp_path / "c", 1)["train"].is_complete


@others
def test_a_complete_cache(tmp_path, arguments):
    toys.dump(tmp_path / "c", SAMPLES, Adjusted())
    with pytest.raises(MismatchError, match=SAYS):
        toys.dump(tmp_path / "c", SAMPLES, Adjusted(**arguments))
    assert toys.dump(tmp_path / "c", SAMPLES, Adjusted())["train"].is_complete


@others
def test_samples_that_are_added(tmp_path, arguments):
    toys.dump(tmp_path / "c", SAMPLES[:16], Adjusted())
    with pytest.raises(MismatchError, match=SAYS):
        toys.dump(tmp_path / "c", SAMPLES, Adjusted(**arguments), extend=True)
    assert open_cache(tmp_path / "c")["train"].manifest.num_samples == 16
    grown = toys.dump(tmp_path / "c", SAMPLES, Adjusted(), extend=True)["train"]
    assert grown.manifest.num_samples == N
    assert len(grown.manifest.references[0][ANSWERS]) == 4  # as many as a batch has positions


def test_what_is_said_of_both(tmp_path):
    toys.dump(tmp_path / "c", SAMPLES, Adjusted())
    with pytest.raises(MismatchError) as caught:
        toys.dump(tmp_path / "c", SAMPLES, Adjusted(sign=-1.0))
    number = int(re.search(r"position (\d+) of the first batch", str(caught.value))[1])
    there, here = (Adjusted(sign=s)(toys.vectors(N))[number].log_softmax(-1) for s in (1.0, -1.0))
    top = int(there.argmax())
    assert f"class {top}, in nats: log-probability {there[top]:.4g}, entropy " in str(caught.value)
    assert f"there; log-probability {here[top]:.4g}, entropy " in str(caught.value)


@pytest.mark.parametrize("classes_hidden", [0, 3])
def test_rounding_is_no_other_teacher(classes_hidden):
    logits = 20 * torch.randn(64, 9, generator=torch.Generator().manual_seed(0))
    logits[:, 1 : 1 + classes_hidden] = -torch.inf
    near = logits * (1 + 4e-4)  # as TF32 rounds
    check_answers(manifest(logits), first_log_p(near), "c")
    half = logits.bfloat16().float()
    with_half = dataclasses.replace(manifest(logits), identity={"precision": "bf16-true"})
    check_answers(with_half, first_log_p(half), "c")
    with pytest.raises(MismatchError):
        check_answers(with_half, first_log_p(logits / 1.5), "c")


def manifest(logits, answers=None):
    found = dataclasses.make_dataclass("Found", ["references", "identity", "split"])
    rows = answers_of(logits) if answers is None else answers
    return found([{"sample": 0, ANSWERS: rows}], {"precision": "32-true"}, "train")


@pytest.mark.parametrize(
    "answers",
    [
        [],
        {},
        3,
        [[1, 2]],
        [["a", 0, 0, 0]],
        [[99, 0, 0, 0]],
        [[-1, 0, 0, 0]],
        [[[1], 0, 0, 0]],
        None,
    ],
)
def test_answers_that_are_none_are_not_compared(answers):
    """Of caches from elsewhere; the first sample may also have no position that counts."""
    found = manifest(torch.zeros(2, 3), answers if answers is not None else [])
    if answers is None:
        found.references = []
    check_answers(found, first_log_p(torch.randn(2, 3)), "c")


def test_no_position_no_answer():
    assert answers_of(torch.empty(0, 5)) == []
