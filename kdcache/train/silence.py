"""What Lightning says to everybody, kept from a run that has its own summary."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric.utilities.rank_zero import rank_zero_module

# Lightning's advice on settings that the user chose, or that our loaders make on purpose.
_ADVICE = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*isinstance.*LeafSpec.*",
    ".*The dirpath has changed from.*",
    ".*AMP with fp16 is not supported on CPU.*",  # said by us
    ".*You requested to overfit but enabled train dataloader shuffling.*",
)

# What Lightning tells everybody, whatever is trained: products, hardware, that it has ended.
_BANNERS = (
    "\N{ELECTRIC LIGHT BULB} Tip:",
    "GPU available:",
    "TPU available:",
    "HPU available:",
    "LOCAL_RANK:",
    "Using bfloat16 Automatic",
    "Using 16bit Automatic",
    "`Trainer.fit` stopped:",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice and banners; what callbacks and loggers say is heard."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_BANNERS)

    loggers = [rank_zero_module.log, logging.getLogger("pytorch_lightning.accelerators.cuda")]
    with warnings.catch_warnings():
        for text in _ADVICE:
            warnings.filterwarnings("ignore", message=text)
        for logger in loggers:
            logger.addFilter(is_news)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(is_news)
