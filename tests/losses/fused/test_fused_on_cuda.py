"""fused_losses on a CUDA device: the values of the CPU, and no wait for the device."""

import pytest
import torch

from kdcache.losses import fused_losses
from tests.losses.fused.fused_cases import case, encoded, plain, relative_error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_cuda_without_waiting_for_the_device(k, dtype):
    given = case(rows=True, dtype=dtype)
    targets = encoded(given.teacher, k)
    wanted_logits = given.logits.clone().float().requires_grad_()
    weights = {"kd_loss": 0.5, "student_loss": 0.25}
    wanted, _ = plain(wanted_logits, targets, given.labels, weights, 2.0, given.rows)
    logits, rows = given.logits.cuda().requires_grad_(), given.rows.cuda()
    labels, targets = given.labels.cuda(), targets.to("cuda")
    weights = {name: torch.tensor(weight, device="cuda") for name, weight in weights.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        total, _ = fused_losses(
            logits, targets, labels, weights=weights, temperature=2.0, rows=rows
        )
        (gradient,) = torch.autograd.grad(total, logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(total.cpu(), wanted)
    (wanted_gradient,) = torch.autograd.grad(wanted, wanted_logits)
    assert relative_error(gradient.cpu(), wanted_gradient) < torch.finfo(dtype).eps * 8
