"""A teacher and students for 8x8 images. All return raw logits (B, 10)."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from examples.digits.data import NUM_CLASSES


class Teacher(nn.Module):
    """Three convolutions with batch norm: 58,474 parameters.

    Args:
        checkpoint: a ``.safetensors`` file of its weights; random weights if None.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, NUM_CLASSES),
        )
        if checkpoint is not None:
            self.load_state_dict(load_file(checkpoint))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 8, 8)."""
        return self.layers(images)


class Student(nn.Module):
    """Two convolutions of ``width`` and ``2 * width`` channels: 1,898 parameters at width 8."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 2 * 2, NUM_CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 8, 8)."""
        return self.layers(images)


def _convolution(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
