"""Students on sequences of uneven lengths, partly labelled; run as a script it is one of two ranks.

python tests/train/step/uneven.py CACHE WEIGHTS
"""

from __future__ import annotations

import functools
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import kdcache
from kdcache.data.batch.mapping import BatchMapping
from tests.data.sequences import IGNORED, CausalNet, loader, packed, pad, sequences
from tests.train import small

SAMPLES = sequences((5, 2, 7, 1, 3, 9, 4, 6, 8, 2, 1, 3))
LOSSES = {"kd_loss": 0.7, "student_loss": 0.3}
TEMPERATURE = 2.0
RATE = 0.5


def collate(samples: list[Tensor], side: str = "right") -> dict[str, Tensor]:
    """Every third token has a label, so the two losses count different positions."""
    batch = pad(samples, side=side)
    batch["labels"][batch["input_ids"] % 3 != 0] = IGNORED
    return batch


def packed_rows() -> list[dict[str, Tensor]]:
    """The same sequences, several in a row, with the same labels."""
    rows = packed(SAMPLES)
    return [
        {**row, "labels": row["labels"].where(row["input_ids"] % 3 == 0, IGNORED)} for row in rows
    ]


def user_loader(batch_size: int) -> DataLoader:
    return loader(SAMPLES, collate, batch_size)


def dump(path: Path, key: str = "index") -> kdcache.store.Cache:
    return kdcache.dump_teacher(
        CausalNet(seed=5),
        user_loader(4),
        path,
        codec=kdcache.DenseCodec(dtype="float32"),
        batch={"causal": True},
        key=key,
        accelerator="cpu",
        progress=False,
        pilot=False,
    )


def student() -> CausalNet:
    return CausalNet(seed=1)


def joined(cache: kdcache.store.Cache, batch_size: int) -> DataLoader:
    user = user_loader(batch_size)
    return small.joined_loader(cache, user=user, collate_fn=collate, batch={"causal": True})


def module(
    net: nn.Module, rate: float = RATE, head: str = "logits", batch: object = None
) -> kdcache.StudentModule:
    return kdcache.StudentModule(
        net,
        losses=LOSSES,
        temperature=TEMPERATURE,
        batch=batch or BatchMapping(causal=True),
        head=head,
        optimizer=functools.partial(torch.optim.SGD, lr=rate),
    )


def trained(cache, batch_size: int, **options) -> Tensor:
    """Weights after one epoch in a plain Trainer of the user's own."""
    net = student()
    trained_module = module(net)
    trainer = small.trainer(**options)
    trainer.fit(trained_module, trained_module.windowed(joined(cache, batch_size)))
    return small.weights(net)


def joint_objective(net: CausalNet, samples: list[Tensor]) -> Tensor:
    """The definition, from every sequence by itself; nothing of kdcache."""
    teacher = CausalNet(seed=5)
    kd = ce = torch.zeros((), dtype=torch.float64)
    positions = labelled = 0
    for ids in samples:
        if len(ids) < 2:
            continue
        z = net(ids[None])["logits"][0, :-1].double()
        with torch.no_grad():
            t = teacher(ids[None])["logits"][0, :-1].double()
        log_p = (t / TEMPERATURE).log_softmax(-1)
        log_q = (z / TEMPERATURE).log_softmax(-1)
        kd = kd + (log_p.exp() * (log_p - log_q)).sum() * TEMPERATURE**2
        following = ids[1:].where(ids[1:] % 3 == 0, IGNORED)
        ce = ce + F.cross_entropy(z, following, ignore_index=IGNORED, reduction="sum")
        positions += len(ids) - 1
        labelled += int((following != IGNORED).sum())
    total = LOSSES["kd_loss"] * kd / max(1, positions)
    return total + LOSSES["student_loss"] * ce / max(1, labelled)


def expected(*steps: list[Tensor]) -> Tensor:
    """Weights after gradient steps on the joint batches of ``steps``."""
    net = student()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    for samples in steps:
        optimizer.zero_grad()
        joint_objective(net, samples).backward()
        optimizer.step()
    return small.weights(net)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = trained(
        kdcache.open_cache(sys.argv[1]),
        batch_size=2,
        accumulate_grad_batches=2,
        devices=2,
        strategy="ddp",
    )
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[2])
