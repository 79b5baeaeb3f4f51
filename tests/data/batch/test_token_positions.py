"""Which positions of token sequences count, and what is stored of them: padding, shift, packing,
masks. Held against every sequence by itself; each test fails where its handling is removed.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdcache import CachedDataset
from kdcache.data.join.probes import check_join
from kdcache.errors import AlignmentError, DataError, MismatchError
from tests.data import toys
from tests.data.sequences import (
    IGNORED,
    LENGTHS,
    PACKED,
    CausalNet,
    alone,
    loader,
    packed,
    pad_left,
    pad_right,
    sequences,
)

CAUSAL = {"causal": True}
SIDES = {"left": pad_left, "right": pad_right}


def stored(cache, samples, collate_fn=None, **mapping):
    """What a cache holds of samples: logits per sample, and the dump's statistics."""
    made = toys.dump(cache, loader(samples, collate_fn), teacher=CausalNet(), batch=mapping)
    joined = CachedDataset(toys.Samples(samples), made, batch=mapping, collate_fn=collate_fn)
    numbers = list(range(len(samples)))
    targets = joined.collate_fn(joined.__getitems__(numbers)).targets
    parts = targets.logits().split(targets.num_positions.tolist())
    sums: dict[str, float] = {}
    for commit in made["train"].commits:
        for name, value in commit.statistics.items():
            sums[name] = sums.get(name, 0.0) + value
    return parts, sums


