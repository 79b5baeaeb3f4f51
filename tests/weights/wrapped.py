"""Models as users wrap them, and where the wrappers' names stand."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Own(nn.Module):
    """Has a part that is called as wrappers call theirs, and tied weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
            self.encoder = nn.Linear(4, 4)
            self.first = nn.Linear(4, 2, bias=False)
            self.head = nn.Linear(4, 2, bias=False)
        self.head.weight = self.first.weight

    def forward(self, inputs):
        return self.head(self.encoder(self.module(inputs)))


def compiled(model):
    return torch.compile(model, backend="eager")


def with_compiled_part(model):
    model.encoder = compiled(model.encoder)
    return model


def with_parallel_part(model):
    model.module = nn.DataParallel(model.module)
    return model


def distributed(model):
    """Needs a process group."""
    return DistributedDataParallel(model)


WRAPPINGS = {
    "bare": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "distributed": distributed,
    "compiled and distributed": lambda model: compiled(distributed(model)),
    "distributed and compiled": lambda model: distributed(compiled(model)),
    "compiled part": with_compiled_part,
    "parallel part": with_parallel_part,
    "all at once": lambda m: compiled(nn.DataParallel(with_parallel_part(with_compiled_part(m)))),
}


def one_process(folder):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
