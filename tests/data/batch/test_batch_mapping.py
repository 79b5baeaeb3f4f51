"""Which leaves of a batch are inputs, labels and mask, and what is refused."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kdcache.data.batch.leaves import leaf
from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.batch.section import parse_mapping
from kdcache.data.batch.selection import CallableMapping, Selected
from kdcache.errors import DataError, UsageError

X, Y, Z = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.randn(3, 2)
MASK = torch.ones(3, 4, dtype=torch.int64)


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


@dataclass
class Record:
    image: Tensor
    label: Tensor


def select(batch, **mapping):
    return BatchMapping(**mapping).resolve(batch).select(batch)


class TestInference:
    @pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y)])
    def test_two_elements_are_input_and_labels(self, batch):
        found = select(batch)
        assert found.args == (X,)
        assert found.labels is Y

    @pytest.mark.parametrize("batch", [X, (X,), [X]])
    def test_one_element_or_none_is_the_input(self, batch):
        found = select(batch)
        assert found.args == (X,)
        assert found.labels is None

    @pytest.mark.parametrize("label_name", ["labels", "label", "label_ids"])
    @pytest.mark.parametrize("kind", [dict, UserDict])
    def test_hugging_face_names(self, kind, label_name):
        batch = kind({"pixel_values": X, label_name: Y})
        found = select(batch)
        assert found.args == ()
        assert found.kwargs == {"pixel_values": X}
        assert found.labels is Y

    def test_an_attention_mask_is_input_and_mask(self):
        found = select({"input_ids": X, "attention_mask": MASK})
        assert found.kwargs.keys() == {"input_ids", "attention_mask"}
        assert found.mask is MASK

    def test_an_encoders_attention_mask_is_not_the_decoders(self):
        batch = {"input_ids": X, "attention_mask": MASK, "decoder_input_ids": X}
        assert select(batch).mask is None

    def test_a_mask_that_was_named_is_kept(self):
        named = Z > 0
        batch = {"input_ids": X, "attention_mask": MASK, "pixel_mask": named}
        assert select(batch, mask="pixel_mask").mask is named

    @pytest.mark.parametrize(
        "batch", [(X, Y, Z), {"image": X, "digit": Y}, {"input_ids": X, "extra": Y}, 3, ()]
    )
    def test_other_structures_are_refused_with_an_example(self, batch):
        with pytest.raises(DataError, match=r"Say so.*batch: \{inputs"):
            BatchMapping().resolve(batch)

    def test_what_was_given_is_never_replaced(self):
        given = BatchMapping(inputs=[1], labels=0)
        found = given.resolve((X, Y))
        assert (found.inputs, found.labels, found.mask) == (given.inputs, given.labels, given.mask)


class TestInferredMask:
    def fit(self, logits, mask=MASK):
        mapping = BatchMapping().resolve({"input_ids": X, "attention_mask": mask})
        return mapping.fit_to(logits.shape[:-1], Selected(mask=mask))

    def test_is_kept_where_it_has_the_positions_shape(self):
        mapping, mask = self.fit(torch.zeros(3, 4, 2))
        assert mask is MASK
        assert mapping.mask == "attention_mask"

    @pytest.mark.parametrize("shape", [(3, 2), (3, 5, 2), (3, 4, 4, 2)])
    def test_is_dropped_for_good_where_not(self, shape):
        mapping, mask = self.fit(torch.zeros(shape))
        assert mask is None
        assert mapping.mask is None
        assert not mapping.mask_inferred

    def test_a_mask_that_was_named_is_never_dropped(self):
        mapping = BatchMapping(inputs=[0], mask=1)
        assert mapping.fit_to((3,), Selected(mask=MASK)) == (mapping, MASK)


class TestPaths:
    def test_nested_leaves_of_every_kind(self):
        batch = {"view": [{"image": X}, Pair(Z, Y)], "record": Record(X, Y), 7: Z, "8": Y}
        assert leaf(batch, "view.0.image") is X
        assert leaf(batch, "view.1.label") is Y
        assert leaf(batch, "view.-1.0") is Z
        assert leaf(batch, "record.label") is Y
        assert leaf(batch, 7) is Z
        assert leaf(batch, 8) is Y

    def test_inputs_by_path_and_by_name(self):
        batch = ({"image": X, "crop": Z}, Y)
        found = select(batch, inputs=["0.image", "0.crop"], labels=1)
        assert found.args == (X, Z)
        assert select(batch, inputs={"pixels": "0.image"}).kwargs == {"pixels": X}

    @pytest.mark.parametrize("batch", [(X, Z), [X, Z], Pair(X, Z)])
    def test_all_gives_every_element(self, batch):
        assert select(batch, inputs="all").args == (X, Z)

    def test_all_of_a_mapping_and_of_a_bare_tensor(self):
        assert select({"a": X, "b": Z}, inputs="all").kwargs == {"a": X, "b": Z}
        assert select(X, inputs="all").args == (X,)

    @pytest.mark.parametrize(
        ("setting", "path", "says"),
        [
            ({"inputs": ["imgae"]}, "imgae", "Did you mean 'image'"),
            ({"inputs": {"x": "image.pixels"}}, "image.pixels", "no 'pixels'"),
            ({"inputs": ["image"], "labels": "labell"}, "labell", "Did you mean 'label'"),
            ({"inputs": ["image"], "mask": "mask"}, "mask", "Known: image, label"),
        ],
    )
    def test_a_wrong_path_is_named_with_its_setting(self, setting, path, says):
        name = list(setting)[-1]
        with pytest.raises(DataError, match=f"batch.{name} '{path}' leads nowhere.*{says}"):
            select({"image": X, "label": Y}, **setting)

    @pytest.mark.parametrize("path", ["2", "-3", "index", "count", "image"])
    def test_a_sequence_has_only_its_numbers(self, path):
        with pytest.raises(DataError, match="a list of 2 has no"):
            leaf([X, Y], path)

    @pytest.mark.parametrize("path", [0, "upper"])
    def test_a_text_is_no_container(self, path):
        with pytest.raises(DataError, match="a str has no"):
            leaf("text", path)

    def test_a_mask_is_a_tensor(self):
        with pytest.raises(DataError, match=r"batch\.mask 1 is a list of 3, not a tensor"):
            select((X, [1, 1, 0]), inputs=[0], mask=1)


class TestSettings:
    def test_teacher_and_student_apart(self):
        spec = {"teacher": {"inputs": [0]}, "student": {"inputs": [1], "labels": 2}}
        assert parse_mapping(spec, "teacher") == BatchMapping(inputs=(0,))
        assert parse_mapping(spec, "student") == BatchMapping(inputs=(1,), labels=2)
        assert parse_mapping({"teacher": {"inputs": [0]}}, "student") == BatchMapping()

    def test_a_function_and_its_class_path(self):
        mapping = parse_mapping(f"{__name__}.choose", "teacher")
        assert mapping.select((X, Y, Z)).args == (Z,)
        assert "choose" in mapping.describe()
        assert parse_mapping(mapping, "student") is mapping

    def test_a_function_that_returns_something_else(self):
        with pytest.raises(UsageError, match="returned tuple, not Selected"):
            CallableMapping(lambda batch: batch).select((X, Y))

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ({"input": [0]}, r"'batch\.input'.*Did you mean 'inputs'"),
            ({"teacher": {}, "pupil": {}}, r"'batch\.pupil'"),
            ({"inputs": "image"}, r"write \[image\]"),
            ({"inputs": []}, "empty"),
            ({"inputs": [0.5]}, "list of paths"),
            ({"inputs": [True]}, "list of paths"),
            ({"inputs": [0], "labels": [1]}, r"batch\.labels is one path"),
            ({"inputs": [0], "mask": {"a": 1}}, r"batch\.mask is one path"),
            ({"class_dim": 0}, "class axis"),
            ({"class_dim": "1"}, "class axis"),
            ("no.such.module.function", "cannot be imported"),
            ("os.path.sep", "not callable"),
            (3, "class path"),
        ],
    )
    def test_a_wrong_setting_is_refused(self, spec, says):
        with pytest.raises(UsageError, match=says):
            parse_mapping(spec, "teacher")

    def test_the_description_tells_all_that_decides(self):
        given = [
            BatchMapping(inputs=[0]),
            BatchMapping(inputs=["0"], labels=1),
            BatchMapping(inputs={"x": 0}),
            BatchMapping(inputs=[0], mask=1),
            BatchMapping(inputs=[0], class_dim=1),
        ]
        assert len({mapping.describe() for mapping in given}) == len(given)


def choose(batch):
    return Selected(args=(batch[2],), labels=batch[1])
