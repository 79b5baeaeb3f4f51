"""Both stages on the device, from beginning to end."""

from __future__ import annotations

import json

import pytest
import torch

import kdcache
from kdcache import KnowledgeDistillationTraining
from tests.train import small

LOSSES = {"kd_loss": 0.5, "reverse_kl": 0.2, "cos_embed_loss": 0.2, "student_loss": 0.1}


def trained(cache, output, **trainer):
    """(the run, the student's weights)."""
    student = small.net(1)
    run = kdcache.train_student(
        student,
        small.data(),
        cache.path,
        losses=LOSSES,
        temperature=2.0,
        output=output,
        seed=3,
        progress=False,
        trainer={"max_epochs": 2, "devices": 1, **trainer},
    )
    return run, small.weights(student).cpu()


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_deterministic_training_is_repeated_to_the_bit(cache, tmp_path, precision, device):
    options = {"accelerator": device, "deterministic": True, "precision": precision}
    try:
        found = [trained(cache, tmp_path / str(number), **options) for number in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0][1], found[1][1])
    record = json.loads((found[0][0].output / "run.json").read_text())
    assert record["precision"] == precision


def test_both_stages_on_the_device_equal_both_on_the_cpu(tmp_path, device):
    found = []
    for name, where in (("reference", "cpu"), ("own", device)):
        cache = kdcache.dump_teacher(
            small.Teacher(),
            {"train": small.loader(), "test": small.loader(small.NUM_TEST, seed=1)},
            tmp_path / f"{name}.zarr",
            codec=kdcache.DenseCodec(dtype="float32"),
            accelerator=where,
            progress=False,
        )
        found.append(trained(cache, tmp_path / name, accelerator=where))
    (cpu, cpu_weights), (gpu, gpu_weights) = found
    torch.testing.assert_close(gpu_weights, cpu_weights, rtol=1e-3, atol=1e-4)
    assert gpu.metrics["test_teacher_kl"] == pytest.approx(cpu.metrics["test_teacher_kl"], rel=1e-3)
    assert gpu.metrics["train_kd_loss"] == pytest.approx(cpu.metrics["train_kd_loss"], rel=1e-3)


def test_the_teacher_leaves_the_device(tmp_path):
    teacher = small.net(7)
    KnowledgeDistillationTraining(
        num_gpu_used=1,
        max_epoch=1,
        train_data_loader=small.loader(),
        student_model=small.net(1),
        teacher_model=teacher,
        cache=tmp_path / "t.zarr",
    ).start_kd_training()
    assert {p.device.type for p in teacher.parameters()} == {"cpu"}
