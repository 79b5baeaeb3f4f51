"""How large the example is: the setting that was measured, and one of seconds for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from transformers import Wav2Vec2ForCTC

from examples.demos import Training
from examples.speech.alphabet import DIGITS
from examples.speech.models import Norm, wav2vec2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A teacher's size; see :func:`examples.speech.models.wav2vec2`."""

    width: int
    layers: int
    heads: int
    channels: tuple[int, ...] = (32, 64, 128)
    kernels: tuple[int, ...] = (10, 8, 8)
    strides: tuple[int, ...] = (5, 8, 4)
    norm: Norm = "layer"
    dropout: float = 0.1

    def make(self) -> Wav2Vec2ForCTC:
        """The model, with random weights."""
        return wav2vec2(num_classes=len(DIGITS), **asdict(self))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Everything that decides how long the example takes.

    Attributes:
        speed_range: how much faster or slower the teacher's own training plays what it hears.
        student_layers: of the teacher's that a student begins with.
        labelled: share of the training utterances whose transcript students know.
        num_train: utterances.
        num_test: utterances.
        most: digits of an utterance.
        batch_size: utterances of a batch.
    """

    teacher: Shape
    speed_range: float
    student_layers: int
    teaching: Training
    learning: Training
    labelled: float
    num_train: int
    num_test: int
    most: int
    batch_size: int


SIZES: Mapping[str, Size] = {
    "small": Size(
        teacher=Shape(width=128, layers=6, heads=4),
        speed_range=0.2,
        student_layers=2,
        teaching=Training(epochs=24, learning_rate=2e-3),
        learning=Training(epochs=3, learning_rate=5e-4),
        labelled=0.05,
        num_train=2000,
        num_test=300,
        most=3,
        batch_size=16,
    ),
    "tiny": Size(
        teacher=Shape(width=16, layers=3, heads=2, channels=(8, 16, 16), dropout=0.0),
        speed_range=0.0,
        student_layers=1,
        teaching=Training(epochs=30, learning_rate=1e-2),
        learning=Training(epochs=2, learning_rate=5e-3),
        labelled=0.5,
        num_train=48,
        num_test=16,
        most=2,
        batch_size=8,
    ),
}
