"""Texts of CTC heads: one class a frame, the blank between characters, repeats collapsed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcache.errors import DataError, UsageError


class Characters:
    """From class numbers to a text.

    Args:
        alphabet: what each class is written as, by its number.
        space: what stands for a space in it, as ``|`` in wav2vec 2.0's vocabularies.
    """

    def __init__(self, alphabet: str | Sequence[str], *, space: str = "|") -> None:
        self._texts = tuple(" " if text == space else text for text in alphabet)
        if not all(isinstance(text, str) for text in self._texts):
            raise UsageError("an alphabet is a text, or a list of texts, one for each class.")

    def __len__(self) -> int:
        """C."""
        return len(self._texts)

    def __call__(self, ids: Tensor) -> str:
        """The text of class numbers (L,); negative ones, which fill up a batch, are left out.

        Raises:
            DataError: a number is beyond the alphabet.
        """
        numbers = [number for number in ids.tolist() if number >= 0]
        if numbers and max(numbers) >= len(self):
            raise DataError(
                f"class {max(numbers)} is beyond an alphabet of {len(self)} (from 0). Give the "
                "alphabet that the labels were made with."
            )
        return "".join(self._texts[number] for number in numbers)


class GreedyCtc:
    """The most probable class of every frame, repeats collapsed, blanks dropped.

    Args:
        alphabet: what each class is written as, by its number, the blank (of whatever text) among
            them.
        blank: the class that stands for no character.
        space: what stands for a space in the alphabet.

    Attributes:
        needs_only_top: that it looks at nothing but the top class, which top-k targets know too.

    Raises:
        UsageError: the blank is beyond the alphabet.
    """

    needs_only_top = True

    def __init__(self, alphabet: str | Sequence[str], *, blank: int = 0, space: str = "|") -> None:
        self._characters = Characters(alphabet, space=space)
        if not 0 <= blank < len(self._characters):
            raise UsageError(
                f"the blank is class {blank}, and the alphabet has {len(self._characters)} (from "
                "0). The blank has a place in the alphabet too, whatever is written there."
            )
        self._blank = blank

    def __call__(self, logits: Tensor) -> str:
        """The text of one sample.

        Args:
            logits: (P, C) of its valid frames.

        Raises:
            DataError: C is not the alphabet's.
        """
        if logits.shape[-1] != len(self._characters):
            raise DataError(
                f"the model has {logits.shape[-1]} classes, the alphabet "
                f"{len(self._characters)}. Give one text for each class, the blank among them."
            )
        ids = torch.unique_consecutive(logits.argmax(dim=-1))
        return self._characters(ids[ids != self._blank])
