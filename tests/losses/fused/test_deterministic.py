"""``trainer.deterministic`` refuses operations on CUDA that are not; none of ours is among them.

Read from the operations themselves, which are the same on the CPU. The list is that of
``torch.use_deterministic_algorithms``, in the names of torch's operators.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.losses import Objective
from kdcache.losses.objective import BUILT_IN
from kdcache.outputs import DeferredLogits

REFUSED = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "max_unpool2d"),
    *("fractional_max_pool3d_backward", "max_unpool3d", "upsample_linear1d_backward"),
    *("upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "nll_loss2d_forward"),
    *("upsample_trilinear3d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *(
        "reflection_pad3d_backward",
        "_ctc_loss_backward",
        "_embedding_bag_backward",
        "put_",
        "histc",
    ),
    *("bincount", "median", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    *("cumsum", "scatter_reduce", "scatter_reduce_"),
}
POSITIONS, CLASSES = 7, 5


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def targets(codec):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(POSITIONS, CLASSES, generator=generator)
    return codec.decode(
        codec.encode(logits, torch.zeros(POSITIONS, 2)),
        torch.ones(POSITIONS, dtype=torch.int64),
        CLASSES,
    )


def operations(name, codec, head, rows):
    hidden = torch.randn(POSITIONS + 3, CLASSES, requires_grad=True)
    student = hidden
    if head == "hidden":
        student = DeferredLogits(hidden=hidden, weight=torch.randn(CLASSES, CLASSES))
    labels = torch.arange(POSITIONS) % CLASSES
    with Recorded() as recorded:
        Objective(losses={name: 1.0}, temperature=2.0).evaluate(
            student, targets(codec), labels, rows=rows
        ).total.backward()
    return recorded.names


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("head", ["logits", "hidden"])
@pytest.mark.parametrize(
    "codec", [DenseCodec(), TopKCodec(k=3, temperatures=(1.0, 2.0))], ids=["dense", "topk"]
)
def test_no_loss_needs_an_operation_that_is_refused(name, head, codec):
    if isinstance(codec, TopKCodec) and name in ("mse_logits", "cos_embed_loss"):
        pytest.skip("refused on top-k targets")
    rows = torch.tensor([0, 2, 3, 5, 6, 8, 9])
    found = operations(name, codec, head, rows)
    assert {"index_select", "mul"} & found or "index" in found
    assert not found & REFUSED


def test_the_recording_sees_what_is_refused():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    with Recorded() as recorded:
        labels = torch.zeros(2, 4, 4, dtype=torch.int64)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        logits.cumsum(0)
    assert recorded.names & REFUSED == {"nll_loss2d_forward", "cumsum"}
