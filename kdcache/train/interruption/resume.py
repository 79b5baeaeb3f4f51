"""Going on with a training from a checkpoint of a run.

Between epochs, and within one where kdcache orders the samples
(:mod:`kdcache.data.samples.order`), an interrupted and resumed training ends with the weights of
an uninterrupted one. Where another sampler or a stream decides what comes next, or other ranks
share it, the current epoch is begun again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdcache.errors import DataError, MismatchError, UsageError
from kdcache.train.results.output import CHECKPOINTS_FOLDER, LAST_CHECKPOINT
from kdcache.train.results.record import RECORD_FILE, plain
from kdcache.weights import read_plain

log = logging.getLogger(__name__)

RECORD = "kdcache"
"""Where a checkpoint holds what the run was: plain values."""

_MUST_AGREE = (
    *("digest", "losses", "temperature", "reduction", "head"),
    *("student", "num_parameters", "num_trainable", "dataset", "batch_size"),
)


PLATEAU_RESUMED = (
    "ReduceLROnPlateau is gone on with, and checkpoints are written before it has seen its epoch's "
    "score: it does not see that one, nor the first one from here on, and may lower the learning "
    "rate later than in an uninterrupted training"
)

_NEEDED = ("state_dict", "optimizer_states", "lr_schedulers", "loops")
"""What Lightning goes on from; a checkpoint of weights alone lacks some."""

_WAY_OUT = (
    "Such objects come from a callback's own state, or a module's: let it keep plain values. Where "
    "you trust the file, name the class in torch.serialization.add_safe_globals before the "
    "training; or start a new run with the weights alone (student.weights)."
)


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """A checkpoint to go on from.

    Attributes:
        checkpoint: the file.
        step: optimiser steps that it has.
        record: of the run that wrote it.
    """

    checkpoint: Path
    step: int
    record: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path) -> Resumption:
        """Read a checkpoint, or the last one of a run's folder; nothing in it can run code.

        Raises:
            UsageError: there is none, or it is not one of a student run.
        """
        file = path / CHECKPOINTS_FOLDER / LAST_CHECKPOINT if path.is_dir() else path
        if not file.is_file():
            raise UsageError(
                f"there is no checkpoint {file} to resume from. Give one of a run's checkpoints, "
                "or the run's folder."
            )
        try:
            # Mapped: the record and the step are wanted here, not gigabytes of weights.
            content = read_plain(file, _WAY_OUT, mmap=True)
            record, step = dict(content[RECORD]), int(content["global_step"])
            _ = [content[name] for name in _NEEDED]
        except DataError as error:
            raise UsageError(f"nothing can be resumed from {error}") from None
        except Exception as error:  # whatever is missing in a file of something else
            text = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{file} is no checkpoint of a student run, so nothing can be resumed from it "
                f"({type(error).__name__}: {text}). Weights alone begin a new run: student.weights."
            ) from error
        return cls(checkpoint=file, step=step, record=record)

    @property
    def folder(self) -> Path | None:
        """The run's own folder, where it has not ended and so goes on."""
        folder = self.checkpoint.parent
        is_run = folder.name == CHECKPOINTS_FOLDER and not (folder.parent / RECORD_FILE).exists()
        return folder.parent if is_run else None

    def own_folder(self, output: Path | None) -> Path | None:
        """That folder, where it is to go on there: no other output was asked for."""
        folder = self.folder
        is_meant = folder is not None and (output is None or output.resolve() == folder.resolve())
        return folder if is_meant else None

    def check(self, record: Mapping[str, Any]) -> None:
        """Hold the run that wrote the checkpoint against the one that goes on.

        Raises:
            MismatchError: they differ, field by field.
        """
        now = plain(record)
        differing = [
            name
            for name in _MUST_AGREE
            if name in self.record and self.record[name] != now.get(name)
        ]
        if differing:
            lines = [
                f"  {name:<15} checkpoint {self.record[name]!r}   this run {now.get(name)!r}"
                for name in differing
            ]
            raise MismatchError(
                f"cannot resume from {self.checkpoint}: {len(differing)} of {len(_MUST_AGREE)} "
                "fields differ.\n" + "\n".join(lines) + "\nNothing was trained. Restore these "
                "settings to resume, or start a new run from its weights (student.weights)."
            )


