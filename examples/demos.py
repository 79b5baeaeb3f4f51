"""What the demos do alike beside their reports."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a model learns: part of an example's size."""

    epochs: int
    learning_rate: float


def positive(word: str) -> int:
    """A whole number of at least 1; argparse names this function where it is not."""
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return number


def new_folder(parent: Path) -> Path:
    """The next of ``run-001``, ``run-002`` ...: students of earlier runs are kept."""
    taken = {folder.name for folder in parent.glob("run-*")}
    numbered = (f"run-{number:03d}" for number in itertools.count(1))
    folder = parent / next(name for name in numbered if name not in taken)
    folder.mkdir(parents=True)
    return folder
