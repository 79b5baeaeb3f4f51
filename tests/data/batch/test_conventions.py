"""What kdcache infers from names, places, dtypes, shapes and values; and where it must not.

A row of ``TABLE`` is one inference of a batch: where it is made, and look-alikes where it is not.

1.  A bare tensor, or the one element of a tuple, is the input.
2.  The second of two elements is the labels.
3.  Hugging Face's names are inputs; ``labels``, ``label`` and ``label_ids`` the labels.
4.  Names that the model's ``forward`` takes are inputs, others are left out (test_signature.py).
5.  An attention mask is one of the positions, where it has their shape (``fit_to``).
6.  Labels that are tokens say which positions of a decoder count, and what it is given.
7.  Labels that repeat the input ids are those of a causal language model that nobody shifted.
8.  Under ``causal``, whole numbers (B, L) among the inputs tell where sequences end.

Beside the batch, inferences are made from

9.  labels' dtype and shape: class numbers, multi-hot marks, a class axis that is not the last;
10. ``classes`` and ``class_names`` of the data: the names of classes in order;
11. a dataset without ``__len__``: a stream; an IterableDataset with one is a stream too;
12. a ``tokenizer`` with ``get_vocab()``: the vocabulary that names the classes;
13. a sample's leaf at an input's path: what of it is fingerprinted (``choose_source``);
14. a mask that counts as many positions as the targets have: where labels belong
    (test_labels.py, ``target_labels``).
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import kdcache
from kdcache.data.batch.labels import check_class_axis, check_single_label, flat_labels
from kdcache.data.batch.mapping import BatchMapping
from kdcache.data.samples import sources
from kdcache.data.samples.vocabulary import own_vocabulary
from kdcache.dump.preparation.split_data import choose_source
from kdcache.errors import DataError, UsageError
from tests.data import toys

B, L = 3, 8
IDS = torch.arange(B * L).reshape(B, L) + 1
ONES, ZEROS = torch.ones_like(IDS), torch.zeros_like(IDS)
MASK = torch.tensor([[1] * L, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])
X, Y = torch.randn(B, L), torch.tensor([0, 1, 2])
SEGMENTS = torch.tensor([[0] * 4 + [1] * 4] * B)


def found(batch, **mapping):
    """Inputs, labels, mask and causal of a batch by convention; None where it is refused."""
    try:
        resolved = BatchMapping(**mapping).resolve(batch)
    except DataError:
        return None
    inputs = resolved.inputs
    names = sorted(inputs.values()) if isinstance(inputs, dict) else inputs
    return names, resolved.labels, resolved.mask, resolved.causal


def tagged(labels, **others):
    return {"input_ids": IDS, "attention_mask": MASK, **others, "labels": labels}


TAGS = (["attention_mask", "input_ids"], "labels", "attention_mask", False)
OPEN = (*TAGS[:3], None)  # not told yet: the next batch is looked at
TYPED = (["attention_mask", "input_ids", "token_type_ids"], *TAGS[1:])
DECODED = (["attention_mask", "decoder_input_ids", "input_ids"], "labels", "labelled", False)

# What is inferred -> (batch, mapping, what is found)
TABLE = {
    "1 a bare tensor": (X, {}, ((), None, None, None)),
    "1 one element": ((X,), {}, ((0,), None, None, None)),
    "1 not: none": ((), {}, None),
    "1 not: a text": ("text", {}, None),
    "2 two elements": ((X, Y), {}, ((0,), 1, None, False)),
    "2 not: three": ((X, X, Y), {}, None),
    "2 not: said otherwise": ((Y, X), {"inputs": [1], "labels": 0}, ((1,), 0, None, False)),
    "2 not: all are inputs": ((X, X), {"inputs": "all"}, ("all", None, None, None)),
    "3 usual names": (
        {"input_values": X, "label": Y},
        {},
        (["input_values"], "label", None, False),
    ),
    "3 not: others": ({"waveform": X, "label": Y}, {}, None),
    "3 not: one other": ({"input_values": X, "speaker": Y, "label": Y}, {}, None),
    "3 not: two kinds of labels": ({"input_ids": IDS, "label": Y, "labels": Y}, {}, None),
    "3 not: a said column": (
        {"input_ids": IDS, "label": Y, "tag": Y},
        {"labels": "tag"},
        (["input_ids"], "tag", None, False),
    ),
    "5 not: an encoder's mask": (
        {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS, "labels": Y},
        {},
        (DECODED[0], "labels", None, False),
    ),
    "5 not: another was said": (
        {"input_ids": IDS, "attention_mask": MASK, "labels": IDS % 3},
        {"mask": "labelled"},
        (*TAGS[:2], "labelled", False),
    ),
    "6 labels are tokens": (
        {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS, "labels": IDS % 5},
        {},
        DECODED,
    ),
    "6 not: of another shape": (
        {"input_ids": IDS, "decoder_input_ids": IDS, "labels": IDS[:, 1:] % 5},
        {},
        (["decoder_input_ids", "input_ids"], "labels", None, False),
    ),
    "6 not: no decoder": (tagged(IDS % 5), {}, TAGS),
    "7 labels repeat the ids": (tagged(IDS), {}, None),
    "7 with padding left out": (tagged(IDS.masked_fill(MASK == 0, -100)), {}, None),
    "7 of unnamed inputs": ((IDS, IDS), {}, None),
    "7 not: causal was said": (tagged(IDS), {"causal": True}, (*TAGS[:3], True)),
    "7 not: it was said not to be": (tagged(IDS), {"causal": False}, TAGS),
    "7 not: tags are 1, as the mask": (tagged(ONES), {}, TAGS),
    "7 not: tags are the mask": (tagged(MASK), {}, TAGS),
    "7 not: tags are 0, as types": (tagged(ZEROS, token_type_ids=ZEROS), {}, TYPED),
    "7 not: tags are the types": (tagged(SEGMENTS, token_type_ids=SEGMENTS), {}, TYPED),
    "7 not: tags where they count": (
        tagged(ONES.masked_fill(MASK == 0, -100), token_type_ids=ONES),
        {},
        TYPED,
    ),
    "7 not: positions": (
        tagged(torch.arange(L).expand(B, L), position_ids=torch.arange(L).expand(B, L)),
        {},
        (["attention_mask", "input_ids", "position_ids"], *TAGS[1:]),
    ),
    "7 not: one token again and again": (
        {"input_ids": ONES, "attention_mask": MASK, "labels": ONES},
        {},
        OPEN,
    ),
    "7 not: a single short sequence": (
        {"input_ids": IDS[:1, :5], "attention_mask": MASK[:1, :5], "labels": IDS[:1, :5]},
        {},
        OPEN,
    ),
    "7 not: nothing is labelled": (tagged(torch.full_like(IDS, -100)), {}, OPEN),
    "7 not: few are, as masked tokens": (
        tagged(torch.where(IDS % 6 == 0, IDS, -100)),
        {},
        OPEN,
    ),
    "7 not: a class a sample": (
        {"input_ids": Y, "labels": Y},
        {},
        (["input_ids"], "labels", None, False),
    ),
    "7 not: a mask of two values, unnamed": (
        (IDS, MASK, MASK),
        {"inputs": [0, 1], "labels": 2},
        ((0, 1), 2, None, None),
    ),
    "7 not: what an encoder reads": (
        {"input_ids": IDS, "decoder_input_ids": IDS.roll(1, 1), "labels": IDS},
        {},
        (["decoder_input_ids", "input_ids"], "labels", "labelled", False),
    ),
    "7 not: labels that are an input": (
        {"input_features": X, "labels": IDS},
        {"inputs": {"input_features": "input_features", "labels": "labels"}, "labels": "labels"},
        (["input_features", "labels"], "labels", None, False),
    ),
    "7 not: images": ((X, X), {}, ((0,), 1, None, False)),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_batch(name):
    batch, mapping, wanted = TABLE[name]
    assert found(batch, **mapping) == wanted


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_7_of_another_dtype(dtype):
    """The same numbers are the same labels; as bool they are a mask's."""
    labels = IDS.to(dtype)
    assert (found(tagged(labels)) is None) == (dtype != torch.bool)


