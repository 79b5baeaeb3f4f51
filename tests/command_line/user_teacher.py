"""A teacher whose module leaves a mark when it is imported; copied into the test's folder."""

import os
from pathlib import Path

import torch
from torch import nn

Path("imported-by").write_text(f"{os.getpid()}\n")


def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(6, 3)
