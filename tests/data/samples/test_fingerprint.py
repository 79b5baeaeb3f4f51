"""The fingerprint: equal for equal content, different for all else, the same in every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import kdcache
from kdcache.data.samples.fingerprint import FingerprintSource, fingerprint
from kdcache.errors import DataError

ROOT = Path(__file__).resolve().parents[3]

GOLDEN_VALUE = [np.asarray([1, 2], np.float32), "cat"]
# A list of two; an array with dtype and shape, then its little-endian bytes; a text of three
# bytes. The number is xxh3-64 of that, as the ``xxhsum -H3`` of any xxHash release gives it. It
# stands in every cache: where this test fails, caches that exist no longer join.
GOLDEN_BYTES = b"L2;Afloat32(2,)\x00\x00\x80\x3f\x00\x00\x00\x40str3;cat"
GOLDEN = 11809826651744296620


class Image:
    """What a PIL image is to a fingerprint."""

    def __init__(self, pixels, mode="L", palette=None):
        self.pixels, self.mode, self.palette = np.asarray(pixels, np.uint8), mode, palette
        self.size = self.pixels.shape[::-1]

    def tobytes(self):
        return self.pixels.tobytes()

    def getpalette(self):
        return self.palette

    def __array__(self, dtype=None, copy=None):
        return self.pixels


class Pair(NamedTuple):
    a: int
    b: int


def test_golden():
    assert fingerprint(GOLDEN_VALUE) == xxhash.xxh3_64_intdigest(GOLDEN_BYTES) == GOLDEN


@pytest.mark.parametrize("numbers", [[], [3], (0, -5, 1 << 70), [*range(300)], [1, True, 2.0, "3"]])
def test_a_list_is_its_items_one_by_one(numbers):
    """Whole numbers have a faster way through; to the same bytes."""
    forms = {int: "Nint {:x};", bool: "Nbool {!r};", float: "Nfloat {!r};", str: "str1;{}"}
    items = [forms[type(number)].format(number) for number in numbers]
    assert fingerprint(numbers) == xxhash.xxh3_64_intdigest(
        "".join([f"L{len(numbers)};", *items]).encode()
    )


def test_another_process_with_another_hash_seed_gives_the_same_number():
    code = (
        "from kdcache.data.samples.fingerprint import fingerprint as f\n"
        "import numpy as np, torch\n"
        "print(f([np.asarray([1, 2], np.float32), 'cat']))\n"
        "print(f({'b': {'y': 1, 'x': torch.ones(2)}, 'a': ['s', None, 2.5]}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    here = [GOLDEN, fingerprint({"a": ["s", None, 2.5], "b": {"x": torch.ones(2), "y": 1}})]
    assert [int(line) for line in found.stdout.split()] == here


ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
EQUAL = {
    "tensor and array": (torch.from_numpy(ARRAY), ARRAY),
    "not contiguous": (torch.from_numpy(ARRAY.T.copy()).T, ARRAY),
    "column-major": (np.asfortranarray(ARRAY), ARRAY),
    "a slice": (np.repeat(ARRAY, 2, axis=1)[:, ::2], ARRAY),
    "big-endian": (ARRAY.astype(">f4"), ARRAY),
    "requires grad": (torch.from_numpy(ARRAY).requires_grad_(), ARRAY),
    "0-d tensor, array and scalar": (torch.tensor(3), np.asarray(3)),
    "0-d and NumPy scalar": (np.int64(3), np.asarray(3)),
    "conjugate view": (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "order of a dict with keys of two types": ({1: "a", "1": "b"}, {"1": "b", 1: "a"}),
    "tuple, list and named tuple": ((1, 2), Pair(1, 2)),
    "range": (range(2), [0, 1]),
    "bytes": (b"ab", bytearray(b"ab")),
    "image": (Image([[1, 2]]), Image([[1, 2]])),
    "NaN": (float("nan"), float("nan")),
}
BFLOAT = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
DIFFERENT = {
    "content": (ARRAY, ARRAY + 1),
    "lowest bit": (np.float32(1), np.nextafter(np.float32(1), np.float32(2))),
    "dtype": (ARRAY, ARRAY.astype(np.float64)),
    "dtype of equal bits": (np.zeros(2, np.int32), np.zeros(2, np.float32)),
    "shape": (ARRAY, ARRAY.reshape(3, 2)),
    "0-d and 1-d": (np.asarray(3), np.asarray([3])),
    "empty shapes": (np.zeros((0, 2)), np.zeros((0, 3))),
    "sign of zero": (0.0, -0.0),
    "bfloat16 and its bits": (BFLOAT, BFLOAT.view(torch.uint16)),
    "bfloat16 and float16": (BFLOAT.view(torch.float16), BFLOAT),
    "bfloat16 content": (BFLOAT, BFLOAT + 1),
    "float8": (torch.ones(2, dtype=torch.float8_e4m3fn), torch.ones(2, dtype=torch.float8_e5m2)),
    "bool and int": (True, 1),
    "int and float": (1, 1.0),
    "number and text": (1, "1"),
    "text and bytes": ("a", b"a"),
    "None and nothing": ([None], []),
    "where one text ends": (["ab", "c"], ["a", "bc"]),
    "where one list ends": ([[1], 2], [[1, 2]]),
    "order of a list": ([1, 2], [2, 1]),
    "keys": ({"a": 1}, {"b": 1}),
    "keys of two types": ({1: 2}, {"1": 2}),
    "which key has what": ({1: "a", "1": "b"}, {1: "b", "1": "a"}),
    "image mode": (Image([[1, 2]]), Image([[1, 2]], mode="P", palette=[])),
    "image palette": (
        Image([[1, 2]], mode="P", palette=[0, 0, 0]),
        Image([[1, 2]], mode="P", palette=[9, 0, 0]),
    ),
    "dates": (np.asarray("2024", "M8[Y]"), np.asarray("2025", "M8[Y]")),
    "texts in an array": (np.asarray(["a"]), np.asarray(["b"])),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal(name):
    first, second = EQUAL[name]
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint([first]) == fingerprint([second])


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name):
    first, second = DIFFERENT[name]
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint([first]) != fingerprint([second])


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1, 2},
        np.asarray([object()]),
        np.zeros(2, [("a", "i4"), ("b", "f4")]),
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        lambda: 1,
        endless(),
        {"a": [object()]},
        {object(): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_fingerprint_says_so(value):
    with pytest.raises(DataError, match="no fingerprint"):
        fingerprint(value)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


def canonical(value):
    """Text that is equal for equal values only: 1, 1.0 and True differ, as -0.0 and 0.0 do."""
    if isinstance(value, dict):
        return sorted((repr(key), canonical(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return ["list", *map(canonical, value)]
    return f"{type(value).__name__} {value!r}"


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES)
def test_equal_exactly_where_the_content_is(first, second):
    assert (fingerprint(first) == fingerprint(second)) == (canonical(first) == canonical(second))


DTYPES = ["float16", "float32", "float64", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=12),
    st.sampled_from(DTYPES),
    st.integers(0, 11),
)
def test_one_changed_number_of_a_tensor_changes_it(bits, dtype, at):
    tensor = torch.tensor(bits).to(getattr(torch, dtype))
    changed = tensor.clone()
    changed[at % len(bits)] = 1 - tensor[at % len(bits)].to(torch.int64)
    assert fingerprint(changed) != fingerprint(tensor)
    assert fingerprint(tensor.clone()) == fingerprint(tensor)


class TestSource:
    SAMPLE = ({"image": ARRAY, "id": 3}, 7)

    def test_selected_leaves(self):
        source = FingerprintSource(name="inputs", paths=("0.image",))
        assert source(self.SAMPLE) == fingerprint([ARRAY])
        assert source(({"image": ARRAY, "id": 4}, 8)) == source(self.SAMPLE)

    def test_the_whole_sample(self):
        assert FingerprintSource()(self.SAMPLE) == fingerprint(self.SAMPLE)

    def test_a_function(self):
        source = FingerprintSource(name="its.path", function=lambda sample: sample[0]["id"])
        assert source(self.SAMPLE) == fingerprint(3)
        assert source.to_json() == {"algorithm": "xxh3_64", "source": "its.path", "paths": []}


DOCUMENT = Path(kdcache.store.__file__).with_name("FORMAT.md")


def test_the_document_says_how_a_fingerprint_is_made():
    """Its own block, run as it stands, comes to the same 64 bits."""
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "def canonical" in block]
    names: dict = {}
    exec(block, names)
    values = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        [1, 2, 300],
        (True, 1.5, None, 2j, -7),
        {"b": "text \u00e4", "a": b"bytes", 3: [np.float32([0.5])], 10: {}},
        [],
    ]
    for value in values:
        assert names["fingerprint"](value) == fingerprint(value)
    assert len({names["fingerprint"](value) for value in values}) == len(values)