def test_7_the_reason_is_told_by_the_first_batch_that_can_tell():
    """A first batch that could be either is no licence for those after it."""
    undecided = BatchMapping().resolve(tagged(torch.full_like(IDS, -100)))
    with pytest.raises(DataError, match="input ids themselves"):
        undecided.resolve(tagged(IDS))
    told = BatchMapping().resolve(tagged(IDS % 5))
    assert told.resolve(tagged(IDS)) == told


class TestShiftedTwice:
    """7. The other way round: ``causal`` was said of labels that are the next tokens already."""

    NEXT = IDS.roll(-1, 1)

    def check(self, batch, **mapping):
        BatchMapping(causal=True, **mapping).resolve(batch).check_shift(batch)

    @pytest.mark.parametrize(
        ("batch", "mapping"),
        [
            (tagged(NEXT), {}),
            (tagged(NEXT.masked_fill(MASK == 0, -100)), {}),
            ((IDS, NEXT), {}),
            ({"input_ids": ONES, "decoder_input_ids": IDS.roll(1, 1), "labels": IDS}, {}),
        ],
    )
    def test_is_refused(self, batch, mapping):
        with pytest.raises(UsageError, match="each label is the next token of the input"):
            self.check(batch, **mapping)

    @pytest.mark.parametrize(
        ("batch", "mapping"),
        [
            (tagged(IDS), {}),
            (tagged(IDS.masked_fill(MASK == 0, -100)), {}),
            (tagged(ONES), {}),
            ({"input_ids": ONES, "labels": ONES}, {}),  # both ways would be so
            ({"input_ids": IDS % 2, "labels": IDS % 2}, {}),
            (tagged(torch.full_like(IDS, -100)), {}),
            (tagged(NEXT[:1, :5]) | {"input_ids": IDS[:1, :5], "attention_mask": ONES[:1, :5]}, {}),
            ({"input_ids": IDS, "labels": IDS % 5}, {}),
            ({"input_ids": IDS}, {}),
            ({"input_ids": IDS, "token_type_ids": SEGMENTS, "labels": SEGMENTS.roll(-1, 1)}, {}),
        ],
    )
    def test_is_not(self, batch, mapping):
        self.check(batch, **mapping)

    def test_nothing_is_moved_where_causal_was_not_said(self):
        mapping = BatchMapping().resolve(tagged(self.NEXT))
        mapping.check_shift(tagged(self.NEXT))
        assert mapping.causal is False

    def test_before_anything_is_dumped_or_trained_on(self, cache):
        samples = [
            {"input_ids": ids[:-1], "attention_mask": torch.ones_like(ids[:-1]), "labels": ids[1:]}
            for ids in torch.arange(12 * 9).reshape(12, 9) % 60
        ]
        with pytest.raises(UsageError, match="next token"):
            toys.dump(cache, samples, Tagger(classes=64), batch={"causal": True})
        assert not cache.exists()
        toys.dump(cache, samples, Tagger(classes=64))
        joined = kdcache.CachedDataset(toys.Samples(samples), cache, batch={"causal": True})
        with pytest.raises(UsageError, match="next token"):
            joined.collate_fn(joined.__getitems__([0, 1]))


