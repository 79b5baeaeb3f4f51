"""Errors: kinds and exit codes, suggestions, and what is left of a worker's traceback."""

from __future__ import annotations

import inspect

import pytest
from torch.utils.data import DataLoader, Dataset

from kdcache import errors
from kdcache.errors import AlignmentError, KdcacheError, nearest, paragraph, suggest

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, KdcacheError)
]


def test_exit_codes_follow_from_the_kind():
    usage = {kind.__name__ for kind in KINDS if kind.exit_code == 2}
    assert usage == {"UsageError", "UnsupportedTargetsError"}
    others = {kind.__name__: kind.exit_code for kind in KINDS if kind.exit_code > 2}
    assert others == {"PreemptedError": 75, "TerminatedError": 143}
    assert {kind.exit_code for kind in KINDS} == {1, 2, 75, 143}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_takes_one_string_and_says_what_it_is(kind):
    assert str(kind("text")) == "text"
    assert kind.__doc__


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("kd_los", ["kd_loss", "mse"], "Did you mean 'kd_loss'? Known: kd_loss, mse."),
        ("zzz", ["b", "a"], "Known: a, b."),
        ("x", [], "Known: none."),
        ("", ["a"], "Known: a."),
    ],
)
def test_suggestions(name, known, text):
    assert suggest(name, known) == text
    assert suggest(name, iter(known)) == text
    assert nearest(name, known) == text.split("Known")[0]


class Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        try:
            raise OSError("KeyError: the cause, which is not the message")
        except OSError as cause:
            raise self.error from cause


@pytest.mark.parametrize(
    "error",
    [AlignmentError("first line\n  - second line"), ValueError("bad"), ZeroDivisionError("x: y")],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_paragraph_is_the_message_also_from_a_worker(error, num_workers):
    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader(Failing(error), num_workers=num_workers)))
    is_ours = isinstance(error, KdcacheError)
    assert ("Traceback" in str(caught.value)) == (num_workers > 0 and not is_ours)
    assert paragraph(caught.value) == str(error)
    assert not is_ours or str(caught.value) == str(error)
    # Of ours the worker's traceback stands below, where Python shows one.
    notes = getattr(caught.value, "__notes__", [])
    assert len(notes) == (num_workers > 0 and is_ours)
    assert all("the cause, which is not the message" in note for note in notes)


def test_a_message_that_speaks_of_tracebacks_is_left_alone():
    assert paragraph(ValueError("no Original Traceback here ")) == "no Original Traceback here"
