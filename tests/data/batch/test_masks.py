"""Masks, labels and segments of one batch: which positions count, and what is refused.

What a cache holds of such batches is tested in test_token_positions.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdcache import BatchMapping
from kdcache.data.batch.forward import forward
from kdcache.data.batch.masks import next_tokens
from kdcache.data.batch.section import parse_mapping
from kdcache.data.batch.selection import CallableMapping
from kdcache.errors import DataError, UsageError
from tests.data.sequences import IGNORED, VOCABULARY, CausalNet, pad_right, sequences

CAUSAL = {"causal": True}
INPUTS = {"inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"}}


def row(*values):
    return torch.tensor([values])


def returned_masks(masks, **shown):
    """What counts in a batch of one row, whose model returns masks under "a" and "b"."""

    def model(ids):
        return {"logits": torch.zeros(*ids.shape, 5), **shown}

    mapping = BatchMapping(inputs=[0], mask=masks)
    return forward(model, mapping, (row(1, 2, 3, 4), row(1, 1, 0, 1)))


def test_classes_that_only_pad_a_vocabulary_never_reach_a_softmax():
    mapping = BatchMapping(inputs=[0], num_classes=3)
    assert forward(lambda ids: torch.zeros(*ids.shape, 5), mapping, (row(1, 2),)).num_classes == 3


def test_all_masks_have_to_agree_also_those_of_the_model():
    a, b = row(0, 1, 1, 1), row(1, 1, 1, 0)
    assert returned_masks(["output:a", 1], a=a).rows.tolist() == [1, 3]
    assert returned_masks(["output:a", "output:b"], a=a, b=b).rows.tolist() == [1, 2]
    assert returned_masks(["output:a", "output:b", 1], a=a, b=b).rows.tolist() == [1]


@pytest.mark.parametrize(
    ("masks", "shown", "says"),
    [
        (
            ["output:a", 1],
            {"a": torch.ones(1, 3)},
            r"\(1, 3\) \(output:a\), and there is one of \(1, 4",
        ),
        ("output:a", {"a": [1, 1, 1, 1]}, "output:a is a list of 4 of the model's output, not a"),
        ("output:a", {"b": 1}, r"output: 'a' leads nowhere"),
    ],
)
def test_a_models_mask_that_is_none_is_refused(masks, shown, says):
    with pytest.raises(DataError, match=says):
        returned_masks(masks, **shown)


def test_unlabelled_batches_do_not_decide_about_the_shift():
    batch = pad_right(sequences())
    mapping = BatchMapping().resolve({**batch, "labels": torch.full_like(batch["labels"], IGNORED)})
    assert mapping.causal is None
    with pytest.raises(DataError, match="input ids themselves"):
        mapping.resolve(batch)
    other = {**batch, "labels": (batch["labels"] + 1) % VOCABULARY}
    assert mapping.resolve(other).causal is False


@pytest.mark.parametrize("ids", [row(3), torch.ones(2, 1, dtype=torch.int64), torch.ones(2, 3)])
def test_classes_that_happen_to_equal_an_input_are_no_tokens(ids):
    """One position has no next token, and numbers with a fraction are none."""
    mapping = BatchMapping().resolve((ids, ids.long()))
    assert mapping.causal is False


def test_a_few_kept_tokens_of_a_masked_model_decide_nothing():
    """Masked language models keep some of the tokens that they are asked for."""
    ids = torch.arange(12)[None]
    few = ids.where(ids < 7, IGNORED)
    assert BatchMapping().resolve({"input_ids": ids, "labels": few}).causal is None
    with pytest.raises(DataError, match="input ids themselves"):
        BatchMapping().resolve({"input_ids": ids, "labels": ids.where(ids < 8, IGNORED)})


def test_a_mask_that_is_added_to_scores_is_refused():
    mask = torch.tensor([[0.0, 0.0, -1e9, -1e9]])
    with pytest.raises(DataError, match=r"negative numbers.*added to scores"):
        BatchMapping(inputs=[0], mask=1).select((row(1, 2, 3, 4), mask))


LEFT = {"input_ids": row(0, 0, 3, 4, 5), "attention_mask": row(0, 0, 1, 1, 1)}
RIGHT = {"input_ids": row(3, 4, 5, 0, 0), "attention_mask": row(1, 1, 1, 0, 0)}


def every_token(batch):
    """A mask function that leaves all of it to the attention mask."""
    return torch.ones_like(batch["input_ids"])


EVERY = {"mask": f"function:{__name__}.every_token", **INPUTS}
FEW = {**EVERY, "mask": [EVERY["mask"], "few"]}
NUMBERED = {"inputs": {"input_ids": "input_ids"}, "segments": "numbers"}
DECODER = {"inputs": {**INPUTS["inputs"], "decoder_input_ids": "ids"}}


@pytest.mark.parametrize(
    ("mapping", "batch", "wanted"),
    [
        (EVERY, LEFT, [0, 0, 1, 1, 0]),  # padding predicts nothing
        (EVERY, RIGHT, [1, 1, 0, 0, 0]),  # and is not predicted
        (EVERY, {**RIGHT, "attention_mask": torch.ones(1, 5, 5)}, [1, 1, 1, 1, 0]),
        (FEW, {**RIGHT, "few": row(0, 2, 4, 1, 1)}, [0, 1, 0, 0, 0]),
        (NUMBERED, {**RIGHT, "numbers": row(1, 1, 2, 2, 1)}, [1, 0, 1, 0, 0]),
        (NUMBERED, {**RIGHT, "numbers": row(0, 0, 0, 0, 0)}, [1, 1, 1, 1, 0]),
        (DECODER, {**RIGHT, "ids": row(7, 8, 9)}, [1, 1, 0]),  # not the encoder's tokens
    ],
    ids=["left", "right", "no token's mask", "list", "segments", "one segment", "decoder"],
)
def test_each_reason_for_a_position_not_to_count(mapping, batch, wanted):
    mask = parse_mapping({**mapping, **CAUSAL}, "student").select(batch).mask
    assert mask.int().tolist() == [wanted]


def test_masks_of_positions_need_not_be_ones_and_zeros():
    mapping = BatchMapping(inputs=[0], mask=[1, 2])
    found = mapping.select((row(3, 4, 5), row(1, 2, 0), row(2.0, 1.0, 1.0)))
    assert found.mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_whole_numbers_shift(dtype):
    """-100 is no uint8, where it would be 156."""
    batch = (row(1, 2, 3), row(7, 8, 9).to(dtype))
    assert BatchMapping(inputs=[0], labels=1, causal=True).select(batch).labels.tolist() == [
        [8, 9, IGNORED]
    ]
    mapping = BatchMapping(inputs=[0], labels=1, mask="labelled", causal=False)
    bytes_ = (row(1, 2, 3), torch.tensor([[156, 1, 2]], dtype=torch.uint8))
    assert mapping.select(bytes_).mask.tolist() == [[True, True, True]]


def test_labels_tell_the_length_where_no_input_does():
    batch = (torch.ones(1, 4, 3), row(7, 8, 9, 9))
    mask = BatchMapping(inputs=[0], labels=1, causal=True).select(batch).mask
    assert mask.tolist() == [[True, True, True, False]]


def test_an_attention_mask_of_other_length_is_not_dropped_where_tokens_predict_tokens():
    """Without it padding would count, and every last position."""

    class Longer(CausalNet):
        def forward(self, **inputs):
            logits = super().forward(**inputs)["logits"]
            return torch.cat([logits[:, :1], logits], dim=1)

    batch = {k: v for k, v in pad_right(sequences()).items() if k != "labels"}
    assert forward(Longer(), BatchMapping(), batch).rows is None  # a mask of something else
    with pytest.raises(DataError, match=r"mask has shape \(8, 10\), the model's positions \(8, 11"):
        forward(Longer(), BatchMapping(causal=True), batch)


def test_segments_are_part_of_what_is_fingerprinted():
    assert BatchMapping(inputs=["x"], segments="s", causal=True).input_paths() == ("x", "s")
    assert BatchMapping(inputs=["x", "s"], segments="s", causal=True).input_paths() == ("x", "s")


def test_without_masks_and_labels_the_last_position_predicts_nothing():
    ids = torch.ones(2, 5, dtype=torch.int64)
    mask = BatchMapping(inputs=[0], causal=True).select((ids,)).mask
    assert mask.tolist() == [[True] * 4 + [False]] * 2


def test_the_next_tokens_of_the_shortest_sequences():
    assert next_tokens(torch.zeros(2, 0), 1).shape == (2, 0)
    assert next_tokens(torch.zeros(1, 1), 7).tolist() == [[7]]
    assert next_tokens(torch.tensor([[1, 2, 3]]), 0).tolist() == [[2, 3, 0]]


@pytest.mark.parametrize(
    "change", [{"mask": "labelled"}, {"causal": True}, {"segments": "s"}, {"num_classes": 5}]
)
def test_what_decides_positions_stands_in_the_manifest(change):
    base = BatchMapping(inputs=["x"], labels="y", causal=True)
    assert dataclasses.replace(base, causal=None).describe() != base.describe()
    if change != {"causal": True}:
        assert dataclasses.replace(base, **change).describe() != base.describe()


def test_a_function_of_the_whole_batch_cuts_classes_too():
    plain, cut = (CallableMapping(every_token, num_classes=number) for number in (None, 5))
    assert plain.describe() != cut.describe()
    with pytest.raises(UsageError, match=r"batch\.num_classes .*not 1"):
        CallableMapping(every_token, num_classes=1)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"mask": "predicted:x"}, r"predicted:x is of tokens.*batch\.causal"),
        ({"segments": "s"}, r"batch\.segments 's' is of tokens"),
        ({"causal": "yes"}, r"batch\.causal is true or false, not 'yes'"),
        ({"causal": 1}, r"batch\.causal is true or false, not 1"),
        ({"mask": []}, r"batch\.mask is one path, 'labelled'"),
        ({"mask": ["x", None]}, r"batch\.mask is one path, 'labelled'"),
        ({"mask": True}, r"batch\.mask is one path, 'labelled'"),
        ({"mask": ["function:math.pi"]}, r"'math\.pi' is a float, not callable"),
        ({"mask_inferred": True}, r"unknown key 'batch\.mask_inferred'"),
        ({"segments": 0.5, "causal": True}, r"batch\.segments is one path"),
        ({"mask": "output:"}, r"batch\.mask is one path"),
        ({"mask": "function:no.where"}, "cannot be imported"),
        ({"num_classes": 1}, r"batch\.num_classes .*not 1"),
        ({"num_classes": True}, r"batch\.num_classes"),
        ({"num_classes": 5.0}, r"batch\.num_classes .*not 5\.0"),
        ({"segment": "s"}, r"'batch\.segment'.*Did you mean 'segments'"),
    ],
)
def test_wrong_settings_are_refused(spec, says):
    with pytest.raises(UsageError, match=says):
        parse_mapping(spec, "teacher")


@pytest.mark.parametrize(
    ("mapping", "batch", "says"),
    [
        ({"mask": "labelled"}, (torch.ones(2, 3),), "the batch has no labels"),
        ({"labels": 1}, (torch.ones(2, 3), torch.ones(2)), r"whole numbers \(B, L\).*shape \(2,\)"),
        ({"labels": 0}, (torch.ones(2, 3),), r"torch\.float32 of shape \(2, 3\)"),
        ({}, (torch.ones(2, 3, 4),), "where sequences end"),
        ({}, (torch.ones(2, 3),), "where sequences end"),
        ({"segments": 1}, (torch.ones(2, 3), torch.ones(2)), r"segments has the shape \(2,\)"),
        ({"segments": 1}, (torch.ones(2, 3), [1, 2]), r"segments is a list of 2"),
        ({"mask": 1}, (torch.ones(2, 3), torch.ones(2, 3, 4)), r"\(2, 3, 4\); of a causal"),
        (
            {"mask": [1, 2]},
            (torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 4)),
            r"different shapes: \(2, 3\), \(2, 4\)",
        ),
        ({"mask": "function:builtins.len"}, (torch.ones(2, 3),), "is a int, not a tensor"),
    ],
)
def test_batches_that_do_not_fit_are_refused(mapping, batch, says):
    made = parse_mapping({"inputs": [0], "causal": True, **mapping}, "student")
    with pytest.raises(DataError, match=says):
        made.select(batch)
