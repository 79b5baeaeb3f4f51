"""Images in class folders as a data object: ``data: {class_path: kdcache.datasets.ImageFolder}``.

Which files these are stands in :mod:`kdcache.datasets.class_folders`; here they become tensors.
Resizing and cropping are the same each time. Random augmentation is left out: the teacher's cached
answer is for one view of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdcache.datasets.class_folders import (
    TRAIN,
    FoundImages,
    find_images,
    import_pillow,
    unreadable,
)
from kdcache.datasets.preprocessing import Channels, mean_and_std
from kdcache.errors import DataError, UsageError

_IN_MEMORY_BYTES = 2**29
"""Decoded images of a split are kept where they are no more than this: 512 MiB."""

Sample = tuple[Tensor, int]


class ImageDataset(Dataset[Sample]):
    """One split: images (3, S, S) float32, normalised, each with its class.

    Args:
        root: folder that paths are below.
        images: (path, class) of each sample.
        image_size: S, in pixels.
        mean: of each channel, where pixels are from 0 to 1.
        std: standard deviation of each channel.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[tuple[str, int]],
        *,
        image_size: int,
        mean: Channels,
        std: Channels,
    ) -> None:
        self.root = root
        self.images = images
        self.image_size = image_size
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self._is_kept = len(images) * 3 * image_size**2 <= _IN_MEMORY_BYTES
        self._decoded: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Image and class; DataError names the file that is no image."""
        pixels = self._decoded.get(index)
        if pixels is None:
            pixels = decode(self.root / self.images[index][0], self.image_size)
            if self._is_kept:
                self._decoded[index] = pixels
        # One operation at a time, in this order: the same bits on every machine.
        return (pixels.float() / 255 - self.mean) / self.std, self.images[index][1]


class ImageFolder:
    """Loaders of images in class folders.

    Batches are ``(images, labels)``: (B, 3, S, S) float32, and (B,) int64, the number of the class
    in the sorted names of the class folders. See
    :func:`kdcache.datasets.class_folders.find_images` for folders and splits.

    Args:
        root: folder of class folders, or of ``train`` and ``val`` folders with these in them.
        image_size: S: the shorter side is resized to it, and the middle square is cut out. Pixels.
        batch_size: images of a batch.
        held_out: share to validate on where there is no validation folder.
        normalize: ``imagenet``, or the model that says how: ``hf:NAME_OR_FOLDER``, ``timm:NAME``.
        num_workers: processes that decode; 0 decodes in the training process.
        seed: of the order of training batches.

    Raises:
        UsageError: there is no such folder, or an argument makes no sense.
        DataError: see :func:`~kdcache.datasets.class_folders.find_images`.
    """

    def __init__(
        self,
        root: str,
        *,
        image_size: int,
        batch_size: int = 64,
        held_out: float = 0.1,
        normalize: str = "imagenet",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value in (("image_size", image_size), ("batch_size", batch_size)):
            if value < 1:
                raise UsageError(f"data.{name} is at least 1, not {value}.")
        self.image_size = image_size
        self.batch_size = batch_size
        self.normalize = normalize
        self.num_workers = num_workers
        self.seed = seed
        self.found: FoundImages = find_images(root, held_out=held_out)
        self.class_names = self.found.class_names  # by this name kdcache finds them

    @cached_property
    def splits(self) -> dict[str, ImageDataset]:
        """``train`` and the validation splits, by name."""
        mean, std = mean_and_std(self.normalize)
        return {
            name: ImageDataset(
                self.found.root, images, image_size=self.image_size, mean=mean, std=std
            )
            for name, images in self.found.splits.items()
        }

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled batches of the training split."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.splits[TRAIN],
            batch_size=self.batch_size,
            shuffle=True,
            generator=order,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """The validation splits, by the names under which they are cached and scored."""
        return {
            name: DataLoader(split, batch_size=self.batch_size, num_workers=self.num_workers)
            for name, split in self.splits.items()
            if name != TRAIN
        }


def decode(path: Path, size: int) -> Tensor:
    """The middle square of an image, (3, size, size) uint8: red, green, blue.

    Turned as its camera says (EXIF); grey images have three equal channels, and transparency is
    ignored.

    Raises:
        DataError: the file is no image, is cut short, or has more than 8 bits a channel.
    """
    pillow = import_pillow()
    from PIL import ImageOps

    try:
        with pillow.open(path) as image:
            mode = image.mode
            if not mode.startswith(("I", "F")):  # converting those cuts off what is above 255
                # A large JPEG is decoded at a half to an eighth of its size; no smaller than this.
                image.draft("RGB", (2 * size, 2 * size))
                upright = ImageOps.exif_transpose(image).convert("RGB")
                square = ImageOps.fit(upright, (size, size), method=pillow.Resampling.BICUBIC)
                content = bytearray(square.tobytes())
    except Exception as error:
        raise unreadable(path, error) from error
    if mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a channel (mode {mode}). Convert it first.")
    return torch.frombuffer(content, dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1).clone()