def check_same(name: str, before: object, now: object) -> None:
    """Hold the optimiser, or its schedule, of a checkpoint against this run's.

    Their state, the learning rate included, is the checkpoint's: another setting would be ignored.

    Raises:
        MismatchError: they differ.
    """
    if before is not None and plain(before) != plain(now):
        raise MismatchError(
            f"cannot resume with another {name}: its state, and so its settings, are the "
            f"checkpoint's.\n  checkpoint {before}\n  this run   {now}\nNothing was trained. "
            "Restore it to resume, or start a new run from the weights (student.weights)."
        )


class StepParts(NamedTuple):
    """What an optimiser step is made of.

    Attributes:
        batches: micro-batches on each rank.
        ranks: that share it.
    """

    batches: int
    ranks: int


def align(
    loops: dict[str, Any],
    parts: StepParts,
    *,
    before: Mapping[str, Any] | None,
    is_ordered: bool,
) -> None:
    """Change Lightning's progress so that training goes on where it can.

    Args:
        loops: of a checkpoint, ``checkpoint["loops"]["fit_loop"]``; changed in place.
        parts: of a step from here on.
        before: of a step of the training that wrote the checkpoint, where it says so.
        is_ordered: whether kdcache orders the samples.
    """
    try:
        earlier = parts if before is None else StepParts(**before)
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        current = batches["current"]
        # Lightning counts an epoch as started before its first batch, and as processed at its end.
        is_within = epochs["current"]["processed"] < epochs["current"]["started"]
        is_within = is_within and not batches["is_last_batch"]
        if not is_within:
            if earlier != parts:
                log.warning("from here on steps are of another size: %s", _change(earlier, parts))
            return
        if not is_ordered:
            reason = "Which samples were left only its sampler or stream knows"
        elif earlier != parts:
            reason = f"Its {_change(earlier, parts)}"
        else:
            reason = ""
        if reason:
            _from_epoch_start(batches, epochs, reason)
            return
        # A checkpoint holds no gradients: the micro-batches of a step that was not made are
        # gone through again.
        extra = current["processed"] % parts.batches
        if extra:
            log.warning(
                "the checkpoint is from within a step, whose gradients it does not hold: %d of its "
                "micro-batches are gone through again. Dropout draws other numbers for them and a "
                "batch norm counts them twice, so a student with these ends a little elsewhere "
                "than an uninterrupted one.",
                extra,
            )
        for progress in (batches["current"], batches["total"]):
            for name in ("ready", "started", "processed", "completed"):
                progress[name] -= extra
    except (KeyError, TypeError) as error:
        raise DataError(
            f"the checkpoint's progress cannot be read ({error!r}); another version of Lightning "
            "wrote it."
        ) from error


def _change(before: StepParts, now: StepParts) -> str:
    return (
        f"steps were of {before.batches} batches on each of {before.ranks} ranks, those of this "
        f"run are of {now.batches} on each of {now.ranks}"
    )


def _from_epoch_start(batches: dict[str, Any], epochs: dict[str, Any], reason: str) -> None:
    log.warning(
        "the checkpoint is from within epoch %d (from 0), after %d batches. %s: the epoch is begun "
        "again, with the weights as they are.",
        epochs["current"]["processed"],
        batches["current"]["processed"],
        reason,
    )
    done = batches["total"]["processed"]
    batches["total"].update(ready=done, started=done, processed=done, completed=done)
    batches["current"].update(ready=0, started=0, processed=0, completed=0)
    for progress in (epochs["current"], epochs["total"]):
        ended = progress["processed"]
        progress.update(ready=ended, started=ended, processed=ended, completed=ended)
