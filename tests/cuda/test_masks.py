"""Which positions count is the same on the device: masks, shifts, padding on either side."""

import pytest
import torch

import kdcache
from kdcache.losses import Objective
from tests.data.sequences import VOCABULARY, CausalNet

LENGTHS, WIDTH = (5, 2, 7, 1, 3), 7


def padded(side):
    """Token ids, attention mask and labels, some of which say nothing."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        at = slice(0, length) if side == "right" else slice(WIDTH - length, WIDTH)
        ids[row, at] = torch.randint(1, VOCABULARY, (length,), generator=generator)
        mask[row, at] = 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("mask", [None, "attention_mask", "labelled"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_labels_and_losses(side, mask, device):
    options = {"causal": True} if mask is None else {"causal": True, "mask": mask}
    batch, found = padded(side), []
    for place in ("cpu", device):
        net = CausalNet().to(place)
        moved = {name: values.to(place) for name, values in batch.items()}
        output = kdcache.forward(net, kdcache.BatchMapping(**options), moved)
        # One teacher for both: what this student says on the CPU, moved by one class.
        logits = found[0][0].logits if found else output.logits
        codec = kdcache.DenseCodec(dtype="float32")
        columns = codec.encode(logits.detach().cpu().roll(1, -1), torch.zeros(len(logits), 2))
        targets = codec.decode(columns, output.num_positions.cpu(), VOCABULARY)
        evaluation = Objective(losses={"kd_loss": 0.5, "student_loss": 0.5}).evaluate(
            output.all_logits, targets.to(place), output.labels, rows=output.rows
        )
        evaluation.total.backward()
        found.append((output, evaluation.total.detach().cpu(), net.head.weight.grad.cpu()))
    (wanted, total, gradient), (output, own_total, own_gradient) = found
    assert output.rows.device.type == torch.device(device).type
    for name in ("rows", "labels", "num_positions"):
        assert torch.equal(getattr(output, name).cpu(), getattr(wanted, name)), name
    torch.testing.assert_close(output.logits.cpu(), wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own_total, total, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-3, atol=1e-5)
