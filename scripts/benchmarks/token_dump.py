"""What a dump costs beside its teacher at a vocabulary's width: each further sequence, in one run.

    python -m scripts.benchmarks.token_dump [--repeats 7]

The teacher is a GPT-2 of distilgpt2's sizes with random weights (V = 50,257), small beside what
one would distil: with a larger one the share of encoding, statistics and writing falls. What the
longer of two runs adds to the shorter is the cost of a sequence; looking at data and teacher once,
and the first files, are not in it. Needs transformers.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import kdcache
from scripts.benchmarks.token_steps import BATCH, CODECS, Tokens, WithLogits, gpt2
from scripts.measuring.timing import show, take_turns

LENGTH, ROWS = 128, 8
FEW, MANY = 8, 32
BARE = "bare loop"
WAYS = (BARE, "top-32", "dense")


@torch.inference_mode()
def run_bare(teacher: WithLogits, loader: DataLoader[Any]) -> None:
    """What any dump has to do."""
    for batch in loader:
        teacher(batch["input_ids"])


def run(way: str, teacher: WithLogits, size: int, folders: Iterator[Path]) -> None:
    """One way over so many sequences."""
    loader = DataLoader(Tokens(size, LENGTH), batch_size=ROWS)
    if way == BARE:
        run_bare(teacher, loader)
        return
    folder = next(folders)
    kdcache.dump_teacher(teacher, loader, folder, codec=CODECS[way], batch=BATCH, progress=False)
    shutil.rmtree(folder)


def main() -> None:
    """Bare loop and dumps take turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    logging.getLogger("kdcache").setLevel(logging.ERROR)  # teachers of random weights guess
    teacher = WithLogits(gpt2(LENGTH, layers=6, width=768, heads=12)).eval()
    with tempfile.TemporaryDirectory() as name:
        folders = (Path(name) / f"{number}.zarr" for number in itertools.count())
        ways = {
            (way, size): functools.partial(run, way, teacher, size, folders)
            for way in WAYS
            for size in (FEW, MANY)
        }
        taken = take_turns(ways, repeats)
    further = {
        way: [long - short for long, short in zip(taken[way, MANY], taken[way, FEW], strict=True)]
        for way in WAYS
    }
    threads = torch.get_num_threads()
    show(f"{MANY - FEW} further sequences of {LENGTH} tokens, {threads} threads", further)


if __name__ == "__main__":
    main()
