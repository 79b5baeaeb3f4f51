"""Students that train from imported log-probabilities, as from a dump of the same teacher."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import kdcache
from kdcache.errors import AlignmentError, MismatchError, UnsupportedTargetsError
from kdcache.losses import kd_loss
from tests.data import toys
from tests.data.sequences import VOCABULARY, CausalNet, pad_left, pad_right
from tests.importers.teacher_files import (
    CAUSAL,
    LENGTHS,
    collate,
    dumped,
    full_logits,
    joined,
    make_sequences,
    run,
    vllm_record,
    vllm_records,
    write_lines,
)

SAMPLES = make_sequences()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "teacher.zarr"


@pytest.fixture
def lines(tmp_path):
    return write_lines(tmp_path / "train.jsonl", vllm_records(SAMPLES))


@pytest.mark.parametrize("pad", [pad_right, pad_left])
@pytest.mark.parametrize("make", [torch.Tensor.tolist, torch.Tensor.int, torch.Tensor.numpy])
def test_a_student_has_the_loss_of_a_dumped_cache(tmp_path, lines, cache, pad, make):
    """Ids as lists, int32 or arrays; padded on either side; in another order than the file's."""
    run(lines, cache)
    other = dumped(tmp_path / "dumped.zarr", SAMPLES, key="content")
    student = CausalNet(seed=5)
    batches = [
        joined(path, SAMPLES[::-1], make=made, collate_fn=lambda s: collate(s, pad))
        for path, made in ((cache, make), (other.path, torch.as_tensor))
    ]
    for ours, theirs in zip(*batches, strict=True):
        mask = ours.batch["attention_mask"].bool()
        valid = mask & torch.cat([mask[:, 1:], torch.zeros(len(mask), 1, dtype=torch.bool)], 1)
        logits = student(ours.batch["input_ids"], ours.batch["attention_mask"])["logits"][valid]
        losses = [kd_loss(logits, b.targets, 1.0).mean().item() for b in (ours, theirs)]
        # The teacher ran alone here and in padded batches there: a stored log-probability may be
        # the next float16, which moves the mean over 5 positions or more by a thirteenth of eps.
        assert losses[0] == pytest.approx(losses[1], abs=torch.finfo(torch.float16).eps / 4)
        assert losses[0] > 0.1


class Data:
    def __init__(self, samples):
        dataset = toys.Samples([{"input_ids": ids.tolist()} for ids in samples])
        self.loader = DataLoader(dataset, batch_size=4, collate_fn=collate)

    def train_dataloader(self):
        return self.loader

    def val_dataloader(self):
        return {"val": self.loader}


def test_a_student_trains_from_it(tmp_path, lines, cache):
    """End to end, with the start-up checks; another temperature than 1 is refused by name."""
    options = {"batch": CAUSAL, "trainer": {"max_epochs": 2}, "progress": False}
    options["losses"] = {"kd_loss": 0.9, "student_loss": 0.1}
    run(lines, cache)
    run(lines, cache, split="val")
    student = CausalNet(seed=5)
    before = student.head.weight.clone()
    trained = kdcache.train_student(
        student, Data(SAMPLES), cache, output=tmp_path / "out", **options
    )
    assert not torch.equal(student.head.weight, before)
    assert trained.metrics["val_teacher_kl"] > 0
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 4"):
        kdcache.train_student(
            student, Data(SAMPLES), cache, temperature=4.0, output=tmp_path / "b", **options
        )


def test_labels_of_other_classes_are_found(tmp_path, cache):
    """The start-up canary works: the file's own next tokens are what labels are held against."""
    samples = make_sequences((20,) * 30)
    teacher = CausalNet()
    with torch.no_grad():
        teacher.head.weight *= 4
    # Tokens that the teacher is sure of, so that others are a surprise.
    for ids in samples:
        for t in range(1, len(ids)):
            ids[t] = full_logits(ids, teacher)[t - 1].argmax()
    records = [vllm_record(ids, full_logits(ids, teacher)) for ids in samples]
    run(write_lines(tmp_path / "a.jsonl", records), cache)

    def permuted(items):
        batch = collate(items)
        real = batch["labels"] >= 0
        return {**batch, "labels": torch.where(real, (batch["labels"] + 1) % VOCABULARY, -100)}

    class Permuted(Data):
        def __init__(self):
            super().__init__(samples)
            self.loader = DataLoader(self.loader.dataset, batch_size=4, collate_fn=permuted)

    options = {"batch": CAUSAL, "trainer": {"max_epochs": 1}, "progress": False}
    for data, output in ((Data(samples), "right"), (Permuted(), "wrong")):
        run(tmp_path / "a.jsonl", cache, split="val")
        call = {"data": data, "cache": cache, "output": tmp_path / output, **options}
        if output == "right":
            kdcache.train_student(CausalNet(seed=5), **call)
        else:
            with pytest.raises(MismatchError, match="cross-entropy on this run's labels"):
                kdcache.train_student(CausalNet(seed=5), **call)


def test_samples_are_found_by_content_and_what_was_not_imported_is_named(lines, cache):
    run(lines, cache)
    (batch,) = joined(cache, [SAMPLES[5], SAMPLES[0], SAMPLES[0]])
    assert batch.targets.num_positions.tolist() == [8, 4, 4]
    changed = SAMPLES[5].clone()
    changed[-1] = 1 + changed[-1] % (VOCABULARY - 1)
    with pytest.raises(AlignmentError, match="sample 1 is not in split 'train'"):
        next(iter(joined(cache, [SAMPLES[0], changed])))


def test_keys_may_be_numbers(lines, cache):
    run(lines, cache, key="index")
    batches = list(joined(cache, SAMPLES))
    assert sum(len(batch.targets.ids) for batch in batches) == sum(LENGTHS) - len(LENGTHS)
    with pytest.raises(MismatchError, match="sample 0 of split 'train' is not what the teacher"):
        next(iter(joined(cache, SAMPLES[::-1])))
