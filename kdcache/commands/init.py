"""``kdcache init KIND [FOLDER] [--data PATH] [--teacher NAME] [--student NAME] [--force]``."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from kdcache.commands.inspect import Parser
from kdcache.commands.project import Model, Value, project_files
from kdcache.datasets import class_folders, find_images, plain_text, read_texts
from kdcache.errors import UsageError, suggest
from kdcache.paths import local_path

KINDS = {
    "image-folder": "class folders of images; no code of your own is needed",
    "text": "plain text files, for causal language models; no code of your own is needed",
    "custom": "anything else: a dataset and two models in Python, to be replaced by yours",
}

# Networks that are trained from nothing see small images; published ones were made for 224 pixels.
_LARGEST_OWN, _SMALLEST_OWN, _PUBLISHED = 64, 16, 224
_NUM_STEPS = 800  # of a student's training, about: a minute or two for a small one on a CPU
_BYTES_PER_TOKEN = 4  # of English text, roughly
_VOCABULARY = 2000


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


def run(arguments: Sequence[str]) -> int:
    """Write a project and say what to type next."""
    options = _parsed(arguments)
    folder = local_path(options.folder, "FOLDER")
    teacher = _model(options.teacher, "--teacher", folder)
    student = _model(options.student, "--student", folder)
    _check_combination(options, teacher, student)
    if options.kind == "image-folder":
        plan = _plan_images(options, folder, teacher, student)
    elif options.kind == "text":
        plan = _plan_text(options, folder, teacher, student)
    else:
        plan = Plan(values={}, about="a made-up problem, for a start", needs={})
    files = project_files(options.kind, plan.values, teacher=teacher, student=student)
    _write(folder, files, is_forced=options.force)
    print(_told(folder, files, plan))
    return 0


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    kinds = "\n".join(f"  {name:<14} {about}" for name, about in KINDS.items())
    parser = Parser(
        prog="kdcache init",
        description="Start a project: a commented experiment.yaml, and the Python that it needs."
        f"\n\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", metavar="KIND", nargs="?", help="one of the above")
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", default=".", help="to write into (default: this one)"
    )
    parser.add_argument("--data", metavar="PATH", help="your images or text")
    parser.add_argument(
        "--teacher", metavar="NAME", help="hf:NAME, hf:FOLDER or timm:NAME; else one is trained"
    )
    parser.add_argument(
        "--student", metavar="NAME", help="hf:NAME, hf:FOLDER or timm:NAME; else a small one"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="default: the images' own, at most 64; 224 where a model has a name",
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    options = parser.parse_args(arguments)
    if options.kind not in KINDS:
        given = "" if options.kind is None else f"{options.kind!r} is no kind of data. "
        near = suggest(options.kind, KINDS) + "\n" if options.kind else ""
        raise UsageError(f"{given}{near}Say what your data are: kdcache init KIND FOLDER.\n{kinds}")
    if options.image_size is not None and options.image_size < 8:
        raise UsageError(f"--image-size is at least 8 pixels, not {options.image_size}.")
    return options


def _model(word: str | None, option: str, folder: Path) -> Model:
    """The model that an option names; a folder's path as it is seen from the project."""
    if word is None:
        return Model()
    source, _, name = word.partition(":")
    if source not in ("hf", "timm") or not name:
        raise UsageError(
            f"{option} is hf:NAME (Hugging Face), hf:FOLDER (of save_pretrained) or timm:NAME, not "
            f"{word!r}. A model of your own is written into experiment.yaml, by class_path."
        )
    if source == "timm":
        return Model(source="timm", name=name)
    is_path = name.startswith((".", "/", "~"))
    if is_path and not local_path(name, option).is_dir():
        raise UsageError(f"{option}: there is no folder {name}.")
    if is_path or Path(name).is_dir():
        seen = _seen_from(folder, name)
        return Model(source="hf", name=seen if seen.startswith((".", "/")) else f"./{seen}")
    return Model(source="hf", name=name)


