"""``kdcache init KIND [FOLDER] [--data PATH] [--teacher NAME] [--student NAME] [--force]``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from kdcache.commands.terminal.parser import Parser
from kdcache.datasets import class_folders, plain_text
from kdcache.errors import UsageError, suggest
from kdcache.paths import local_path
from kdcache.project.files import Model, project_files
from kdcache.project.plan import Plan, plan_images, plan_text, seen_from

KINDS = {
    "image-folder": "class folders of images; no code of your own is needed",
    "text": "plain text files, for causal language models; no code of your own is needed",
    "custom": "anything else: a dataset and two models in Python, to be replaced by yours",
}


def run(arguments: Sequence[str]) -> int:
    """Write a project and say what to type next."""
    options = _parsed(arguments)
    folder = local_path(options.folder, "FOLDER")
    teacher = _model(options.teacher, "--teacher", folder)
    student = _model(options.student, "--student", folder)
    _check_combination(options, teacher, student)
    if options.kind == "image-folder":
        plan = plan_images(options.data, folder, teacher, student, image_size=options.image_size)
    elif options.kind == "text":
        plan = plan_text(options.data, folder, teacher, student)
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
        seen = seen_from(folder, name)
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
