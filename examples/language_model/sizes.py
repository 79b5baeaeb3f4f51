"""How large the example is: the setting that was measured, and one of seconds for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from transformers import GPT2LMHeadModel

from examples.demos import Training
from examples.language_model.models import gpt2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A GPT-2's size; see :func:`examples.language_model.models.gpt2`."""

    vocabulary: int
    max_length: int
    width: int
    layers: int
    heads: int
    dropout: float = 0.0

    def make(self) -> GPT2LMHeadModel:
        """The model, with random weights."""
        return gpt2(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Everything that decides how long the example takes.

    Attributes:
        num_paragraphs: of the training text, from its start; None: all.
        batch_size: sequences of a batch.
        top_k: tokens of a position that the top-k cache keeps.
    """

    teacher: Shape
    student: Shape
    teaching: Training
    learning: Training
    num_paragraphs: int | None
    batch_size: int
    top_k: int


SIZES: Mapping[str, Size] = {
    "small": Size(
        teacher=Shape(vocabulary=2000, max_length=96, width=128, layers=2, heads=4, dropout=0.1),
        student=Shape(vocabulary=2000, max_length=96, width=64, layers=2, heads=2),
        teaching=Training(epochs=8, learning_rate=1e-2),
        learning=Training(epochs=2, learning_rate=1e-2),
        num_paragraphs=None,
        batch_size=16,
        top_k=32,
    ),
    "tiny": Size(
        teacher=Shape(vocabulary=300, max_length=32, width=32, layers=1, heads=2, dropout=0.1),
        student=Shape(vocabulary=300, max_length=32, width=16, layers=1, heads=2),
        teaching=Training(epochs=8, learning_rate=1e-2),
        learning=Training(epochs=4, learning_rate=1e-2),
        num_paragraphs=60,
        batch_size=8,
        top_k=8,
    ),
}
