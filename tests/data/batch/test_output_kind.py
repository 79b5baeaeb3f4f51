"""Probabilities are no logits: found by their values, on both sides, through both doors."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import kdcache
from kdcache.data.batch.forward import forward
from kdcache.data.batch.section import parse_mapping
from kdcache.errors import DataError, UsageError
from kdcache.losses import kd_loss
from kdcache.outputs import are_between_0_and_1, kind_of
from tests.train import small

HALF = (torch.float16, torch.bfloat16)


def logits(rows=64, classes=10, scale=3.0):
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("classes", [2, 10, 1000, 50_257])
@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])
def test_kinds(dtype, classes, scale):
    rows = logits(8, classes, scale).to(dtype)
    assert kind_of(rows) == "logits"
    assert kind_of(rows.softmax(-1)) == "probabilities"
    assert kind_of(rows.log_softmax(-1)) == "log_probabilities"


def one_hot():
    return nn.functional.one_hot(torch.arange(8) % 4, 4).float()


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (torch.zeros(8, 4), "logits"),
        (torch.ones(8, 1), "logits"),
        (torch.zeros(0, 4), "logits"),
        (logits().relu(), "logits"),
        (logits().sigmoid(), "logits"),
        (logits().softmax(0), "logits"),
        (torch.cat([logits(4), logits(4).softmax(-1)]), "logits"),
        (one_hot(), "probabilities"),
        (one_hot().log(), "log_probabilities"),  # -inf masks the others
        (torch.full((8, 4), -torch.inf), "logits"),
        (torch.cat([logits(60).softmax(-1), logits(4)]), "probabilities"),  # a few were changed
        (torch.cat([logits(8).softmax(-1), torch.zeros(56, 10)]), "probabilities"),  # padding
        (0.97 * logits().softmax(-1), "probabilities"),  # truncated
        (logits().softmax(-1).mul(50).round().div(50), "probabilities"),
        (100 * logits().softmax(-1), "probabilities"),
        (logits().softmax(-1)[:, :6], "logits"),
    ],
)
def test_what_looks_like_them(rows, kind):
    assert kind_of(rows) == kind


def test_of_classes_that_were_cut():
    cut = logits().softmax(-1)[:, :6]
    assert kind_of(cut, is_cut=True) == "probabilities"
    assert kind_of(logits().relu(), is_cut=True) == "logits"
    assert kind_of(logits(), is_cut=True) == "logits"


@pytest.mark.parametrize(
    ("rows", "are"),
    [
        (logits().sigmoid(), True),
        (logits().softmax(-1)[:, :6], True),
        (torch.zeros(8, 4), False),  # a head that begins at zero
        (torch.zeros(0, 4), False),
        (logits(), False),
        (logits().relu(), False),
        (logits(1).sigmoid(), False),
    ],
)
def test_values_between_0_and_1(rows, are):
    assert are_between_0_and_1(rows) is are


class Ending(nn.Module):
    """A net with something at its end."""

    def __init__(self, end, seed=0):
        super().__init__()
        self.net, self.end = small.net(seed), end

    def forward(self, x):
        return self.end(self.net(x))


def softmax(z):
    return z.softmax(-1)


def log_softmax(z):
    return z.log_softmax(-1)


def dump(teacher, path, **options):
    return kdcache.dump_teacher(
        teacher,
        {"train": small.loader()},
        path,
        codec=kdcache.DenseCodec(dtype="float32"),
        accelerator="cpu",
        progress=False,
        **options,
    )


def test_a_teacher_with_probabilities_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"the teacher returns probabilities.*batch: {output: proba"
    ):
        dump(Ending(softmax), tmp_path / "t.zarr")
    assert not (tmp_path / "t.zarr").exists()


def test_said_to_be_probabilities_they_give_the_targets_of_the_logits(tmp_path):
    said = dump(Ending(softmax), tmp_path / "p.zarr", batch={"output": "probabilities"})
    raw = dump(Ending(lambda z: z), tmp_path / "z.zarr")
    found, expected = (
        next(iter(small.joined_loader(cache))).targets.logits().log_softmax(-1)
        for cache in (said, raw)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "output=probabilities" in said["train"].manifest.identity["batch"]
    assert "output" not in raw["train"].manifest.identity["batch"]


def test_said_to_be_probabilities_and_not(tmp_path):
    with pytest.raises(DataError, match="says that the teacher returns probabilities, but"):
        dump(Ending(lambda z: z), tmp_path / "t.zarr", batch={"output": "probabilities"})


@pytest.mark.parametrize(
    "batch", [{"num_classes": 3}, {"num_classes": 3, "output": "probabilities"}]
)
def test_of_a_vocabulary_that_is_cut(tmp_path, batch):
    """The classes that count sum to less than 1."""
    batch = {**batch, "ignore_index": 3}
    if "output" in batch:
        dump(Ending(softmax), tmp_path / "t.zarr", batch=batch)
        with pytest.raises(DataError, match="says that the teacher returns probabilities, but"):
            dump(Ending(lambda z: z.relu() + 1), tmp_path / "u.zarr", batch=batch)
        return
    with pytest.raises(DataError, match="the teacher returns probabilities"):
        dump(Ending(softmax), tmp_path / "t.zarr", batch=batch)


def test_a_sigmoid_is_told_of(tmp_path, caplog):
    dump(Ending(torch.sigmoid), tmp_path / "t.zarr")
    assert "all values that the teacher returns for its first batch lie between 0 and 1" in (
        caplog.text
    )
    caplog.clear()
    dump(Ending(lambda z: z), tmp_path / "u.zarr")
    assert "between 0 and 1" not in caplog.text


def test_a_probability_of_zero_is_a_mask():
    mapping = parse_mapping({"inputs": [0], "output": "probabilities"}, "teacher")
    found = forward(nn.Identity(), mapping, (torch.tensor([[0.25, 0.75, 0.0]]),)).logits
    assert found.tolist()[0][2] == -torch.inf
    torch.testing.assert_close(found.exp(), torch.tensor([[0.25, 0.75, 0.0]]))


@pytest.mark.parametrize("output", ["probability", "logit", 1, None, True])
def test_no_such_output(output):
    with pytest.raises(UsageError, match=r"batch.output is 'logits' or 'probabilities'"):
        parse_mapping({"inputs": [0], "output": output}, "teacher")


def train(student, cache, tmp_path, **options):
    return kdcache.train_student(
        student,
        small.Data(),
        cache,
        output=tmp_path / "run",
        progress=False,
        trainer={"max_epochs": 1, "accelerator": "cpu", "enable_checkpointing": False},
        **options,
    )


def test_a_student_with_probabilities_is_refused_before_its_first_step(tmp_path):
    cache = dump(small.net(7), tmp_path / "t.zarr")
    student = Ending(softmax, seed=3)
    before = small.weights(student)
    with pytest.raises(DataError, match="the student returns probabilities"):
        train(student, cache.path, tmp_path)
    assert torch.equal(small.weights(student), before)


def test_a_student_that_is_said_to_return_them_learns_as_with_logits(tmp_path):
    cache = dump(small.net(7), tmp_path / "t.zarr")
    said = {"student": {"inputs": [0], "labels": 1, "output": "probabilities"}}
    found = train(Ending(softmax, seed=3), cache.path, tmp_path / "a", batch=said, seed=0)
    expected = train(Ending(lambda z: z, seed=3), cache.path, tmp_path / "b", seed=0)
    assert found.losses["kd_loss"] == pytest.approx(expected.losses["kd_loss"], rel=1e-4)


def test_the_predecessors_interface_refuses_them_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {
        "train_data_loader": small.loader(),
        "val_data_loaders": {},
        "max_epoch": 1,
        "precision": 32,
        "num_gpu_used": 0,
    }
    for teacher, student, side in (
        (Ending(softmax), small.net(), "teacher"),
        (small.net(), Ending(softmax), "student"),
    ):
        with pytest.raises(DataError, match=f"the {side} returns probabilities"):
            kdcache.KnowledgeDistillationTraining(
                teacher_model=teacher, student_model=student, cache=f"{side}.zarr", **options
            ).start_kd_training()


def test_log_probabilities_are_taken_and_raw_distances_to_them_warned_of(tmp_path, caplog):
    cache = dump(Ending(log_softmax, seed=7), tmp_path / "t.zarr")
    assert cache["train"].manifest.created["output"] == "log_probabilities"
    losses = {"mse_logits": 0.5, "kd_loss": 0.5}
    train(small.net(), cache.path, tmp_path, losses=losses)
    assert "which mse_logits will make the student match too" in caplog.text
    caplog.clear()
    train(small.net(), cache.path, tmp_path / "kd", losses={"kd_loss": 1.0})
    assert "log-probabilities" not in caplog.text


def test_logits_are_not_warned_of(tmp_path, caplog):
    cache = dump(small.net(7), tmp_path / "t.zarr")
    train(small.net(), cache.path, tmp_path, losses={"mse_logits": 1.0})
    assert "log-probabilities" not in caplog.text


def test_which_of_several_values_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdcache")
    cache = dump(Ending(lambda z: (z, z.mean(-1), None), seed=7), tmp_path / "t.zarr")
    assert "the teacher's logits are the first of 3 values" in caplog.text
    assert "(64, 4)" in caplog.text or "(16, 4)" in caplog.text
    train(Ending(lambda z: [z, z]), cache.path, tmp_path)
    assert "the student's logits are the first of 2 values" in caplog.text
    caplog.clear()
    dump(Ending(lambda z: (z,)), tmp_path / "one.zarr")
    dump(Ending(lambda z: {"logits": z, "hidden": z}), tmp_path / "dict.zarr")
    assert "logits are the first" not in caplog.text


def test_a_plain_loop_takes_the_logarithm_as_well(tmp_path):
    cache = dump(small.net(7), tmp_path / "t.zarr")
    batch, targets = next(iter(small.joined_loader(cache)))
    mapping = parse_mapping({"inputs": [0], "labels": 1, "output": "probabilities"}, "student")
    student = small.net(3)
    found = kdcache.forward(nn.Sequential(student, nn.Softmax(-1)), mapping, batch)
    torch.testing.assert_close(
        kd_loss(found.logits, targets, 2.0).mean(),
        kd_loss(student(batch[0]), targets, 2.0).mean(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_teacher_that_guesses_is_warned_of(tmp_path, caplog):
    dump(small.net(7), tmp_path / "t.zarr")  # its labels are random
    assert "guessing among 4 classes" in caplog.text


def test_reverse_kl_where_the_teacher_masks_a_class(tmp_path):
    def masked(z):
        return z.masked_fill(torch.tensor([True, False, False, False]), -torch.inf)

    cache = dump(Ending(masked), tmp_path / "t.zarr")
    with pytest.raises(DataError, match=r"reverse_kl.*is undefined") as error:
        train(small.net(), cache.path, tmp_path, losses={"reverse_kl": 1.0, "kd_loss": 1.0})
    assert "gradient_clip_val" not in str(error.value)
    for name in ("kd_loss", "jensen_shannon", "total_variation"):
        run = train(small.net(), cache.path, tmp_path / name, losses={name: 1.0})
        assert run.losses[name] >= 0


@pytest.mark.parametrize("accelerator", ["tpu", "cuda", "gpus", "nonsense"])
def test_an_accelerator_that_is_not_here(tmp_path, accelerator):
    if accelerator == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match=f"dump.accelerator '{accelerator}'"):
        kdcache.dump_teacher(
            small.net(), small.loader(), tmp_path / "t.zarr", accelerator=accelerator
        )
    assert not (tmp_path / "t.zarr").exists()
