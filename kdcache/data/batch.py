"""Which leaves of a user's batch are model inputs, labels and mask: one mapping for both stages.

Nothing here knows about targets. A mapping is resolved against a real batch once, so that what
was inferred can be written down (the manifest holds it) and compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from kdcache.data.conventions import check_not_own_tokens, find_parts, tokens_of
from kdcache.data.leaves import Path, leaf
from kdcache.data.masks import (
    PREDICTED,
    MaskSource,
    batch_mask,
    describe_source,
    is_mask_source,
    output_paths,
    shifted_labels,
    with_ignored,
)
from kdcache.errors import UsageError
from kdcache.losses.labels import IGNORE_INDEX

_INPUTS = "batch.inputs"


@dataclass(frozen=True, kw_only=True, eq=False)
class Selected:
    """What a mapping found in a batch.

    Attributes:
        args: positional model inputs.
        kwargs: model inputs by name.
        labels: (B, ...) class numbers, one for each position of the logits, or None.
        mask: (B, ...) nonzero where a position counts, or None.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    labels: Tensor | None = None
    mask: Tensor | None = None

    def call(self, model: Callable[..., Any]) -> Any:
        """``model(*args, **kwargs)``."""
        return model(*self.args, **self.kwargs)

    def num_rows(self) -> int | None:
        """Rows of the first tensor among the model inputs; None where there is none."""
        return _num_rows((*self.args, *self.kwargs.values()))


def _num_rows(values: Iterable[Any]) -> int | None:
    for value in values:
        if isinstance(value, Tensor) and value.dim():
            return len(value)
        inner = value.values() if isinstance(value, Mapping) else value
        found = _num_rows(inner) if isinstance(value, Mapping | list | tuple) else None
        if found is not None:
            return found
    return None


