"""MNIST from its four IDX files: a checked reader, an in-memory dataset, its loaders.

Nothing here knows kdcache. ``MnistData`` is a plain object that a configuration file names by
class path; all that kdcache asks of it is ``train_dataloader()`` and ``val_dataloader()``.

The invariant: image i of a split has the same bits on every machine, whether it is fetched alone
or in a batch, and however many images or labels are kept. Cached targets are joined on that.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import urllib.request
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

# Mean and standard deviation of the 60,000 training images' pixels, in units of 255, rounded to
# four places as in PyTorch's MNIST example (pytorch/examples, mnist/main.py).
PIXEL_MEAN, PIXEL_STD = 0.1307, 0.3081
IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10
IGNORE_INDEX = -100  # torch.nn.functional.cross_entropy skips this label by default

# The original host, yann.lecun.com, answers 403 since 2024. These two serve the same files: the
# first is PyTorch's mirror, the second the one of Google's Common Visual Data Foundation.
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# sha256 of the decompressed contents: gzip bytes depend on the program that wrote them.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_DOWNLOAD_LIMIT_BYTES = 64 * 2**20  # the largest file has 47 MB decompressed


class MnistDataset(Dataset[tuple[Tensor, int]]):
    """Images in memory as uint8, normalised when they are fetched.

    Args:
        images: (N, 28, 28) uint8.
        labels: (N,) int64, with ``IGNORE_INDEX`` where a label is not known.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        # One value for each of the 256 grey levels: faster than arithmetic on every pixel, and no
        # compiler or CPU can round it in another way.
        levels = (np.arange(256) / 255 - PIXEL_MEAN) / PIXEL_STD
        self._levels = torch.from_numpy(levels.astype(np.float32))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image (1, 28, 28) float32 and label."""
        return self._levels[self.images[index].int()].unsqueeze(0), int(self.labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several samples at once: DataLoader prefers this to one call per sample."""
        rows = torch.as_tensor(indices)
        images = self._levels[self.images[rows].int()].unsqueeze(1)
        return list(zip(images, self.labels[rows].tolist(), strict=True))


