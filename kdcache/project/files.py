"""The files of a new project: the templates beside this file, with this project's values.

Text in, text out: nothing is written here, and nothing heavy is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Source = Literal["own", "hf", "timm"]
Value = str | int | float

# A word in capitals stands for a value; in a template it is a YAML text like any other.
_PLACE = re.compile(
    r"\b(BATCH_SIZE|DATA_PATH|IMAGE_SIZE|LEARNING_RATE|MAX_EPOCHS|NORMALIZE|NUM_CLASSES|"
    r"STUDENT_NAME|TEACHER_NAME|VOCABULARY)\b"
)
_SECTION = re.compile(r"^# <(teacher|student)>\n", re.MULTILINE)
_PLAIN = re.compile(r"[A-Za-z./][\w./-]*(:[\w./-]+)?")
_WORDS_OF_YAML = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "."}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A teacher or student: one that the project defines, or one by its name elsewhere.

    Attributes:
        source: own, hf (a Hugging Face name or folder), or timm.
        name: its name there.
    """

    source: Source = "own"
    name: str = ""


def project_files(
    kind: str,
    values: Mapping[str, Value],
    *,
    teacher: Model,
    student: Model,
) -> dict[str, str]:
    """File name -> content of a project.

    Args:
        kind: image-folder, text or custom.
        values: what the words in capitals stand for.
        teacher: where it is from.
        student: where it is from.
    """
    folder = kind.replace("-", "_")
    chosen = {"teacher": teacher.source, "student": student.source}
    text = _SECTION.sub(
        lambda found: template(folder, f"{found[1]}-{chosen[found[1]]}.yaml"),
        template(folder, "experiment.yaml"),
    )
    filled = _PLACE.sub(lambda found: yaml_text(values[found[1]]), text)
    files = {"experiment.yaml": filled}
    if kind == "custom":
        files["data.py"] = template(folder, "data.py")
    if kind == "custom" or (kind == "image-folder" and "own" in chosen.values()):
        files["models.py"] = template(folder, "models.py")
    if teacher.source == "own":
        files["train_teacher.py"] = template(folder, "train_teacher.py")
    return files


def template(folder: str, name: str) -> str:
    """A file of ``kdcache/project/templates``, as text."""
    path = resources.files("kdcache.project") / "templates" / folder / name
    return path.read_text(encoding="utf-8")


def yaml_text(value: Value) -> str:
    """A value as YAML reads it back; a text has quotes where it could be read as something else."""
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0")  # 0.00005: YAML reads 5e-05 as a text
    if isinstance(value, int):
        return str(value)
    is_plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_YAML
    return value if is_plain else json.dumps(value, ensure_ascii=False)
