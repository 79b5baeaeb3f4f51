"""Word and character error rates, greedy CTC, and the teacher's own rate from its cache."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.text import char_error_rate, word_error_rate

import kdcache
from kdcache.errors import DataError, UsageError
from kdcache.train.pipelines import Characters, ErrorRatePipeline, GreedyCtc

ALPHABET = ("<pad>", "|", "a", "b", "c")
BATCH = {"inputs": ["x", "lengths"], "mask": "output:mask"}
TEXTS = ["ab c", "a", "cab b", "bb", "c a b", "abc"]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([2, 2, 0, 2, 3, 3], "aab"),
        ([0, 0, 0], ""),
        ([], ""),
        ([2, 1, 1, 0, 1, 3], "a  b"),
        ([4, 0, 4, 4, 1, 2], "cc a"),
    ],
)
def test_greedy_ctc(ids, text):
    logits = torch.eye(5)[torch.tensor(ids, dtype=torch.int64)]
    assert GreedyCtc(ALPHABET)(logits) == text


def test_the_blank_may_be_the_last_and_the_alphabet_a_text():
    assert GreedyCtc("ab_", blank=2)(torch.eye(3)[[0, 0, 2, 0, 1, 2]]) == "aab"
    assert GreedyCtc("ab|", blank=1, space="a")(torch.eye(3)[[0, 2]]) == " |"


def test_label_ids_are_read_without_what_fills_them_up():
    assert Characters(ALPHABET)(torch.tensor([2, 2, 1, 4, -100])) == "aa c"


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: GreedyCtc("ab", blank=2), UsageError, "blank is class 2.*has 2"),
        (lambda: GreedyCtc([1, 2]), UsageError, "an alphabet is"),
        (lambda: GreedyCtc("abc")(torch.eye(4)), DataError, "model has 4 classes, the alphabet 3"),
        (lambda: Characters("abc")(torch.tensor([3])), DataError, "class 3 is beyond"),
        (lambda: ErrorRatePipeline(len, unit="words"), UsageError, "Did you mean 'word'"),
        (lambda: ErrorRatePipeline("greedy"), UsageError, "decode is a function"),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


class Speech(nn.Module):
    """Frames to classes; its output says which frames count, as convolutions' strides do."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layer = nn.Linear(3, len(ALPHABET))

    def forward(self, x, lengths):
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        return {"logits": 4 * self.layer(x), "mask": mask}


def samples():
    generator = torch.Generator().manual_seed(3)
    lengths = [9, 4, 12, 5, 11, 7]
    return [
        {"x": torch.randn(n, 3, generator=generator), "text": text}
        for n, text in zip(lengths, TEXTS, strict=True)
    ]


def collate(found):
    lengths = torch.tensor([len(one["x"]) for one in found])
    frames = nn.utils.rnn.pad_sequence([one["x"] for one in found], batch_first=True)
    texts = [one["text"] for one in found]
    spelt = [torch.tensor([ALPHABET.index("|" if c == " " else c) for c in t]) for t in texts]
    labels = nn.utils.rnn.pad_sequence(spelt, batch_first=True, padding_value=-100)
    return {"x": frames, "lengths": lengths, "text": texts, "labels": labels}


def loader(batch_size=4):
    return DataLoader(samples(), batch_size=batch_size, collate_fn=collate)


def decoded(model):
    """Each sample alone, without padding."""
    ctc = GreedyCtc(ALPHABET)
    with torch.no_grad():
        return [ctc(4 * model.layer(one["x"])) for one in samples()]


@pytest.fixture(scope="module", params=["dense", "top-k"])
def cache(request, tmp_path_factory):
    codec = kdcache.DenseCodec() if request.param == "dense" else kdcache.TopKCodec(k=2)
    return kdcache.dump_teacher(
        Speech(5),
        loader(),
        tmp_path_factory.mktemp("speech") / "t.zarr",
        codec=codec,
        batch=BATCH,
        fingerprint=lambda sample: sample["x"],
        accelerator="cpu",
        progress=False,
        pilot=False,
    )


def joined(cache, batch_size=4):
    found = kdcache.CachedDataset(
        samples(),
        cache["train"],
        batch=BATCH,
        collate_fn=collate,
        fingerprint=lambda sample: sample["x"],
    )
    return found.loader_like(loader(batch_size))


RATES = {"word": word_error_rate, "character": char_error_rate}


@pytest.mark.parametrize("unit", RATES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_rates_of_student_and_teacher(cache, unit, batch_size):
    """Over the whole set, not a mean over batches; only valid frames are decoded."""
    student = Speech(1)
    pipeline = ErrorRatePipeline(GreedyCtc(ALPHABET), unit=unit, batch=BATCH, temperature=1.0)
    found = pipeline.run_inference_pipeline(student, joined(cache, batch_size))
    wanted = float(RATES[unit](decoded(student), TEXTS))
    assert wanted > 0
    assert found["inference_result"] == found[f"{unit}_error_rate"] == pytest.approx(wanted)
    of_teacher = float(RATES[unit](decoded(Speech(5)), TEXTS))
    assert of_teacher != wanted
    assert found[f"teacher_{unit}_error_rate"] == pytest.approx(of_teacher)
    assert found["teacher_kl"] == found["kd_loss"] > 0
    assert 0 <= found["teacher_agreement"] <= 1


class Deferring(Speech):
    """Begins its losses with features and the layer."""

    def forward(self, x, lengths):
        mask = super().forward(x, lengths)["mask"]
        deferred = kdcache.DeferredLogits(
            hidden=4 * x, weight=self.layer.weight, bias=4 * self.layer.bias
        )
        return {"logits": deferred, "mask": mask}


def test_a_student_that_defers_its_logits_is_decoded_alike(cache):
    pipeline = ErrorRatePipeline(GreedyCtc(ALPHABET), batch=BATCH)
    found = [
        pipeline.run_inference_pipeline(kind(1), joined(cache)) for kind in (Speech, Deferring)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_what_looks_at_more_than_the_top_class_cannot_decode_the_top_k(cache):
    ctc = GreedyCtc(ALPHABET)

    def decode(logits):
        return ctc(logits)

    pipeline = ErrorRatePipeline(decode, batch=BATCH)
    found = pipeline.run_inference_pipeline(Speech(1), joined(cache))
    is_dense = "values" in vars(next(iter(joined(cache))).targets)
    assert ("teacher_word_error_rate" in found) is is_dense


@pytest.mark.parametrize(
    "options",
    [
        {"texts": "labels", "read": Characters(ALPHABET)},
        {"texts": lambda batch: tuple(batch["text"])},
    ],
)
def test_where_the_true_texts_may_be(options):
    plain = ErrorRatePipeline(GreedyCtc(ALPHABET), batch=BATCH)
    other = ErrorRatePipeline(GreedyCtc(ALPHABET), batch=BATCH, **options)
    found = [one.run_inference_pipeline(Speech(1), loader()) for one in (plain, other)]
    assert found[0] == found[1]
    assert found[0].keys() == {"inference_result", "word_error_rate"}


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ("labels", "texts 'labels' gave .*for 4 samples.*label ids need read"),
        ("txet", "leads nowhere"),
        (lambda batch: batch["text"][:1], "the function texts gave"),
        (lambda batch: [""] * len(batch["text"]), "true texts of a validation set have no word"),
    ],
)
def test_texts_that_are_none(texts, match):
    pipeline = ErrorRatePipeline(GreedyCtc(ALPHABET), texts=texts, batch=BATCH)
    with pytest.raises(DataError, match=match):
        pipeline.run_inference_pipeline(Speech(1), loader())
