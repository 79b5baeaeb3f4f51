"""TensorBoard's event files in a run's folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from kdcache.errors import UsageError

TENSORBOARD_FOLDER = "tensorboard"


class EventFiles(TensorBoardLogger):
    """Writes to ``tensorboard`` in a run's folder; Lightning's own leaves hyper-parameters out.

    Args:
        folder: of the run.
        before_step: where a run goes on, TensorBoard forgets what was logged from this step on.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, before_step: int = 0) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise UsageError(
                "tracking.loggers has tensorboard, which is not installed. Nothing was trained. "
                "Install it with: pip install 'kdcache[tensorboard]'"
            )
        resumed: dict[str, Any] = {"purge_step": before_step} if before_step else {}
        super().__init__(
            folder, name=TENSORBOARD_FOLDER, version="", default_hp_metric=False, **resumed
        )

    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write them to ``hparams.yaml`` and, without metrics of their own, to the event file."""
        super().log_hyperparams(params, metrics, step)
        if rank_zero_only.rank or metrics:
            return
        from torch.utils.tensorboard.summary import hparams

        writer = self.experiment._get_file_writer()
        for summary in hparams(dict(params), {}):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
