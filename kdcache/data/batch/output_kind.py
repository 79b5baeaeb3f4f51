"""Whether a model returns what its batch mapping says: raw logits, unless told otherwise.

Soft targets of probabilities taken for logits are almost flat, and students learn that. A look at
one batch tells, since nothing else is >= 0 and sums to 1 in every row.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from kdcache.data.batch.forward import FlatOutput
from kdcache.errors import DataError
from kdcache.outputs import OutputKind, are_between_0_and_1, kind_of

log = logging.getLogger(__name__)

OUTPUT = "output"
"""Where a manifest says, among what it was created with, which of these the teacher returns."""

_RAW = ("mse_logits", "cos_embed_loss")


def check_output(output: FlatOutput, side: Literal["teacher", "student"]) -> OutputKind:
    """What a model's rows are, on one batch; waits for their device.

    Args:
        output: of the model's first batch.
        side: whose it is.

    Returns:
        ``logits`` or ``log_probabilities``, which are logits up to a constant a row. Hidden
        states with an output layer are logits.

    Raises:
        DataError: probabilities where logits were expected, or the other way round.
    """
    if not isinstance(output.all_logits, Tensor):
        return "logits"
    is_cut = output.mapping.num_classes is not None
    if output.mapping.output == "probabilities":  # their logarithm was taken
        taken = kind_of(output.logits.exp(), is_cut=is_cut)
        if taken != "probabilities" and output.num_rows:
            raise DataError(
                f"batch.output says that the {side} returns probabilities, but its rows are not "
                "all >= 0 with a sum of 1. Leave batch.output out for a model that returns logits; "
                f"where only one side returns probabilities, say so of it alone: batch: {{{side}: "
                "{...}}."
            )
        return "log_probabilities"
    found = kind_of(output.logits, is_cut=is_cut)
    if found == "probabilities":
        raise DataError(
            f"the {side} returns probabilities: in (nearly) all {output.num_rows:,} rows of its "
            "first batch the classes are >= 0 and sum to 1, or to 100. Taken for logits they would "
            "make targets that are almost flat, or one-hot. Return the logits, before the softmax; "
            "or say batch: {output: probabilities}, which takes the logarithm (of one side alone: "
            f"batch: {{{side}: {{output: probabilities}}}})."
        )
    if are_between_0_and_1(output.logits):
        log.warning(
            "all values that the %s returns for its first batch lie between 0 and 1, as those of a "
            "sigmoid or of rounded probabilities do. Taken for logits they make almost flat "
            "targets: return the values before it",
            side,
        )
    return found


def look_at_student(output: FlatOutput) -> bool:
    """Check a student's first batch, and say which values are its logits, and no labels; True."""
    check_output(output, "student")
    if output.chosen:
        log.info("the student's logits are %s", output.chosen)
    if output.label_problem:
        log.warning("labels are not used in training: %s", output.label_problem)
    return True


def warn_of_constants(losses: Mapping[str, float], created: Mapping[str, str]) -> None:
    """Say where a raw distance is taken to log-probabilities, which have lost a constant a row.

    Args:
        losses: loss name -> coefficient.
        created: of the cache's manifest.
    """
    raw = [name for name in _RAW if losses.get(name)]
    if raw and created.get(OUTPUT) == "log_probabilities":
        log.warning(
            "the teacher of this cache returns log-probabilities: its logits but for a constant a "
            "position, which %s will make the student match too. Divergences such as kd_loss do "
            "not see it; or dump raw logits",
            " and ".join(raw),
        )
