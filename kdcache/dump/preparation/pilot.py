"""What a codec costs on a few samples, measured before the first shard is written.

The numbers stand in the manifest; ``verify`` holds every shard's against them, so a codec that
was fitted to other samples than it meets, or a shard of other data, is seen without a teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from kdcache.codecs import Codec
from kdcache.data.batch.forward import FlatOutput
from kdcache.dump.measurements.statistics import NAMES, as_mapping, batch_statistics
from kdcache.dump.shards.encoding import draws_of


@torch.inference_mode()
def measure_pilot(codec: Codec, outputs: Iterable[FlatOutput]) -> dict[str, float]:
    """Fidelity and entropy of some samples, as they would be stored.

    Args:
        codec: fitted, where it is of that kind.
        outputs: what the teacher said of the samples, batch by batch; logits float32.

    Returns:
        ``samples`` and ``positions`` that were measured; where there are positions, their mean
        ``entropy`` in nats and its standard deviation over positions, ``entropy_deviation``;
        ``divergence``, the mean KL(teacher || stored target) in nats as
        :func:`kdcache.dump.measurements.fidelity.fidelity` defines it, ``divergence_deviation`` and
        ``kept_mass``, unless the codec is a user's own kind; ``accuracy`` and ``cross_entropy``
        of the teacher where positions are labelled.

    Raises:
        DataError: the codec cannot hold a value.
    """
    total = torch.zeros(len(NAMES), dtype=torch.float64)
    num_samples = 0
    for output in outputs:
        counts, num_rows = output.num_positions, len(output.logits)
        numbers = torch.arange(num_samples, num_samples + len(counts))
        columns = codec.encode(output.logits, draws_of(numbers, counts, num_rows))
        targets = codec.decode(columns, counts, output.logits.shape[-1])
        total += batch_statistics(output.logits, output.labels, targets).cpu()
        num_samples += len(counts)
    sums = as_mapping(total)
    found = {"samples": float(num_samples), "positions": sums["positions"]}
    for name, count in (("entropy", "positions"), ("divergence", "compared")):
        if sums[count]:
            mean = sums[name] / sums[count]
            variance = sums[f"{name}_squared"] / sums[count] - mean**2
            found |= {name: mean, f"{name}_deviation": math.sqrt(max(0.0, variance))}
    if sums["compared"]:
        found["kept_mass"] = sums["kept_mass"] / sums["compared"]
    if sums["labelled"]:
        found["accuracy"] = sums["correct"] / sums["labelled"]
        found["cross_entropy"] = sums["cross_entropy"] / sums["labelled"]
    return found
