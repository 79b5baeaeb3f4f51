"""Which leaves of a user's batch are model inputs, labels and mask: one mapping for both stages.

Nothing here knows about targets. A mapping is resolved against a real batch once, so that what
was inferred can be written down (the manifest holds it) and compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from kdcache.data.batch.conventions import (
    check_not_next_tokens,
    check_not_own_tokens,
    find_parts,
    token_paths,
    tokens_of,
)
from kdcache.data.batch.leaves import Path, leaf
from kdcache.data.batch.masks import (
    PREDICTED,
    MaskSource,
    batch_mask,
    describe_source,
    is_mask_source,
    output_paths,
    shifted_labels,
    with_ignored,
)
from kdcache.data.batch.selection import (
    CallableMapping,
    Selected,
    check_num_classes,
    check_output_kind,
)
from kdcache.data.batch.signature import DECODER, NO_MODEL, SHIFTED, Signature
from kdcache.errors import UsageError
from kdcache.losses.labels import IGNORE_INDEX
from kdcache.outputs import OutputKind

_INPUTS = "batch.inputs"


@dataclass(frozen=True, kw_only=True)
class BatchMapping:
    """Where inputs, labels and mask are in a batch.

    Attributes:
        inputs: paths of positional inputs, or name -> path for inputs by name; ``"all"`` gives
            the model every element of the batch (``model(*batch)``); None: inferred from the
            first batch, which may be (x, y), (x,), x, or a mapping with names that the model's
            ``forward`` takes, or Hugging Face's. ``decoder_input_ids: shifted:<path>`` is made of
            labels by the model itself, as is inferred where an encoder-decoder is given labels.
        labels: path of the class labels; inferred together with the inputs.
        mask: which positions count: one source, or several that all have to agree; see
            :data:`kdcache.data.batch.masks.MaskSource` (a path, ``labelled``, ``predicted:<path>``,
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
        ignore_index: the label that marks none, such as 255 of void pixels; -100 always does.
        output: what the model returns: ``logits`` (log-probabilities are some, but for a constant
            that raw distances see), or ``probabilities``, whose logarithm is taken.
    """

    inputs: tuple[Path, ...] | Mapping[str, Path] | Literal["all"] | None = None
    labels: Path | None = None
    mask: MaskSource | tuple[MaskSource, ...] | None = None
    causal: bool | None = None
    segments: Path | None = None
    class_dim: int = -1
    num_classes: int | None = None
    ignore_index: int | None = None
    output: OutputKind = "logits"
    mask_inferred: bool = field(default=False, repr=False)
    left_out: tuple[str, ...] = field(default=(), repr=False, compare=False)
    signature: Signature | None = field(default=None, repr=False, compare=False)

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
        check_output_kind(self.output)

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

    def bound(self, model: Any) -> BatchMapping:
        """The mapping for a model, whose ``forward`` says which names it takes.

        One that is bound already, or has nothing to ask a model for, stays as it is.
        """
        is_needed = self.inputs is None or self.shifted_path is not None
        if not is_needed or self.signature is not None:
            return self
        return dataclasses.replace(self, signature=Signature.of(model))

    def for_joining(self) -> BatchMapping:
        """The mapping where no model will run: rows, labels and mask are all that is wanted."""
        signature = NO_MODEL if self.signature is None else self.signature.without_model()
        return dataclasses.replace(self, signature=signature)

    def as_described(self, text: str) -> BatchMapping:
        """The mapping for a model that is not at hand, by what was written down of it.

        Args:
            text: what :meth:`describe` said once the mapping was resolved.
        """
        if self.signature is not None:
            return self
        return dataclasses.replace(self, signature=Signature.of_description(text))

    def resolve(self, batch: Any) -> BatchMapping:
        """The same mapping with inferred parts filled in from a batch.

        Raises:
            DataError: the inputs cannot be told from the batch's structure; or labels repeat the
                input ids, and ``causal`` is not said.
            UsageError: ``causal`` is said of labels that a decoder's inputs are made of.
        """
        mapping = self if self.inputs is not None else self._inferred(batch)
        if mapping.causal and mapping.shifted_path is not None:
            raise UsageError(
                "batch.causal moves labels by one token, and the decoder's inputs are made of the "
                "labels by such a move already: each position predicts its own label. Leave "
                "batch.causal out."
            )
        if mapping.causal is not None or mapping.labels is None:
            return mapping
        labels = leaf(batch, mapping.labels, "batch.labels")
        is_told = [
            check_not_own_tokens(labels, leaf(batch, path, _INPUTS), is_certain=is_certain)
            for path, is_certain in token_paths(mapping.inputs)
        ]
        return dataclasses.replace(mapping, causal=False) if all(is_told) else mapping

    def _inferred(self, batch: Any) -> BatchMapping:
        said = [*self.masks, self.segments]
        said += [source.removeprefix(PREDICTED) for source in said if isinstance(source, str)]
        found = find_parts(batch, self.signature, labels=self.labels, said=said)
        is_inferred = self.mask is None and found.mask is not None
        return dataclasses.replace(
            self,
            inputs=found.inputs,
            labels=found.labels,
            mask=found.mask if is_inferred else self.mask,
            mask_inferred=is_inferred and not (self.causal or found.is_of_positions),
            left_out=found.left_out,
        )

    def check_shift(self, batch: Any) -> None:
        """Raise UsageError where ``causal`` would move labels that are the next tokens already."""
        if not self.causal or self.labels is None:
            return
        labels = leaf(batch, self.labels, "batch.labels")
        for path, is_certain in token_paths(self.inputs):
            check_not_next_tokens(labels, leaf(batch, path, _INPUTS), is_certain=is_certain)

    @property
    def note(self) -> str:
        """What a person is told of columns that are no inputs; empty where there are none."""
        if not self.left_out or not isinstance(self.inputs, Mapping):
            return ""
        return (
            f"is given {', '.join(self.inputs)} of a batch; its forward does not take "
            f"{', '.join(self.left_out)}"
        )

    @property
    def shifted_path(self) -> str | None:
        """Path of the labels that a decoder's inputs are made of, where it is so."""
        path = self.inputs.get(DECODER) if isinstance(self.inputs, Mapping) else None
        is_shifted = isinstance(path, str) and path.startswith(SHIFTED)
        return path.removeprefix(SHIFTED) if is_shifted and isinstance(path, str) else None

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
            named = dict(self.inputs)
            if self.shifted_path is not None:
                named[DECODER] = self.shifted_path
            return (), {name: leaf(batch, path, _INPUTS) for name, path in named.items()}
        paths = self.inputs or ()
        return tuple(leaf(batch, path, _INPUTS) for path in paths) if paths else (batch,), {}

    def with_decoder_inputs(self, selected: Selected) -> Selected:
        """What a model is called with: decoder inputs are made of labels here, by the model.

        Raises:
            UsageError: the model has no function for that.
        """
        if self.shifted_path is None:
            return selected
        shift = None if self.signature is None else self.signature.shift
        if shift is None:
            raise UsageError(
                f"batch.inputs says {DECODER}: {SHIFTED}{self.shifted_path}, and the model has no "
                "prepare_decoder_input_ids_from_labels. Give it labels instead (batch: {inputs: "
                "{labels: labels}}), or a column of decoder inputs."
            )
        labels = selected.kwargs[DECODER]
        if self.ignore_index is not None:
            labels = with_ignored(labels, self.ignore_index)
        return dataclasses.replace(
            selected, kwargs={**selected.kwargs, DECODER: shift(labels.long())}
        )

    def input_paths(self) -> tuple[Path, ...] | None:
        """Paths of the model inputs, and of segments; None where the whole sample is the input."""
        inputs = tuple(self.inputs.values()) if isinstance(self.inputs, Mapping) else self.inputs
        if not isinstance(inputs, tuple) or not inputs:
            return None
        inputs = tuple(p.removeprefix(SHIFTED) if isinstance(p, str) else p for p in inputs)
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
        if self.output != "logits":
            text += f" output={self.output}"
        return text


Mapped = BatchMapping | CallableMapping


def _is_path(path: object) -> bool:
    return isinstance(path, int | str) and not isinstance(path, bool)


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)
