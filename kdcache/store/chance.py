"""Whether a teacher can be told from one that knows nothing, by the sums that a cache records.

Pure arithmetic on counts: nothing is read and nothing heavy imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

# Three standard errors: one honest teacher in a thousand that guesses would look better.
_SIGMAS = 3.0
# With fewer labels guessing may reach half of what can be gained over it, and tells nothing.
_MAX_LUCK = 0.25
# Of many classes an honest teacher may know a few per cent, and be wrong on a few labels in a row.
_LEAST_LABELS = 200
# An untrained head gives logits that differ by a few tenths: its entropy is 0.98 log C and more.
_FLAT = 0.98
# Below so many classes honest teachers of noisy data are nearly as flat: then they are as often
# right as they think. Where one class has most labels, one that knows nothing is right more often.
_MANY_CLASSES = 10
_SLACK = 0.02
_NOTHING = 0.999

REASONS = (
    "The usual reasons: its weights were not loaded (teacher.weights), labels in another order "
    "than its classes, inputs that are not prepared as in its training (normalisation, "
    "batch.class_dim), statistics of batch norm that were never trained"
)


def chance_remark(
    statistics: Iterable[Mapping[str, float]], num_classes: int, split: str
) -> str | None:
    """What to say of a teacher that is no better than guessing; None where it is, or nothing tells.

    Args:
        statistics: of every shard: sums called ``positions``, ``entropy``, ``labelled`` and
            ``correct``, where they are known.
        num_classes: C.
        split: its name.
    """
    sums: dict[str, float] = {}
    for shard in statistics:
        for name, value in shard.items():
            sums[name] = sums.get(name, 0.0) + value
    if num_classes < 2 or sums.get("entropy_unknown"):
        return None
    labelled, positions = sums.get("labelled", 0.0), sums.get("positions", 0.0)
    guessed = 1 / num_classes
    luck = _SIGMAS * math.sqrt(guessed * (1 - guessed) / labelled) if labelled else math.inf
    tells = labelled >= _LEAST_LABELS and luck <= _MAX_LUCK * (1 - guessed)
    accuracy = sums.get("correct", math.nan) / labelled if tells else math.nan
    if tells and accuracy <= guessed + luck:
        than = "less than" if accuracy < guessed - luck else "as good as"
        return (
            f"the teacher is right on {accuracy:.2%} of {labelled:,.0f} labels of {split!r}, "
            f"{than} guessing among {num_classes:,} classes ({guessed:.2%}). {REASONS}. "
            "Students learn what it says all the same."
        )
    most = math.log(num_classes)
    entropy = sums["entropy"] / positions if positions and "entropy" in sums else 0.0
    is_excused = tells and num_classes < _MANY_CLASSES and entropy < _NOTHING * most
    is_excused &= entropy <= _most_entropy(accuracy, num_classes) + _SLACK * most
    if entropy >= _FLAT * most and not is_excused:
        return (
            f"the teacher says almost nothing of {split!r}: its entropy is {entropy:.4g} nats, "
            f"that of guessing among {num_classes:,} classes {most:.4g}. {REASONS}; or it returns "
            "something else than logits."
        )
    return None


def _most_entropy(accuracy: float, num_classes: int) -> float:
    """The entropy, in nats, of the flattest teacher that is as often right as it thinks it is."""
    wrong = 1 - accuracy
    spread = wrong / (num_classes - 1)
    return -sum(p * math.log(p) * n for p, n in ((accuracy, 1), (spread, num_classes - 1)) if p > 0)
