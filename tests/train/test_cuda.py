"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import json

import pytest
import torch

import kdcache
from kdcache import KnowledgeDistillationTraining
from tests.train import small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def on_gpu(cache, tmp_path):
    def run(number, **trainer):
        student = small.net(1)
        found = kdcache.train_student(
            student,
            small.data(),
            cache.path,
            losses={"kd_loss": 0.5, "reverse_kl": 0.2, "cos_embed_loss": 0.2, "student_loss": 0.1},
            temperature=2.0,
            output=tmp_path / str(number),
            seed=3,
            progress=False,
            trainer={"max_epochs": 2, "accelerator": "gpu", "devices": 1, **trainer},
        )
        return found, small.weights(student).cpu()

    return run


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_deterministic_training_is_repeated_to_the_bit(on_gpu, precision):
    try:
        found = [on_gpu(n, deterministic=True, precision=precision) for n in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found[0][1], found[1][1])
    record = json.loads((found[0][0].output / "run.json").read_text())
    assert record["precision"] == precision


def test_cpu_and_gpu_train_alike(on_gpu, cache, tmp_path):
    _, gpu = on_gpu("gpu")
    _, cpu = on_gpu("cpu", accelerator="cpu")
    torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-4)


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
