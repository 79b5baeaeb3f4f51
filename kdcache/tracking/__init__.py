"""Where a run's numbers go: a CSV file, TensorBoard, Comet, or a Lightning logger of your own.

``settings`` is what the user says, ``loggers`` makes them: ``metrics_file``, ``tensorboard``,
comet/. ``callbacks`` log what the training itself does not; ``hyperparameters``, ``code_version``
and ``source_code`` are what a run says of itself. Importing this costs nothing: Lightning,
TensorBoard and comet_ml are imported by the modules that need them, and comet_ml only when a Comet
experiment starts.
"""

from kdcache.tracking.settings import BUILT_IN, CometSettings, Tracking

__all__ = ["BUILT_IN", "CometSettings", "Tracking"]