def assert_equal_alone(parts, samples):
    for part, ids in zip(parts, samples, strict=True):
        torch.testing.assert_close(part, alone(CausalNet(), ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_padding_on_either_side_is_not_stored(cache, side):
    samples = sequences()
    parts, _ = stored(cache, samples, SIDES[side], **CAUSAL)
    assert [len(part) for part in parts] == [n - 1 for n in LENGTHS]
    assert_equal_alone(parts, samples)


@pytest.mark.parametrize("side", SIDES)
def test_labels_are_shifted_to_the_positions_that_predict_them(cache, side):
    """The teacher's cross entropy at the dump is that on the next tokens."""
    samples = sequences()
    _, sums = stored(cache, samples, SIDES[side], **CAUSAL)
    nats = sum(
        float(F.cross_entropy(alone(CausalNet(), ids), ids[1:], reduction="sum"))
        for ids in samples
        if len(ids) > 1
    )
    assert sums["labelled"] == sum(n - 1 for n in LENGTHS)
    assert sums["cross_entropy"] == pytest.approx(nats, rel=1e-5)


def test_packed_sequences_do_not_see_or_predict_one_another(cache):
    samples = sequences()
    parts, sums = stored(cache, packed(samples), **PACKED)
    together = torch.cat(list(parts))
    apart = torch.cat([alone(CausalNet(), ids) for ids in samples])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert sums["labelled"] == len(apart)


def test_packing_without_segments_would_be_noticed(cache):
    """The control of the test above: what the handling removes is really there."""
    without = {k: v for k, v in PACKED.items() if k != "segments"}
    parts, _ = stored(cache, packed(sequences()), **without)
    crossing = sum(map(len, parts)) - sum(n - 1 for n in LENGTHS)
    assert crossing == len(LENGTHS) - len(packed(sequences()))


def test_a_packed_dataset_with_other_segments_is_refused(cache):
    rows = packed(sequences())
    made = toys.dump(cache, loader(rows), teacher=CausalNet(), batch=PACKED)
    rows[1]["segment_ids"] = rows[1]["segment_ids"].clamp(max=1)
    joined = CachedDataset(toys.Samples(rows), made, batch=PACKED)
    with pytest.raises(AlignmentError.__mro__[1], match="sample 1"):
        joined.__getitems__([0, 1])


def completions(samples):
    """Only the second half of every sequence is labelled."""
    batch = pad_right(samples)
    batch["completion"] = torch.zeros_like(batch["input_ids"])
    for row, ids in enumerate(samples):
        half = (len(ids) + 1) // 2
        batch["labels"][row, :half] = IGNORED
        batch["completion"][row, half : len(ids)] = 1
    return batch


WANTED = [torch.arange(max(0, n - 1)) + 1 >= (n + 1) // 2 for n in LENGTHS]
INPUTS = {"inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask"}}


def is_long_run(batch):
    """A mask function: all but the first two tokens."""
    return batch["attention_mask"].cumsum(dim=1).gt(2) & batch["attention_mask"].bool()


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        ("labelled", WANTED),
        (["attention_mask", "labelled"], WANTED),
        ("predicted:completion", WANTED),
        # A mask of tokens counts where both the token and the one it predicts are in it.
        ("completion", [torch.arange(max(0, n - 1)) >= (n + 1) // 2 for n in LENGTHS]),
        (f"function:{__name__}.is_long_run", [torch.arange(n - 1) >= 2 for n in LENGTHS]),
        (["attention_mask"], [torch.ones(n - 1, dtype=torch.bool) for n in LENGTHS]),
    ],
    ids=["labelled", "both", "predicted", "path", "function", "list"],
)
def test_a_mask_chooses_the_positions(cache, mask, wanted):
    samples = sequences()
    mapping = {**INPUTS, "labels": "labels", "mask": mask, **CAUSAL}
    parts, _ = stored(cache, samples, completions, **mapping)
    for part, ids, chosen in zip(parts, samples, wanted, strict=True):
        torch.testing.assert_close(
            part, alone(CausalNet(), ids)[chosen[: len(ids) - 1]], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_student_that_shifts_otherwise_is_refused(cache, is_causal):
    """Without labels, and with masks that count as many positions, nothing else would tell."""

    def chosen(samples):
        batch = frames_only(samples)
        mask = batch["attention_mask"].clone()
        return {**batch, "wanted": mask.scatter(1, mask.sum(1, keepdim=True) - 1, 0)}

    own = {**INPUTS, "mask": "wanted"}
    mappings = [{**INPUTS, **CAUSAL, "mask": "attention_mask"}, own][:: 1 if is_causal else -1]
    user = loader(sequences(), chosen)
    made = toys.dump(cache, user, teacher=CausalNet(), batch=mappings[0])
    joined = CachedDataset(user.dataset, made, batch=mappings[1], collate_fn=chosen)
    counts = joined.collate_fn(joined.__getitems__([0, 1])).targets.num_positions
    assert counts.tolist() == [n - 1 for n in LENGTHS[:2]]
    with pytest.raises(MismatchError, match=r"dumped with batch\.causal .*this run has batch"):
        check_join(joined)


class Frames(torch.nn.Module):
    """Half as many frames as samples, and a mask of those that are no padding."""

    def __init__(self):
        super().__init__()
        self.net = CausalNet()

    def forward(self, input_ids, attention_mask):
        logits = self.net(input_ids)["logits"][:, ::2]
        return {"logits": logits, "frames": {"mask": attention_mask[:, ::2]}}


def frames_only(samples):
    return {name: value for name, value in pad_right(samples).items() if name != "labels"}


def test_the_models_own_output_may_say_which_positions_count(cache):
    samples = sequences()
    mapping = {**INPUTS, "mask": "output:frames.mask"}
    user = loader(samples, frames_only)
    made = toys.dump(cache, user, teacher=Frames(), batch=mapping)
    joined = CachedDataset(user.dataset, made, batch=mapping, collate_fn=frames_only)
    (batch,) = toys.joined_loader(joined, batch_size=len(samples))
    assert batch.targets.num_positions.tolist() == [(n + 1) // 2 for n in LENGTHS]
    logits = CausalNet()(batch.batch["input_ids"])["logits"][:, ::2]
    mask = batch.batch["attention_mask"][:, ::2].bool()
    torch.testing.assert_close(batch.targets.logits(), logits[mask].detach(), rtol=1e-5, atol=1e-5)


class Halves(Frames):
    """Frames, and no word of which of them count."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids, attention_mask)["logits"]


class Twos(CausalNet):
    """A mask of its own: all tokens but one kind."""

    def forward(self, input_ids, attention_mask):
        return {**super().forward(input_ids, attention_mask), "mask": input_ids != 2}


NARROWED = {**INPUTS, "mask": ["attention_mask", "output:mask"]}


@pytest.mark.parametrize(("teacher", "mapping"), [(Halves(), {}), (Twos(), NARROWED)])
def test_a_batchs_mask_is_no_alarm_where_the_model_decides(cache, teacher, mapping):
    """It is found by its name but is not of the frames, or the model's own narrows it."""
    samples = sequences()
    made = toys.dump(cache, loader(samples, frames_only), teacher=teacher, batch=mapping)
    joined = CachedDataset(toys.Samples(samples), made, batch=mapping, collate_fn=frames_only)
    found = joined.collate_fn(joined.__getitems__([0, 1, 2])).targets.num_positions.tolist()
    lengths = [int((ids != 2).sum()) for ids in samples[:3]]
    assert found == (lengths if mapping else [4, 4, 4])


def test_a_mask_that_counts_other_positions_is_refused_at_collation(cache):
    samples = sequences()
    made = toys.dump(cache, loader(samples, pad_right), teacher=CausalNet(), batch=CAUSAL)
    joined = CachedDataset(
        toys.Samples(samples),
        made,
        batch={**INPUTS, "labels": "labels", "mask": "labelled", **CAUSAL},
        collate_fn=completions,
    )
    with pytest.raises(
        AlignmentError, match=r"mask of sample 0 counts 2 positions, the teacher .*4"
    ):
        joined.collate_fn(joined.__getitems__([0, 1, 2]))


def test_labels_that_are_the_input_ids_need_a_word(cache):
    user = loader(sequences(), pad_right)
    with pytest.raises(DataError, match=r"input ids themselves.*batch\.causal: true"):
        toys.dump(cache, user, teacher=CausalNet())
    assert not cache.exists()
    toys.dump(cache, user, teacher=CausalNet(), batch={"causal": False})