def _check_combination(options: argparse.Namespace, teacher: Model, student: Model) -> None:
    """Raise UsageError for options that do not go together."""
    kind = options.kind
    named = [m for m in (teacher, student) if m.source != "own"]
    if kind == "custom" and (options.data is not None or named):
        raise UsageError(
            "custom takes no --data, --teacher or --student: it writes a made-up dataset and two "
            "models, with a comment at each place that you replace."
        )
    if kind == "text" and any(m.source == "timm" for m in named):
        raise UsageError("timm has image models only; language models are hf:NAME.")
    if kind == "text" and student.source == "hf" and teacher.source == "own":
        raise UsageError(
            "--student for text needs --teacher: both must have one tokenizer, and a teacher that "
            "is trained here has its own."
        )
    if kind != "image-folder" and options.image_size is not None:
        raise UsageError(f"--image-size is for image-folder, not {kind}.")
    if kind != "custom" and options.data is None:
        module = class_folders if kind == "image-folder" else plain_text
        what = "a folder for each class" if kind == "image-folder" else "a text file, or a folder"
        raise UsageError(
            f"say where your data are: kdcache init {kind} FOLDER --data PATH. Expected "
            f"{what}:\n{module.TREE.format(root='PATH')}"
        )


def _plan_images(options: argparse.Namespace, folder: Path, teacher: Model, student: Model) -> Plan:
    found = find_images(options.data)
    num_train = len(found.splits[class_folders.TRAIN])
    published = [model for model in (teacher, student) if model.source != "own"]
    size = options.image_size or (_PUBLISHED if published else _usual_size(found))
    batch_size = 64 if num_train >= 640 else 16
    is_pretrained = student.source != "own"
    others = ", ".join(
        f"{len(images):,} to validate on ({name})"
        for name, images in found.splits.items()
        if name != class_folders.TRAIN
    )
    return Plan(
        values={
            "DATA_PATH": _seen_from(folder, options.data),
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


def _plan_text(options: argparse.Namespace, folder: Path, teacher: Model, student: Model) -> Plan:
    files = plain_text.find_texts(options.data)
    text = read_texts(options.data)
    num_bytes = sum(len(one.encode()) for one in text.train)
    blocks = num_bytes / _BYTES_PER_TOKEN / 128
    is_pretrained = student.source != "own"
    held = sum(len(one.encode()) for one in text.val)
    number = "1 file" if len(files) == 1 else f"{len(files):,} files"
    return Plan(
        values={
            "DATA_PATH": _seen_from(folder, options.data),
            "TEACHER_NAME": teacher.name or "./teacher",
            "STUDENT_NAME": student.name,
            "VOCABULARY": _VOCABULARY,
            "LEARNING_RATE": 5e-5 if is_pretrained else 1e-2,
            "MAX_EPOCHS": 1 if is_pretrained else _epochs(blocks / 16, 10),
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


def _seen_from(folder: Path, path: str) -> str:
    """A path as commands in the project's folder reach it; an absolute one stays."""
    given = local_path(path, "the path")
    return str(given) if given.is_absolute() else os.path.relpath(given, folder)


def _write(folder: Path, files: Mapping[str, str], *, is_forced: bool) -> None:
    there = [name for name in files if (folder / name).exists()]
    if there and not is_forced:
        raise UsageError(
            f"{folder} has {', '.join(there)} already. Nothing was written. Name another folder, "
            "or replace them with --force."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write into {folder}: {error.strerror}.") from error


def _told(folder: Path, files: Mapping[str, str], plan: Plan) -> str:
    """What was written, and the commands that come next."""
    commands = [
        "kdcache dump-teacher -c experiment.yaml",
        "kdcache train-student -c experiment.yaml",
    ]
    if "train_teacher.py" in files:
        commands.insert(0, "python train_teacher.py")
    if folder.resolve() != Path.cwd():
        commands.insert(0, shlex.join(["cd", str(folder)]))
    missing = [extra for package, extra in plan.needs.items() if find_spec(package) is None]
    if missing:
        commands.insert(0, f"pip install {' '.join(missing)}")
    return "\n".join(
        [
            f"Wrote {', '.join(files)} into {folder.resolve()}",
            f"Data: {plan.about}",
            "",
            "Next, in this order:",
            *(f"  {command}" for command in commands),
            "",
            "The comments in experiment.yaml say what to change, and what for.",
        ]
    )
