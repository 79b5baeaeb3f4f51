"""Which leaves of a user's batch are model inputs, labels and mask: one mapping for both stages.

Nothing here knows about targets. A mapping is resolved against a real batch once, so that what
was inferred can be written down (the manifest holds it) and compared.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from kdcache.data.leaves import Path, describe, leaf
from kdcache.errors import DataError, UsageError, suggest

_MODEL_INPUTS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"}
    | {"pixel_values", "pixel_mask", "input_values", "input_features", "decoder_input_ids"}
)
_LABELS = ("labels", "label", "label_ids")
_MASK = "attention_mask"
_INPUTS = "batch.inputs"


@dataclass(frozen=True, kw_only=True, eq=False)
class Selected:
    """What a mapping found in a batch.

    Attributes:
        args: positional model inputs.
        kwargs: model inputs by name.
        labels: (B, ...) class numbers, or None.
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
        mask: path of the mask over positions; an ``attention_mask`` among inferred inputs is
            one where it has the shape of the model's positions.
        class_dim: the class axis of the logits; 1 for (B, C, H, W).
    """

    inputs: tuple[Path, ...] | Mapping[str, Path] | Literal["all"] | None = None
    labels: Path | None = None
    mask: Path | None = None
    class_dim: int = -1
    mask_inferred: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        inputs: Any = self.inputs
        if isinstance(inputs, list):
            object.__setattr__(self, "inputs", tuple(inputs))
        paths = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
        if inputs is None or inputs == "all":
            paths = ()
        if not isinstance(paths, tuple | list) or not all(map(_is_path, paths)):
            raise UsageError(
                f"batch.inputs is a list of paths, a mapping name -> path, or 'all', not "
                f"{inputs!r}. For one input write [{inputs}]."
            )
        for name in ("labels", "mask"):
            path = getattr(self, name)
            if path is not None and not _is_path(path):
                raise UsageError(f"batch.{name} is one path, such as 1 or 'label', not {path!r}.")
        if type(self.class_dim) is not int or self.class_dim == 0:
            raise UsageError(
                f"batch.class_dim is the class axis, such as -1 or 1, not {self.class_dim!r}."
            )

    def resolve(self, batch: Any) -> BatchMapping:
        """The same mapping with inferred parts filled in from a batch.

        Raises:
            DataError: the inputs cannot be told from the batch's structure.
        """
        if self.inputs is not None:
            return self
        if isinstance(batch, Tensor):
            return self._with((), None)
        if isinstance(batch, Mapping):
            return self._from_names(batch)
        if isinstance(batch, tuple | list) and len(batch) in (1, 2):
            return self._with((0,), 1 if len(batch) == 2 else None)
        raise DataError(
            f"cannot tell which parts of {describe(batch)} are model inputs. Say so: "
            "batch: {inputs: [0, 1], labels: 2}, or batch: {inputs: all} for model(*batch)."
        )

    def _with(self, inputs: tuple[Path, ...], labels: Path | None) -> BatchMapping:
        # A bare tensor has no path: an empty tuple of inputs stands for the batch itself.
        chosen = self.labels if self.labels is not None else labels
        return dataclasses.replace(self, inputs=inputs, labels=chosen)

    def _from_names(self, batch: Mapping[str, Any]) -> BatchMapping:
        labels = next((name for name in _LABELS if name in batch), None)
        names = [name for name in batch if name in _MODEL_INPUTS]
        unknown = [name for name in batch if name not in _MODEL_INPUTS and name != labels]
        if not names or unknown:
            raise DataError(
                f"cannot tell which parts of {describe(batch)} are model inputs. Say so, by the "
                "names that the model takes: batch: {inputs: {x: image}, labels: digit}."
            )
        # With decoder inputs the logits are the decoder's, and this is the encoder's mask.
        has_mask = self.mask is None and _MASK in names and "decoder_input_ids" not in names
        return dataclasses.replace(
            self,
            inputs={name: name for name in names},
            labels=self.labels if self.labels is not None else labels,
            mask=_MASK if has_mask else self.mask,
            mask_inferred=has_mask,
        )

    def fit_to(self, logits: Tensor, selected: Selected) -> tuple[BatchMapping, Tensor | None]:
        """The mapping without an inferred mask that has another shape than the positions.

        Returns:
            The mapping for all later batches, and the mask of this one.
        """
        if not self.mask_inferred or selected.mask is None:
            return self, selected.mask
        fits = selected.mask.shape == logits.shape[:-1]
        kept = dataclasses.replace(self, mask=self.mask if fits else None, mask_inferred=False)
        return kept, selected.mask if fits else None

    def select(self, batch: Any) -> Selected:
        """Inputs, labels and mask of one batch (of a resolved mapping)."""
        labels = None if self.labels is None else leaf(batch, self.labels, "batch.labels")
        mask = None if self.mask is None else leaf(batch, self.mask, "batch.mask")
        if mask is not None and not isinstance(mask, Tensor):
            raise DataError(f"batch.mask {self.mask!r} is {describe(mask)}, not a tensor.")
        if self.inputs == "all" and isinstance(batch, Mapping):
            return Selected(kwargs=dict(batch), labels=labels, mask=mask)
        if self.inputs == "all":
            args = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            return Selected(args=args, labels=labels, mask=mask)
        if isinstance(self.inputs, Mapping):
            kwargs = {name: leaf(batch, path, _INPUTS) for name, path in self.inputs.items()}
            return Selected(kwargs=kwargs, labels=labels, mask=mask)
        paths = self.inputs or ()
        args = tuple(leaf(batch, path, _INPUTS) for path in paths) if paths else (batch,)
        return Selected(args=args, labels=labels, mask=mask)

    def input_paths(self) -> tuple[Path, ...] | None:
        """Paths of the model inputs; None where the whole sample is the input."""
        if isinstance(self.inputs, Mapping):
            return tuple(self.inputs.values())
        return self.inputs if isinstance(self.inputs, tuple) and self.inputs else None

    def describe(self) -> str:
        """Stable text for the manifest."""
        inputs = self.inputs
        shown = dict(inputs) if isinstance(inputs, Mapping) else inputs
        return f"inputs={shown} labels={self.labels} mask={self.mask} class_dim={self.class_dim}"


@dataclass(frozen=True)
class CallableMapping:
    """A user's function from batch to :class:`Selected`, where paths do not suffice.

    Attributes:
        function: called with the batch.
        class_dim: the class axis of the logits.
    """

    function: Callable[[Any], Selected]
    class_dim: int = -1
    mask_inferred: ClassVar[bool] = False

    def resolve(self, batch: Any) -> CallableMapping:  # noqa: ARG002
        """Nothing to infer."""
        return self

    def fit_to(
        self,
        logits: Tensor,  # noqa: ARG002
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
        return f"{function.__module__}.{name} class_dim={self.class_dim}"


Mapped = BatchMapping | CallableMapping


def _is_path(path: object) -> bool:
    return isinstance(path, int | str) and not isinstance(path, bool)


def parse_mapping(spec: object, side: Literal["teacher", "student"]) -> Mapped:
    """The mapping of one side from an experiment file's ``batch:`` section.

    Args:
        spec: None; a mapping with the fields of :class:`BatchMapping`, or with ``teacher`` and
            ``student``, each such a mapping; or the class path of a function.
        side: whose mapping is wanted.
    """
    if isinstance(spec, BatchMapping | CallableMapping):
        return spec
    if spec is None:
        return BatchMapping()
    if isinstance(spec, str):
        return CallableMapping(_import_function(spec))
    if callable(spec):
        return CallableMapping(spec)
    if not isinstance(spec, Mapping):
        raise UsageError(f"batch: is a mapping or a class path, not {spec!r}.")
    if {"teacher", "student"} & spec.keys():
        known = {"teacher", "student"}
        unknown = next((name for name in spec if name not in known), None)
        if unknown is not None:
            raise UsageError(f"unknown key 'batch.{unknown}'. {suggest(unknown, known)}")
        return parse_mapping(spec.get(side), side)
    known = {"inputs", "labels", "mask", "class_dim"}
    unknown = next((name for name in spec if name not in known), None)
    if unknown is not None:
        raise UsageError(f"unknown key 'batch.{unknown}'. {suggest(str(unknown), known)}")
    if spec.get("inputs") in ([], (), {}):
        raise UsageError("batch.inputs is empty. Name the model's inputs, or leave it out.")
    return BatchMapping(**spec)


def _import_function(path: str) -> Callable[[Any], Selected]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"batch: {path!r} cannot be imported ({error}).") from error
    if not callable(found):
        raise UsageError(f"batch: {path!r} is not callable.")
    return found  # type: ignore[no-any-return]
