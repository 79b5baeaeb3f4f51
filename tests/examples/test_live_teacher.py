"""The script that puts a live teacher beside the cache: that it runs, and what it compares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks import live_teacher
from tests.hang import HANG_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_it_prints_a_row_for_each_way():
    words = ["--pair", "small", "--images", "128", "--turns", "2", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.live_teacher", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == 2 * list(
        live_teacher.WAYS
    )  # time, memory


def test_the_live_teachers_targets_are_what_a_cache_holds(tmp_path):
    """So the two trainings are one and the same: equal weights, but for float16 in the cache."""
    job = live_teacher.Job(pair="small", images=128, cache=tmp_path / "t.zarr", threads=1)
    make_teacher, student = live_teacher.models(job)
    teacher = make_teacher().eval()
    module = live_teacher.BesideTheTeacher(student, teacher, losses=live_teacher.LOSSES)
    seen = []
    evaluate = type(module.objective).evaluate

    def spy(objective, logits, targets, *rest, **options):
        seen.append(targets)
        return evaluate(objective, logits, targets, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module.objective), "evaluate", spy)
        live_teacher.own_trainer(module, job)
    assert len(seen) == 2 * live_teacher.EPOCHS
    assert not any(name.startswith("_teacher") for name in module.state_dict())
    with torch.no_grad():
        images = torch.cat([images for images, _ in live_teacher.loader(job)])
        known, found = teacher(images), seen[0].logits()
    # Each is the logits of one image, which ran in another batch here: equal but for rounding.
    distance, image = (found[:, None] - known).abs().amax(-1).min(1)
    assert distance.max() <= 64 * torch.finfo(known.dtype).eps * known.abs().max()
    assert len(set(image.tolist())) == len(found)
