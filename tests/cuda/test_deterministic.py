"""``torch.use_deterministic_algorithms``: no operation of ours is refused, and all repeat."""

import pytest
import torch

from kdcache import DeferredLogits, DenseCodec, TopKCodec
from kdcache.losses import Objective
from kdcache.losses.objective import BUILT_IN

C, P, D = 303, 64, 16
CODECS = {"dense": DenseCodec(), "topk": TopKCodec(k=7, temperatures=(1.0, 2.0))}


def evaluated(name, codec, head, device):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    columns = codec.encode(random(P, C), torch.zeros(P, 2))
    targets = codec.decode(columns, torch.ones(P, dtype=torch.int64), C).to(device)
    student = random(P + 3, D if head == "hidden" else C).to(device).requires_grad_()
    weight = random(C, D).to(device).requires_grad_()
    given = DeferredLogits(hidden=student, weight=weight) if head == "hidden" else student
    labels = torch.randint(C, (P,), generator=generator).to(device)
    rows = torch.randperm(P + 3, generator=generator)[:P].to(device)
    total = (
        Objective(losses={name: 1.0}, temperature=2.0)
        .evaluate(given, targets, labels, rows=rows)
        .total
    )
    total.backward()
    return total.detach(), student.grad, weight.grad


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("head", ["logits", "hidden"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.usefixtures("deterministic")
def test_twice_the_same(name, head, codec, device):
    if codec == "topk" and name in ("mse_logits", "cos_embed_loss"):
        return  # refused on top-k targets
    first, again = (evaluated(name, CODECS[codec], head, device) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.usefixtures("deterministic")
def test_encoding(codec, device):
    logits = torch.randn(P, C, generator=torch.Generator().manual_seed(0)).to(device)
    draws = torch.zeros(P, 2, dtype=torch.int64, device=device)
    first, again = (CODECS[codec].encode(logits, draws) for _ in range(2))
    assert all(torch.equal(first[name].cpu(), again[name].cpu()) for name in first)
