"""What a batch mapping finds in a batch, and the mapping that is a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from kdcache.errors import UsageError
from kdcache.outputs import OutputKind


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


@dataclass(frozen=True)
class CallableMapping:
    """A user's function from batch to :class:`Selected`, where paths do not suffice.

    Attributes:
        function: called with the batch.
        class_dim: the class axis of the logits.
        num_classes: logits beyond this many classes are cut off; None: all are classes.
        output: what the model returns; see :class:`kdcache.data.batch.mapping.BatchMapping`.
    """

    function: Callable[[Any], Selected]
    class_dim: int = -1
    num_classes: int | None = None
    output: OutputKind = "logits"
    mask_inferred: ClassVar[bool] = False
    output_masks: ClassVar[tuple[str, ...]] = ()
    note: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        check_output_kind(self.output)

    def bound(self, model: Any) -> CallableMapping:  # noqa: ARG002
        """Nothing to ask a model for."""
        return self

    def for_joining(self) -> CallableMapping:
        """Nothing to infer."""
        return self

    def as_described(self, text: str) -> CallableMapping:  # noqa: ARG002
        """Nothing to infer."""
        return self

    def resolve(self, batch: Any) -> CallableMapping:  # noqa: ARG002
        """Nothing to infer."""
        return self

    def check_shift(self, batch: Any) -> None:
        """Nothing is moved here."""

    def with_decoder_inputs(self, selected: Selected) -> Selected:
        """As the function gave them."""
        return selected

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
        kind = f" output={self.output}" if self.output != "logits" else ""
        return f"{function.__module__}.{name} class_dim={self.class_dim}{cut}{kind}"


def check_output_kind(output: object) -> None:
    """Raise UsageError unless it says what a model returns."""
    if output not in ("logits", "probabilities"):
        raise UsageError(f"batch.output is 'logits' or 'probabilities', not {output!r}.")


def check_num_classes(num_classes: int | None) -> None:
    """Raise UsageError unless it is None or a number of classes."""
    if num_classes is not None and (type(num_classes) is not int or num_classes < 2):
        raise UsageError(
            f"batch.num_classes is the number of classes that count, 2 or more, not "
            f"{num_classes!r}."
        )
