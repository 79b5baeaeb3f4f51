"""Whether a student has the positions that its targets are for."""

from __future__ import annotations

from kdcache.data.batch.forward import FlatOutput
from kdcache.errors import AlignmentError
from kdcache.targets import SoftTargets


def check_positions(output: FlatOutput, targets: SoftTargets) -> None:
    """Raise AlignmentError unless student and teacher have the same positions in each sample.

    On an accelerator only shapes are compared, which needs no wait for it.
    """
    expected, rows = len(targets.num_positions), len(output.num_positions)
    if rows != expected:
        raise AlignmentError(
            f"the student made {rows} rows of a batch of {expected} samples. Return one row of "
            "logits for each sample."
        )
    # On the CPU every sample is compared: two that exchange positions leave the sum as it was.
    on_cpu = output.num_positions.device.type == "cpu"
    same = not on_cpu or bool((output.num_positions == targets.num_positions).all())
    if targets.num_rows() != output.num_rows or not same:
        raise AlignmentError(
            f"the student has {output.num_rows} valid positions in this batch, the teacher had "
            f"{targets.num_rows()}, or the samples share them differently. Use the mask of the "
            "dump (batch.mask), and a student with the teacher's resolution or length."
        )