class TestMaskOfPositions:
    """5."""

    def fit(self, shape):
        mapping = BatchMapping().resolve(tagged(IDS % 3))
        kept, mask = mapping.fit_to(shape, mapping.select(tagged(IDS % 3)))
        return kept.mask, mask is not None

    def test_counts_where_it_has_their_shape(self):
        assert self.fit((B, L)) == ("attention_mask", True)

    @pytest.mark.parametrize("shape", [(B,), (B, L // 2), (B, L, L), (L, B)])
    def test_does_not_where_not(self, shape):
        assert self.fit(shape) == (None, False)


class TestEnds:
    """8."""

    def ends(self, batch, **mapping):
        resolved = BatchMapping(causal=True, **mapping).resolve(batch)
        mask = resolved.select(batch).mask
        return None if mask is None else mask.sum(1).tolist()

    def test_ids_tell(self):
        assert self.ends({"input_ids": IDS}) == [L - 1] * B

    def test_what_is_no_ids_does_not(self):
        with pytest.raises(DataError, match="where sequences end"):
            self.ends({"inputs_embeds": torch.randn(B, L, 4)})

    def test_of_two_the_decoders(self):
        batch = {"input_ids": IDS, "decoder_input_ids": IDS[:, :4], "attention_mask": MASK}
        assert self.ends(batch) == [3] * B


class TestLabels:
    """9."""

    @pytest.mark.parametrize(
        ("labels", "shape"),
        [(Y.float(), (B,)), (Y, (B, L)), (X, (B, L)), ([0, 1, 2], (B,)), (torch.tensor(3), ())],
    )
    def test_are_no_class_numbers_of_positions(self, labels, shape):
        assert flat_labels(labels, shape, None) is None

    def test_marks_of_several_classes(self):
        with pytest.raises(DataError, match="multi-label"):
            check_single_label(torch.tensor([[1, 1, 0], [0, 1, 0]]), 2, 3)

    @pytest.mark.parametrize(
        "labels",
        [
            [[1, 0, 0], [0, 1, 0]],
            [[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]],
            [[0.4, 0.4, 0.2001], [1.0, 0.0, 0.0]],
            [[5, 2, 7], [4, 4, 0]],  # a transcript as long as there are classes
            [[-100, 2, 1], [1, 1, 1]],
            [[1.5, -0.5, 0.2], [2.0, 1.0, 0.0]],  # what a regression is to find
        ],
    )
    def test_no_such_marks(self, labels):
        check_single_label(torch.tensor(labels), 2, 3)

    def test_a_class_axis_that_is_not_the_last(self):
        with pytest.raises(DataError, match="class_dim"):
            check_class_axis(torch.zeros(2, 6, 7, dtype=torch.int64), (2, 5, 6, 7))

    @pytest.mark.parametrize(
        ("labels", "shape"),
        [
            ((2, 6, 7), (2, 6, 7, 5)),
            ((2, 5, 5), (2, 5, 5, 5)),  # the last fits, and others would
            ((2,), (2, 6, 7, 5)),
            ((2, 9), (2, 6, 5)),
        ],
    )
    def test_no_such_axis(self, labels, shape):
        check_class_axis(torch.zeros(labels, dtype=torch.int64), shape)


class TestClassNames:
    """10."""

    def names(self, classes, count=6):
        dataset = toys.Samples(range(count))
        dataset.classes = classes
        return sources.class_names(None, dataset)

    def test_are_taken(self):
        assert self.names(["cat", "dog"]) == ("cat", "dog")
        assert self.names([3, 5]) == ("3", "5")
        assert self.names(["crane", "crane"]) == ("crane", "crane")  # ImageNet has two

    @pytest.mark.parametrize(
        "classes",
        [[], "cat", None, 2, {"cat": 0}, [0, 1, 1, 0, 2, 1], ["a", "a", "b", "c", "a", "b"]],
    )
    def test_are_not(self, classes):
        """The last two are the class of each sample."""
        assert self.names(classes) == ()


class TestStreams:
    """11."""

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    class Counted(Endless):
        def __len__(self):
            return 3

    def test_are_told(self):
        assert sources.is_stream(self.Endless())
        assert sources.is_stream(self.Counted())
        assert sources.is_stream(SimpleNamespace(__iter__=None))
        assert not sources.is_stream(toys.Samples([]))


@pytest.mark.parametrize("tokenizer", [None, "gpt2", SimpleNamespace(vocab={"a": 0}), lambda t: t])
def test_12_no_vocabulary(tokenizer):
    assert own_vocabulary(SimpleNamespace(tokenizer=tokenizer)) == ""


@pytest.mark.parametrize(
    ("sample", "batch", "paths"),
    [
        ((X[0], 1), (X, Y), (0,)),
        ({"x": X[0].tolist()}, {"x": X}, ("x",)),
        ((1, X[0]), (X, Y), ()),  # collation turned them round
        ("text", (X, Y), ()),
        ({"text": "a"}, {"input_ids": IDS}, ()),
        ((X[0, 0], 1), (X, Y), ()),
        (X[0], X, ()),
    ],
)
def test_13_what_is_fingerprinted(sample, batch, paths):
    mapping = (
        BatchMapping().resolve(batch)
        if not isinstance(batch, dict)
        else BatchMapping(inputs={name: name for name in batch})
    )
    assert choose_source("inputs", mapping, sample, batch).paths == paths


class Tagger(nn.Module):
    """A small token classifier with Hugging Face names."""

    def __init__(self, seed=0, classes=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table = nn.Embedding(64, classes)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        return {"logits": self.table(input_ids) + 0 * attention_mask[..., None]}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.parametrize("tag", [0, 1])
def test_7_token_classification_whose_first_batches_are_all_alike(cache, tmp_path, tag):
    """The usual "O", beside masks of 1 and type ids of 0: dumped, joined and trained on."""
    samples = [
        {
            "input_ids": torch.arange(L) + n,
            "attention_mask": ONES[0],
            "token_type_ids": ZEROS[0],
            "labels": torch.full((L,), tag) if n < 12 else torch.arange(L) % 4,
        }
        for n in range(16)
    ]
    loader = toys.loader(samples)
    view = toys.dump(cache, loader, Tagger())["train"]
    assert "causal" not in view.manifest.identity["batch"]
    run = kdcache.train_student(
        Tagger(1),
        loader,
        cache,
        losses={"kd_loss": 0.5, "student_loss": 0.5},
        output=tmp_path / "run",
        progress=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
    assert run.steps == 4
