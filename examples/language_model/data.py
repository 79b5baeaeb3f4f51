"""Sequences of tokens of different length: datasets, collation with padding, loaders.

Nothing here knows kdcache; all that it asks of ``TextData`` is ``train_dataloader()`` and
``val_dataloader()``. The invariant: every token of the text is predicted exactly once, so that
nats can be counted a word whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from examples.language_model.text import Text, num_words, read_text
from examples.language_model.tokenizer import END_ID, load_tokenizer

IGNORE_INDEX = -100
Sample = dict[str, Tensor]


class TokenDataset(Dataset[Sample]):
    """Sequences (L,) int64 of 2 to ``max_length`` tokens, in the text's order."""

    def __init__(self, sequences: Sequence[Tensor]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Sample:
        return {"input_ids": self.sequences[index]}

    @property
    def num_predicted(self) -> int:
        """Tokens that have a token before them: positions of a causal model."""
        return sum(len(sequence) - 1 for sequence in self.sequences)


def cut(tokens: Sequence[int], max_length: int) -> list[Tensor]:
    """Pieces of at most ``max_length`` tokens, each beginning with the last token of the former.

    That token is there to be read: it was predicted in the piece before.
    """
    starts = range(0, len(tokens) - 1, max_length - 1)
    return [torch.tensor(tokens[start : start + max_length]) for start in starts]


def encode(tokenizer: Tokenizer, paragraphs: Sequence[str], max_length: int) -> tuple[Tensor, ...]:
    """Paragraphs as sequences; an end mark stands before and after each paragraph."""
    encoded = tokenizer.encode_batch(list(paragraphs))
    return tuple(piece for one in encoded for piece in cut([END_ID, *one.ids, END_ID], max_length))


def collate(samples: Sequence[Sample]) -> Sample:
    """A batch of Hugging Face's names, padded on the right to its longest sequence.

    Returns:
        ``input_ids`` and ``attention_mask`` (B, L), and ``labels`` (B, L), not shifted: the
        inputs, with -100 where there is padding.
    """
    sequences = [sample["input_ids"] for sample in samples]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    input_ids = pad_sequence(sequences, batch_first=True, padding_value=END_ID)
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class TextData:
    """Loaders of training and validation sequences.

    Args:
        folder: with WikiText-2's files; see :func:`examples.language_model.text.read_text`.
        tokenizer: path of a ``tokenizer.json``.
        max_length: tokens of the longest sequence.
        batch_size: sequences of a batch.
        num_paragraphs: of the text, from its start; null for all.
        seed: of the order of training batches.
    """

    def __init__(
        self,
        *,
        folder: str | None = None,
        tokenizer: str,
        max_length: int = 96,
        batch_size: int = 16,
        num_paragraphs: int | None = None,
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self.tokenizer = load_tokenizer(tokenizer)  # by this name kdcache finds the vocabulary
        self.max_length = max_length
        self.batch_size = batch_size
        self.num_paragraphs = num_paragraphs
        self.seed = seed

    @cached_property
    def text(self) -> Text:
        return read_text(self.folder, num_paragraphs=self.num_paragraphs)

    @cached_property
    def splits(self) -> tuple[TokenDataset, TokenDataset]:
        """Training and validation sequences."""
        train, val = (
            TokenDataset(encode(self.tokenizer, paragraphs, self.max_length))
            for paragraphs in (self.text.train, self.text.val)
        )
        return train, val

    @property
    def tokens_per_word(self) -> float:
        """Predicted tokens for each word of the validation text, end marks included."""
        return self.splits[1].num_predicted / num_words(self.text.val)

    def train_dataloader(self) -> DataLoader[Sample]:
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.splits[0],
            batch_size=self.batch_size,
            shuffle=True,
            generator=order,
            collate_fn=collate,
        )

    def val_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """The held-out text, by the name under which it is cached and scored."""
        loader = DataLoader(self.splits[1], batch_size=self.batch_size, collate_fn=collate)
        return {"val": loader}
