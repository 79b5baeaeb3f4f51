"""A script that a launcher runs on every rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdcache import KnowledgeDistillationTraining
from tests.hang import HANG_S
from tests.predecessor.its_code import arguments, weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import torch
from kdcache import KnowledgeDistillationTraining
from tests.predecessor.its_code import *

torch.set_num_threads(1)
training = KnowledgeDistillationTraining(
    **arguments(
        sys.argv[1],
        teacher_model=ItsModel(7),
        train_data_loader=train_loader(batch_size=8),
        accelerator="cpu",
        num_gpu_used=2,
    )
)
run = training.start_kd_training()
if torch.distributed.get_rank() == 0:
    torch.save(weights(training.get_student_model()), sys.argv[2])
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_a_script_that_runs_on_every_rank(tmp_path, launcher):
    """Two processes of 8 samples a batch are one process of 16."""
    script, cache, found = tmp_path / "script.py", tmp_path / "t.zarr", tmp_path / "w.pt"
    script.write_text(SCRIPT)
    runner = {
        "lightning": [sys.executable],
        "torchrun": [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
        ],
    }[launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {
        k: v for k, v in environment.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    ended = subprocess.run(
        [*runner, str(script), str(cache), str(found)],
        env=environment,
        cwd=tmp_path,
        timeout=HANG_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    one = KnowledgeDistillationTraining(**arguments(cache))
    one.start_kd_training()
    torch.testing.assert_close(
        torch.load(found, weights_only=True), weights(one.get_student_model()), rtol=1e-4, atol=1e-6
    )
