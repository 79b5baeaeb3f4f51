"""What a dump costs beside its teacher at a vocabulary's width: each further sequence, in one run.

    python -m scripts.token_dump [--repeats 3]

The teacher is a GPT-2 of distilgpt2's sizes with random weights (V = 50,257), small beside what
one would distil: with a larger one the share of encoding, statistics and writing falls. What the
longer of two runs adds to the shorter is the cost of a sequence; looking at data and teacher once,
and the first files, are not in it. Needs transformers.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import kdcache
from scripts.token_steps import BATCH, CODECS, Tokens, WithLogits, gpt2

LENGTH, ROWS = 128, 8
FEW, MANY = 16, 64
BARE = "bare loop"


@torch.inference_mode()
def run_bare(teacher: WithLogits, loader: DataLoader[Any]) -> None:
    """What any dump has to do."""
    for batch in loader:
        teacher(batch["input_ids"])


def further_s(way: str, teacher: WithLogits, folders: Iterator[Path]) -> float:
    """Seconds of one more sequence, from a run over few and one over many."""
    taken = []
    for size in (FEW, MANY):
        loader = DataLoader(Tokens(size, LENGTH), batch_size=ROWS)
        started = time.perf_counter()
        if way == BARE:
            run_bare(teacher, loader)
        else:
            kdcache.dump_teacher(
                teacher, loader, next(folders), codec=CODECS[way], batch=BATCH, progress=False
            )
        taken.append(time.perf_counter() - started)
    few, many = taken
    return (many - few) / (MANY - FEW)


def main() -> None:
    """Bare loop and dumps take turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    teacher = WithLogits(gpt2(LENGTH, layers=6, width=768, heads=12)).eval()
    taken: dict[str, list[float]] = {name: [] for name in (BARE, *CODECS)}
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / f"{number}.zarr" for number in itertools.count())
        for _ in range(repeats):
            for way, found in taken.items():
                found.append(further_s(way, teacher, folders))
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"each further sequence of {LENGTH} tokens, {threads} threads, load {load:.1f}")
    for way, found in taken.items():
        ratio = statistics.median(a / b for a, b in zip(found, taken[BARE], strict=True))
        print(f"{way:<10} {1000 * statistics.median(found):7.1f} ms  {ratio:.3f}x")


if __name__ == "__main__":
    main()
