"""Comet as a Lightning logger: one experiment a run, on rank 0.

Lightning's own cannot log offline (its ``online=False`` makes an experiment that is disabled), and
leaves the end of an experiment to the end of the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from kdcache.errors import UsageError
from kdcache.paths import local_path
from kdcache.tracking.comet.experiment import (
    COMET_FOLDER,
    archive_of,
    close_experiment,
    log_code,
    open_experiment,
)
from kdcache.tracking.comet.info_file import CometAccount, read_info
from kdcache.tracking.settings import CometSettings
from kdcache.tracking.source_code import EXPERIMENT_FILE, source_files


class CometLogger(Logger):
    """Logs to Comet, or to an archive that ``comet upload`` sends there.

    The experiment goes on from its first use until :meth:`end`: ``finalize``, which Lightning
    calls after every fit and every validation, only lets it.

    Args:
        folder: of the run; an archive goes to ``comet`` in it.
        settings: which experiment.
        name: of the experiment.

    Raises:
        UsageError: the info file is not as it should be.
    """

    def __init__(self, folder: Path, settings: CometSettings, *, name: str | None = None) -> None:
        super().__init__()
        account = (
            CometAccount()
            if settings.info is None
            else read_info(local_path(settings.info, "tracking.comet.info"))
        )
        self._account = CometAccount(
            api_key=account.api_key,
            project=settings.project or account.project,
            workspace=settings.workspace or account.workspace,
        )
        self._folder = folder / COMET_FOLDER
        self._run = folder
        self._code: set[str] = set()
        self._online = settings.online
        self._name = name
        self._experiment: Any = None
        self._key: str | None = None
        self._is_used = False

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> Any:
        """comet_ml's experiment, started on first use.

        Raises:
            UsageError: it cannot be started, or has ended.
        """
        if self._experiment is None:
            if self._key is not None:
                raise UsageError(f"the Comet experiment {self._key} has ended; make a new logger.")
            self._experiment = open_experiment(
                self._folder, self._account, name=self._name, online=self._online
            )
            self._key = self._experiment.get_key()
        return self._experiment

    @property
    def name(self) -> str | None:
        """The project, as with Lightning's own."""
        return self._account.project

    @property
    def version(self) -> str | None:
        """The experiment's key, once it is started."""
        return self._key

    @property
    def archive(self) -> Path | None:
        """Where an offline experiment's archive will be; None if online, or not yet started."""
        return None if self._experiment is None else archive_of(self._experiment)

    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Log numbers of one step."""
        if rank_zero_only.rank:
            return
        values = {name: float(value) for name, value in metrics.items()}
        epoch = values.pop("epoch", None)
        self._is_used = True
        self.experiment.log_metrics(values, step=step, epoch=None if epoch is None else int(epoch))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Log flat hyper-parameters, and the code of the class paths among them.

        And of those in the experiment file, which is kept beside it.
        """
        if rank_zero_only.rank:
            return
        self.experiment.log_parameters(dict(params))
        said = self._run / EXPERIMENT_FILE
        files = {said.name: said} if said.is_file() else {}
        texts = [path.read_text(encoding="utf-8") for path in files.values()]
        files |= source_files([*texts, *map(str, params), *map(str, params.values())])
        log_code(self.experiment, {k: v for k, v in files.items() if k not in self._code})
        self._code |= files.keys()

    def log_histogram(self, name: str, values: Tensor, *, step: int, epoch: int) -> None:
        """Log the distribution of the numbers of a tensor; on rank 0 only."""
        numbers = values.detach().float().cpu().numpy()
        self.experiment.log_histogram_3d(numbers, name=name, step=step, epoch=epoch)

    def end(self, failure: BaseException | None = None) -> None:
        """End the experiment: all of it is uploaded or in the archive when this returns.

        An archive in which nothing was measured is removed.

        Args:
            failure: what ended the training; told in the experiment as ``failure``.
        """
        if self._experiment is None:
            return
        if failure is not None:
            self._experiment.log_other("failure", f"{type(failure).__name__}: {failure}")
        experiment, self._experiment = self._experiment, None
        close_experiment(experiment, keep=self._is_used)
