"""How far a student is from its teacher on a set whose targets are cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdcache.train.pipelines.built_in import BatchSpec, BuiltInPipeline
from kdcache.train.pipelines.passes import KD_LOSS, Metric, Scored, Sums, is_cut, losses_of, serves

TEACHER_KL, AGREEMENT = "teacher_kl", "teacher_agreement"


class TeacherDistance:
    """``teacher_kl``, KL(teacher || student) in nats per position at temperature 1; ``kd_loss``,
    the same at the objective's temperature T times T**2; ``teacher_agreement``, the share of
    positions where both have the same top class.

    Top-k targets know the K kept classes and one bucket of all others: from them both divergences
    are lower bounds of those over all C classes (exact where K = C), which compare students of one
    cache, not caches. A temperature that the targets do not hold is left out.

    Args:
        temperature: T; None: no ``kd_loss``.
    """  # noqa: D205

    def __init__(self, temperature: float | None) -> None:
        self._temperature = temperature
        self._sums = Sums()
        self._is_bound = False

    def add(self, scored: Scored) -> None:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        targets, temperature = scored.targets, self._temperature
        if targets is None:
            return
        self._is_bound |= is_cut(targets)
        same = (scored.top == targets.top_class()).sum()
        self._sums.add(positions=(scored.top >= 0).sum(), same=same)
        at_one = scored.losses.get(KD_LOSS)
        if at_one is not None:
            self._sums.add(kl=at_one.sum.double())
        if temperature is None or not serves(targets, temperature):
            return
        if temperature == 1.0 and at_one is not None:
            soft = at_one
        else:
            soft = losses_of(scored.output, targets, [KD_LOSS], temperature)[KD_LOSS]
        self._sums.add(kd_loss=soft.sum.double())

    def results(self) -> dict[str, float]:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        sums = self._sums.read()
        names = {TEACHER_KL: "kl", KD_LOSS: KD_LOSS, AGREEMENT: "same"}
        if not sums.get("positions"):
            return {}
        return {name: sums[key] / sums["positions"] for name, key in names.items() if key in sums}

    @property
    def lower_bounds(self) -> frozenset[str]:
        """See :class:`kdcache.train.pipelines.passes.Metric`."""
        return frozenset({TEACHER_KL, KD_LOSS} if self._is_bound else ())


class DistancePipeline(BuiltInPipeline):
    """The distance alone, for a set that the user's own pipeline scores."""

    def __init__(self, batch: BatchSpec = None, *, temperature: float | None = None) -> None:
        super().__init__(batch, temperature)

    def metrics(self) -> Sequence[Metric]:
        """See :class:`BuiltInPipeline`."""
        return [TeacherDistance(self.temperature)]

    def result(self, results: Mapping[str, float], label_problem: str) -> float:  # noqa: ARG002
        """The agreement."""
        return results.get(AGREEMENT, 0.0)
