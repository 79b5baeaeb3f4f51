"""What the documents say that their reader has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photos(folder: Path) -> None:
    """Class folders of images, whose class is told by their colour."""
    colours = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for image in range(40):
            pixels = colours.integers(0, 120, (24, 30, 3), dtype=np.uint8)
            pixels[..., number] += 120
            Image.fromarray(pixels).save(folder / "photos" / name / f"{image:04}.png")
