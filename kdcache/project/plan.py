"""What a new project is told of its data: sizes, counts, paths, and how long to train.

Looks at names, headers and text of the user's data; nothing is decoded, and torch stays out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kdcache.datasets import class_folders, find_images, plain_text, read_texts
from kdcache.paths import local_path
from kdcache.project.files import Model, Value

# Networks that are trained from nothing see small images; published ones were made for 224 pixels.
_LARGEST_OWN, _SMALLEST_OWN, _PUBLISHED = 64, 16, 224
_NUM_STEPS = 500  # of a student's training, about: a minute or two for a small one on a CPU
_BYTES_PER_TOKEN = 4  # of English text, roughly
_VOCABULARY = 2000
_SEQUENCE_LENGTH, _BLOCKS_OF_A_BATCH = 128, 16  # as the template has them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be written, before anything is.

    Attributes:
        values: what the words in capitals of the templates stand for.
        about: the data, in a line for people.
        needs: packages that the project imports -> what installs them.
    """

    values: Mapping[str, Value]
    about: str
    needs: Mapping[str, str]


def plan_images(
    data: str, folder: Path, teacher: Model, student: Model, *, image_size: int | None = None
) -> Plan:
    """The plan for class folders of images.

    Args:
        data: their folder, as it is seen from here.
        folder: of the project.
        teacher: where it is from.
        student: where it is from.
        image_size: in pixels; None: as the images are, or as published models want them.

    Raises:
        UsageError, DataError: see :func:`kdcache.datasets.find_images`.
    """
    found = find_images(data)
    num_train = len(found.splits[class_folders.TRAIN])
    published = [model for model in (teacher, student) if model.source != "own"]
    size = image_size or (_PUBLISHED if published else _usual_size(found))
    batch_size = 64 if num_train >= 640 else 16
    is_pretrained = student.source != "own"
    others = ", ".join(
        f"{len(images):,} to validate on ({name})"
        for name, images in found.splits.items()
        if name != class_folders.TRAIN
    )
    return Plan(
        values={
            "DATA_PATH": seen_from(folder, data),
            "NUM_CLASSES": len(found.class_names),
            "IMAGE_SIZE": size,
            "BATCH_SIZE": batch_size,
            "NORMALIZE": _normalize(published, folder),
            "TEACHER_NAME": teacher.name,
            "STUDENT_NAME": student.name,
            "LEARNING_RATE": 1e-4 if is_pretrained else 1e-2,
            "MAX_EPOCHS": 3 if is_pretrained else _epochs(num_train / batch_size, 30),
        },
        about=f"{len(found.class_names)} classes, {num_train:,} images to train on, {others}; "
        f"resized to {size} pixels",
        needs={"PIL": '"kdcache[images]"', **_needs(published)},
    )


def plan_text(data: str, folder: Path, teacher: Model, student: Model) -> Plan:
    """The plan for text files; the arguments are those of :func:`plan_images`.

    Raises:
        UsageError, DataError: see :func:`kdcache.datasets.read_texts`.
    """
    files = plain_text.find_texts(data)
    text = read_texts(data)
    num_bytes = sum(len(one.encode()) for one in text.train)
    blocks = num_bytes / _BYTES_PER_TOKEN / _SEQUENCE_LENGTH
    is_pretrained = student.source != "own"
    held = sum(len(one.encode()) for one in text.val)
    number = "1 file" if len(files) == 1 else f"{len(files):,} files"
    return Plan(
        values={
            "DATA_PATH": seen_from(folder, data),
            "TEACHER_NAME": teacher.name or "./teacher",
            "STUDENT_NAME": student.name,
            "VOCABULARY": _VOCABULARY,
            "LEARNING_RATE": 5e-5 if is_pretrained else 1e-2,
            "MAX_EPOCHS": 1 if is_pretrained else _epochs(blocks / _BLOCKS_OF_A_BATCH, 10),
        },
        about=f"{number}, {num_bytes:,} bytes to train on, {held:,} to validate on (val)",
        needs={"transformers": '"kdcache[hf]"'},
    )


def _usual_size(found: class_folders.FoundImages) -> int:
    """The shorter side that is usual among the images, neither very small nor large, in pixels."""
    usual = int(median(min(size) for size in class_folders.image_sizes(found)))
    return min(max(usual, _SMALLEST_OWN), _LARGEST_OWN)


def _normalize(published: Sequence[Model], folder: Path) -> str:
    """As the teacher wants its pixels, or the student where the teacher is trained here."""
    if not published:
        return "imagenet"
    first = published[0]
    if (folder / first.name).is_dir() and not (
        folder / first.name / "preprocessor_config.json"
    ).is_file():
        return "imagenet"
    return f"{first.source}:{first.name}"


def _needs(published: Sequence[Model]) -> dict[str, str]:
    installed_by = {"hf": ("transformers", '"kdcache[hf]"'), "timm": ("timm", "timm")}
    return dict(installed_by[model.source] for model in published)


def _epochs(num_batches: float, most: int) -> int:
    return min(max(round(_NUM_STEPS / num_batches), 2), most)


def seen_from(folder: Path, path: str) -> str:
    """A path as commands in the project's folder reach it; an absolute one stays."""
    given = local_path(path, "the path")
    return str(given) if given.is_absolute() else os.path.relpath(given, folder)