class MnistData:
    """The training and test sets of MNIST as data loaders. No augmentation.

    Args:
        root: folder with the four IDX files, gzipped or not.
        batch_size: rows of a batch, for training and validation.
        num_train: keep the first so many training images; None: all. The file is in no class
            order, and image i stays image i.
        num_labelled: keep the labels of a stratified subset of this size and set all others to
            ``IGNORE_INDEX``, so that the teacher's targets serve on all images and the labels on
            few; None: keep all labels. A smaller subset lies within a larger one.
        only_labelled: draw only the labelled images of that subset in training, for a student
            that learns from labels alone; images keep their numbers, so the cache still fits.
        shuffle: False: training images in their own order.
        download: fetch files that are missing; False: never touch the network.
        num_workers: worker processes of each loader.
        seed: chooses the labelled subset and the order of the training batches.
    """

    class_names = tuple(str(digit) for digit in range(NUM_CLASSES))

    def __init__(
        self,
        *,
        root: str,
        batch_size: int = 64,
        num_train: int | None = None,
        num_labelled: int | None = None,
        only_labelled: bool = False,
        shuffle: bool = True,
        download: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value in (("num_train", num_train), ("num_labelled", num_labelled)):
            if value is not None and value < 1:
                raise ValueError(
                    f"{name} is {value}. Give a number of at least 1, or null for all."
                )
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.num_train = num_train
        self.num_labelled = num_labelled
        self.only_labelled = only_labelled
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.seed = seed
        for name in SHA256:
            if download and find_idx(self.root, name) is None:
                download_idx(self.root, name)

    @cached_property
    def train_set(self) -> MnistDataset:
        """Read on first use, with ``num_train`` and ``num_labelled`` applied."""
        images, labels = read_split(self.root, "train")
        if self.num_train is not None:
            _check_at_most("num_train", self.num_train, len(images), f"images in {self.root}")
            images, labels = images[: self.num_train], labels[: self.num_train]
        if self.num_labelled is not None:
            _check_at_most("num_labelled", self.num_labelled, len(labels), "training images")
            kept = stratified_subset(labels, num_kept=self.num_labelled, seed=self.seed)
            hidden = np.full_like(labels, IGNORE_INDEX)
            hidden[kept] = labels[kept]
            labels = hidden
        return MnistDataset(torch.from_numpy(images), torch.from_numpy(labels))

    @cached_property
    def test_set(self) -> MnistDataset:
        """Read on first use; always whole and labelled."""
        images, labels = read_split(self.root, "t10k")
        return MnistDataset(torch.from_numpy(images), torch.from_numpy(labels))

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Batches of (images (B, 1, 28, 28), labels (B,))."""
        order = torch.Generator().manual_seed(self.seed)
        sampler = None
        if self.only_labelled:
            labelled = (self.train_set.labels != IGNORE_INDEX).nonzero().flatten().tolist()
            sampler = SubsetRandomSampler(labelled, generator=order)
        return DataLoader(
            self.train_set,
            batch_size=self.batch_size,
            shuffle=self.shuffle if sampler is None else None,
            sampler=sampler,
            generator=order,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> dict[str, DataLoader[tuple[Tensor, int]]]:
        """The test set, by the name under which its metrics are logged."""
        loader = DataLoader(self.test_set, batch_size=self.batch_size, num_workers=self.num_workers)
        return {"test": loader}


def stratified_subset(labels: np.ndarray, *, num_kept: int, seed: int) -> np.ndarray:
    """Indices of ``num_kept`` samples, each class in its share of ``labels`` (within one or so).

    Each class is put in a seeded random order, and all of them are merged so that every prefix
    of the result has the classes in proportion: more labels are a superset of fewer.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")[:num_kept]]


def read_split(root: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) int64 of the split "train" or "t10k".

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the two do not belong together.
    """
    images_path = require_idx(root, f"{prefix}-images-idx3-ubyte")
    labels_path = require_idx(root, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, num_dims=3), read_idx(labels_path, num_dims=1)
    if images.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"{images_path} has images of {images.shape[1:]}, not {IMAGE_SHAPE}.")
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels. "
            "Take all four files from one source."
        )
    if len(labels) and labels.max() >= NUM_CLASSES:
        raise ValueError(
            f"{labels_path} has label {labels.max()} at index {labels.argmax()}: "
            f"MNIST labels are 0 to {NUM_CLASSES - 1}."
        )
    return images, labels.astype(np.int64)


def read_idx(path: Path, *, num_dims: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not, as a uint8 array.

    The format: two zero bytes, a type code (8: unsigned byte), the number of dimensions, each
    dimension as a big-endian uint32, then the values in C order and nothing more.

    Raises:
        ValueError: the file is anything else; the message names it.
    """
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    # What a file holds counts, not what it is called.
    with gzip.open(path) if is_gzip else path.open("rb") as file:
        try:
            return _parse_idx(file, num_dims=num_dims)
        except (ValueError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is not the IDX file it should be: {error}") from error


def _parse_idx(file: io.BufferedIOBase, *, num_dims: int) -> np.ndarray:
    header = file.read(4 + 4 * num_dims)
    expected = bytes((0, 0, 8, num_dims))
    if header[:4] != expected:
        raise ValueError(f"it begins with {header[:4].hex()}, not with the magic {expected.hex()}.")
    if len(header) < 4 + 4 * num_dims:
        raise ValueError(f"it ends inside its header, after {len(header)} bytes.")
    shape = struct.unpack(f">{num_dims}I", header[4:])
    num_bytes = int(np.prod(shape, dtype=object))
    # In slices, and never past one byte too many: neither a header nor a gzip bomb decides how
    # much memory is taken.
    values = bytearray()
    while len(values) <= num_bytes:
        piece = file.read(min(2**20, num_bytes + 1 - len(values)))
        if not piece:
            break
        values += piece
    if len(values) != num_bytes:
        found = f"only {len(values)}" if len(values) < num_bytes else "more"
        raise ValueError(f"its header says {shape}, {num_bytes} bytes of values; it has {found}.")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def find_idx(root: Path, name: str) -> Path | None:
    """Path of the IDX file, plain or gzipped, if it is there."""
    paths = (root / name, root / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def require_idx(root: Path, name: str) -> Path:
    """Path of the IDX file, plain or gzipped.

    Raises:
        FileNotFoundError: it is not there; the message says what to do.
    """
    path = find_idx(root, name)
    if path is None:
        raise FileNotFoundError(
            f"{root} has neither {name} nor {name}.gz. Point root at a folder with MNIST's four "
            "IDX files, or set download: true to fetch them (12 MB) into that folder."
        )
    return path


def download_idx(root: Path, name: str, mirrors: Sequence[str] = MIRRORS) -> None:
    """Fetch one file as ``<name>.gz`` from the first mirror that serves the right contents.

    Raises:
        OSError: no mirror did; the message says what each answered.
    """
    failures = []
    for mirror in mirrors:
        url = f"{mirror}{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                packed = answer.read(_DOWNLOAD_LIMIT_BYTES)
            with gzip.open(io.BytesIO(packed)) as file:
                digest = hashlib.sha256(file.read(_DOWNLOAD_LIMIT_BYTES)).hexdigest()
        except (OSError, EOFError, zlib.error) as error:
            failures.append(f"{url}: {error}")
            continue
        if digest == SHA256[name]:
            _write_whole(root / f"{name}.gz", packed)
            return
        failures.append(f"{url}: sha256 of the contents is {digest}, not {SHA256[name]}")
    raise OSError(f"could not download {name} into {root}:\n  " + "\n  ".join(failures))


def _write_whole(path: Path, content: bytes) -> None:
    """Write under a name of this process's own, then rename: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _check_at_most(name: str, value: int, limit: int, of_what: str) -> None:
    if value > limit:
        raise ValueError(f"{name} is {value}, but there are only {limit} {of_what}.")
