"""Small pictures, made on the spot: classes that differ in colour and in stripes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "emu")


def picture(number: int, seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """A picture of class ``number``: its colour, and noise."""
    width, height = size
    random = np.random.RandomState(seed)
    pixels = random.randint(0, 120, (height, width, 3))
    pixels[..., number % 3] += 80
    return Image.fromarray(pixels.astype(np.uint8))


def write_classes(top: Path, count: int, *, classes=CLASSES, suffix: str = ".png", first: int = 0):
    """``count`` pictures of each class in class folders below ``top``."""
    for number, name in enumerate(classes):
        (top / name).mkdir(parents=True, exist_ok=True)
        for n in range(first, first + count):
            picture(number, 1000 * number + n).save(top / name / f"{n:03d}{suffix}")
    return top
