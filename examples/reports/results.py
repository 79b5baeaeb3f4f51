"""What goes into an example's ``results.json``."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from examples.reports.rows import Row


def count_parameters(model: nn.Module) -> int:
    """Weights of a model; those that serve twice count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def versions(*modules: ModuleType) -> dict[str, str]:
    """Module name -> version, of libraries that decide what the numbers are."""
    return {module.__name__: module.__version__ for module in modules}


def means(row: Row[Any], *names: str) -> dict[str, float]:
    """``NAME_mean`` -> mean over seeds, of attributes of a row's scores."""
    return {f"{name}_mean": row.mean(operator.attrgetter(name)) for name in names}


def of_splits(report: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Split -> what is wanted of its part of a cache's report (``kdcache inspect``)."""
    return {name: {key: split[key] for key in wanted} for name, split in report["splits"].items()}


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Indented, in the order given."""
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