@dataclass(frozen=True, kw_only=True)
class BatchMapping:
    """Where inputs, labels and mask are in a batch.

    Attributes:
        inputs: paths of positional inputs, or name -> path for inputs by name; ``"all"`` gives
            the model every element of the batch (``model(*batch)``); None: inferred from the
            first batch, which may be (x, y), (x,), x, or a mapping with Hugging Face names.
        labels: path of the class labels; inferred together with the inputs.
        mask: which positions count: one source, or several that all have to agree; see
            :data:`kdcache.data.masks.MaskSource` (a path, ``labelled``, ``predicted:<path>``,
            ``function:<class path>``, ``output:<path>``). An ``attention_mask`` among inferred
            inputs is one where it has the shape of the model's positions; with ``causal`` always.
        causal: logits at position t predict token t + 1: labels, mask and segments, which are of
            tokens, move to the positions that predict them. A position counts where its own token
            and the next are real (of one segment, where there are segments); the last predicts
            nothing. None: not so; but labels that repeat the input ids are refused.
        segments: path of the numbers of packed sequences, (B, L); with ``causal`` only.
        class_dim: the class axis of the logits; 1 for (B, C, H, W).
        num_classes: logits beyond this many classes are cut off, before any softmax: a vocabulary
            that was padded to a round number. None: all of them are classes.
    """

    inputs: tuple[Path, ...] | Mapping[str, Path] | Literal["all"] | None = None
    labels: Path | None = None
    mask: MaskSource | tuple[MaskSource, ...] | None = None
    causal: bool | None = None
    segments: Path | None = None
    class_dim: int = -1
    num_classes: int | None = None
    ignore_index: int | None = None
    mask_inferred: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        inputs: Any = self.inputs
        mask: Any = self.mask
        # Sequences of any class, such as OmegaConf's, which are neither list nor tuple.
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            object.__setattr__(self, "inputs", tuple(inputs))
        if isinstance(mask, Sequence) and not isinstance(mask, str):
            object.__setattr__(self, "mask", tuple(mask))
        paths = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
        if inputs is None or inputs == "all":
            paths = ()
        if not isinstance(paths, tuple | list) or not all(map(_is_path, paths)):
            one = f" For one input write [{inputs}]." if isinstance(inputs, str | int) else ""
            raise UsageError(
                f"batch.inputs is a list of paths, a mapping name -> path, or 'all', not "
                f"{inputs!r}.{one}"
            )
        for name in ("labels", "segments"):
            path = getattr(self, name)
            if path is not None and not _is_path(path):
                raise UsageError(f"batch.{name} is one path, such as 1 or 'label', not {path!r}.")
        self._check_masks()
        if type(self.class_dim) is not int or self.class_dim == 0:
            raise UsageError(
                f"batch.class_dim is the class axis, such as -1 or 1, not {self.class_dim!r}."
            )
        check_num_classes(self.num_classes)
        if self.ignore_index is not None and type(self.ignore_index) is not int:
            raise UsageError(
                f"batch.ignore_index is the label that marks none, such as 255, not "
                f"{self.ignore_index!r}."
            )

    def _check_masks(self) -> None:
        if not _is_flag(self.causal):
            raise UsageError(f"batch.causal is true or false, not {self.causal!r}.")
        if not all(map(is_mask_source, self.masks)) or self.mask == ():
            raise UsageError(
                f"batch.mask is one path, 'labelled', 'predicted:<path>', 'function:<class path>', "
                f"'output:<path>', or a list of these, not {self.mask!r}."
            )
        needs = [s for s in self.masks if isinstance(s, str) and s.startswith(PREDICTED)]
        if self.segments is not None:
            needs.append(f"batch.segments {self.segments!r}")
        if needs and not self.causal:
            raise UsageError(
                f"{needs[0]} is of tokens that a causal model predicts. Set batch.causal: true."
            )

    @property
    def masks(self) -> tuple[MaskSource, ...]:
        """Where the mask comes from; empty where every position counts."""
        if self.mask is None:
            return ()
        return self.mask if isinstance(self.mask, tuple) else (self.mask,)

    @property
    def output_masks(self) -> tuple[str, ...]:
        """Paths of masks in the model's output, where any is asked for."""
        return output_paths(self.masks)

    def resolve(self, batch: Any) -> BatchMapping:
        """The same mapping with inferred parts filled in from a batch.

        Raises:
            DataError: the inputs cannot be told from the batch's structure; or labels repeat the
                input ids, and ``causal`` is not said.
        """
        mapping = self if self.inputs is not None else self._inferred(batch)
        if mapping.causal is not None or mapping.labels is None:
            return mapping
        labels = leaf(batch, mapping.labels, "batch.labels")
        inputs = [leaf(batch, path, _INPUTS) for path in mapping.input_paths() or ()]
        is_told = [check_not_own_tokens(labels, value) for value in inputs]
        return dataclasses.replace(mapping, causal=False) if all(is_told) else mapping

    def _inferred(self, batch: Any) -> BatchMapping:
        found = find_parts(batch)
        is_inferred = self.mask is None and found.mask is not None
        return dataclasses.replace(
            self,
            inputs=found.inputs,
            labels=self.labels if self.labels is not None else found.labels,
            mask=found.mask if is_inferred else self.mask,
            mask_inferred=is_inferred and not self.causal,  # of tokens for certain
        )

    def fit_to(
        self, shape: Sequence[int], selected: Selected
    ) -> tuple[BatchMapping, Tensor | None]:
        """The mapping without an inferred mask that has another shape than the positions.

        Args:
            shape: of the model's positions, (B, ...).
            selected: of the same batch.

        Returns:
            The mapping for all later batches, and the mask of this one.
        """
        if not self.mask_inferred or selected.mask is None:
            return self, selected.mask
        fits = selected.mask.shape == tuple(shape)
        kept = dataclasses.replace(self, mask=self.mask if fits else None, mask_inferred=False)
        return kept, selected.mask if fits else None

    def select(self, batch: Any) -> Selected:
        """Inputs, and the labels and mask of positions, of one batch (of a resolved mapping).

        Raises:
            DataError: a path leads nowhere; labels, masks or segments of the wrong kind.
        """
        args, kwargs = self._inputs(batch)
        labels = None if self.labels is None else leaf(batch, self.labels, "batch.labels")
        if self.ignore_index is not None:
            labels = with_ignored(labels, self.ignore_index)
        if self.causal and labels is not None:
            labels = shifted_labels(labels)
        segments = None if self.segments is None else leaf(batch, self.segments, "batch.segments")
        ids, real = tokens_of(args, kwargs)
        mask = batch_mask(
            self.masks,
            batch,
            labels,
            causal=bool(self.causal),
            real=real,
            segments=segments,
            like=ids,
        )
        return Selected(args=args, kwargs=kwargs, labels=labels, mask=mask)

    def _inputs(self, batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if self.inputs == "all" and isinstance(batch, Mapping):
            return (), dict(batch)
        if self.inputs == "all":
            return tuple(batch) if isinstance(batch, tuple | list) else (batch,), {}
        if isinstance(self.inputs, Mapping):
            return (), {name: leaf(batch, path, _INPUTS) for name, path in self.inputs.items()}
        paths = self.inputs or ()
        return tuple(leaf(batch, path, _INPUTS) for path in paths) if paths else (batch,), {}

    def input_paths(self) -> tuple[Path, ...] | None:
        """Paths of the model inputs, and of segments; None where the whole sample is the input."""
        inputs = tuple(self.inputs.values()) if isinstance(self.inputs, Mapping) else self.inputs
        if not isinstance(inputs, tuple) or not inputs:
            return None
        extra = () if self.segments is None or self.segments in inputs else (self.segments,)
        return inputs + extra

    def describe(self) -> str:
        """Stable text for the manifest; what was not asked for is not mentioned."""
        inputs = self.inputs
        shown = dict(inputs) if isinstance(inputs, Mapping) else inputs
        mask = " & ".join(map(describe_source, self.masks)) or None
        text = f"inputs={shown} labels={self.labels} mask={mask} class_dim={self.class_dim}"
        for name in ("causal", "segments", "num_classes"):
            if getattr(self, name):
                text += f" {name}={getattr(self, name)}"
        if self.ignore_index not in (None, IGNORE_INDEX):
            text += f" ignore_index={self.ignore_index}"
        return text


@dataclass(frozen=True)
class CallableMapping:
    """A user's function from batch to :class:`Selected`, where paths do not suffice.

    Attributes:
        function: called with the batch.
        class_dim: the class axis of the logits.
        num_classes: logits beyond this many classes are cut off; None: all are classes.
    """

    function: Callable[[Any], Selected]
    class_dim: int = -1
    num_classes: int | None = None
    mask_inferred: ClassVar[bool] = False
    output_masks: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)

    def resolve(self, batch: Any) -> CallableMapping:  # noqa: ARG002
        """Nothing to infer."""
        return self

    def fit_to(
        self,
        shape: Sequence[int],  # noqa: ARG002
        selected: Selected,
    ) -> tuple[CallableMapping, Tensor | None]:
        """Nothing was inferred."""
        return self, selected.mask

    def select(self, batch: Any) -> Selected:
        """What the user's function says."""
        selected = self.function(batch)
        if not isinstance(selected, Selected):
            raise UsageError(f"{self.describe()} returned {type(selected).__name__}, not Selected.")
        return selected

    def input_paths(self) -> None:
        """Unknown: the whole sample is fingerprinted."""

    def describe(self) -> str:
        """Stable text for the manifest."""
        function = self.function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        cut = f" num_classes={self.num_classes}" if self.num_classes else ""
        return f"{function.__module__}.{name} class_dim={self.class_dim}{cut}"


Mapped = BatchMapping | CallableMapping


def _is_path(path: object) -> bool:
    return isinstance(path, int | str) and not isinstance(path, bool)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def check_num_classes(num_classes: int | None) -> None:
    """Raise UsageError unless it is None or a number of classes."""
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise UsageError(
            f"batch.num_classes is the number of classes that count, 2 or more, not "
            f"{num_classes!r}."
        )
