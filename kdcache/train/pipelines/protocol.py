"""What a pipeline is: any object with ``run_inference_pipeline(model, data_loader)``.

It returns a dict of numbers with "inference_result" among them, larger being better unless the
object has ``mode = "min"``. It is called without gradients, with the student in eval mode, once
for each validation of its set, and gets the student and the loader as the user made them.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdcache.errors import UsageError

RESULT = "inference_result"


def check_pipeline(pipeline: Any, name: str) -> None:
    """Raise UsageError for an object that is no pipeline, before anything is trained."""
    if not callable(getattr(pipeline, "run_inference_pipeline", None)):
        raise UsageError(
            f"the pipeline of {name!r}, {type(pipeline).__name__}, has no method "
            "run_inference_pipeline(model, data_loader)."
        )
    mode = getattr(pipeline, "mode", "max")
    if mode not in ("max", "min"):
        raise UsageError(
            f"the pipeline of {name!r} has the mode {mode!r}; it is 'max' where a larger {RESULT} "
            "is better, 'min' where a smaller one is."
        )


def run_pipeline(pipeline: Any, name: str, model: nn.Module, loader: Any) -> dict[str, float]:
    """Run any pipeline; UsageError unless it returned a dict of numbers with a result."""
    results = pipeline.run_inference_pipeline(model, loader)
    who = f"the pipeline of {name!r}, {type(pipeline).__name__},"
    if not isinstance(results, Mapping) or RESULT not in results:
        raise UsageError(
            f"{who} returned {results!r:.200}. It should return a dict with a number under "
            f"{RESULT!r}."
        )
    found = {}
    for key, value in results.items():
        plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
            raise UsageError(
                f"{who} returned {type(value).__name__} under {key!r}. Everything that it returns "
                "is logged, so it should be one number."
            )
        found[str(key)] = float(plain)
    return found
