"""What a user says about tracking: values only, checked before anything is imported or made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcache.errors import UsageError, suggest

CSV, TENSORBOARD, COMET = "csv", "tensorboard", "comet"
BUILT_IN = (CSV, TENSORBOARD, COMET)

_OTHER_LIGHTNING = ("lightning.", "lightning_fabric.")


@dataclass(frozen=True, kw_only=True)
class CometSettings:
    """Which Comet experiment.

    Attributes:
        info: file of three lines: API key, project, workspace.
        project: instead of the file's; Comet makes one that it does not know.
        workspace: instead of the file's; your own if neither says.
        online: false keeps the experiment in an archive in the run's folder, for ``comet upload``;
            true ends the run where Comet cannot be reached; where it is null, there is an archive
            without an API key or a connection.
    """

    info: str | None = None
    project: str | None = None
    workspace: str | None = None
    online: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What is logged, and where to.

    Attributes:
        loggers: csv, tensorboard, comet, or class_path and init_args of a logger of
            pytorch_lightning; csv alone if null, nothing if empty.
        name: of the experiment, where a logger shows one (Comet).
        grad_norm: which norm of the gradient is logged, .inf for its largest entry; none if null.
        histograms: of all trained weights after each epoch, in Comet and TensorBoard.
        parameters: hyper-parameters of your own, saved with the experiment.

    ``comet`` says which Comet experiment.

    Raises:
        UsageError: an unknown logger or one that is given twice, a norm that is none, settings of
            Comet without it.
    """

    loggers: list[Any] | None = None
    name: str | None = None
    grad_norm: float | None = 2.0
    histograms: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)
    comet: CometSettings = field(default_factory=CometSettings)

    def __post_init__(self) -> None:
        """Check what can be checked without importing a logger."""
        if self.loggers is not None and not isinstance(self.loggers, list | tuple):
            raise UsageError(f"tracking.loggers is a list, such as [csv], not {self.loggers!r}.")
        for logger in self.loggers or ():
            _check_logger(logger)
        named = [logger for logger in self.loggers or () if isinstance(logger, str)]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"tracking.loggers has {twice!r} twice. Name each once.")
        is_norm = isinstance(self.grad_norm, int | float) and self.grad_norm > 0
        if self.grad_norm is not None and not is_norm:
            raise UsageError(
                f"tracking.grad_norm is the p of a norm, above 0, not {self.grad_norm!r}; null "
                "logs none."
            )
        if self.comet != CometSettings() and COMET not in named:
            raise UsageError(
                f"tracking.comet is given, and tracking.loggers is {self.loggers or [CSV]}: "
                "nothing would go to Comet. Add comet to tracking.loggers."
            )

    @classmethod
    def of(cls, given: Tracking | Mapping[str, Any] | None) -> Tracking:
        """Settings, or a mapping of them as an experiment file has it.

        Raises:
            UsageError: a key is unknown, or a value is wrong.
        """
        if isinstance(given, cls):
            return given
        values = _known(given or {}, cls, "tracking")
        if isinstance(values.get("comet"), Mapping):
            values["comet"] = CometSettings(
                **_known(values["comet"], CometSettings, "tracking.comet")
            )
        return cls(**values)


def _known(given: Any, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} are names with values, not {given!r}.")
    names = {item.name for item in dataclasses.fields(kind)}
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise UsageError(f"unknown key '{where}.{unknown}'. {suggest(str(unknown), names)}")
    return dict(given)


def _check_logger(logger: Any) -> None:
    if isinstance(logger, str):
        if logger not in BUILT_IN:
            raise UsageError(
                f"tracking.loggers: there is no logger {logger!r}. {suggest(logger, BUILT_IN)} "
                "Any other one of pytorch_lightning has a class_path."
            )
        return
    if isinstance(logger, Mapping):
        refuse_other_lightning([str(logger.get("class_path"))])
    elif not hasattr(logger, "log_metrics"):
        raise UsageError(
            f"tracking.loggers holds names ({', '.join(BUILT_IN)}), class paths or loggers of "
            f"pytorch_lightning, not {logger!r}."
        )


def refuse_other_lightning(paths: Iterable[str]) -> None:
    """Raise UsageError where one of the class paths is of the package ``lightning``."""
    for path in paths:
        if path.startswith(_OTHER_LIGHTNING):
            raise UsageError(
                f"tracking.loggers: {path} cannot be used: kdcache trains with pytorch_lightning, "
                "whose Trainer does not know the classes of the package lightning. Write "
                f"pytorch_lightning.loggers.{path.rsplit('.', 1)[-1]}."
            )
