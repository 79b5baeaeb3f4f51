"""Text files as a data object: ``data: {class_path: kdcache.datasets.TextFiles}``.

For causal language models, with ``batch: {causal: true}``. Which text is held out stands in
:mod:`kdcache.datasets.plain_text`; here it becomes blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from kdcache.datasets.plain_text import Texts, read_texts
from kdcache.errors import DataError, UsageError
from kdcache.paths import local_path

IGNORE_INDEX = -100
"""The label where there is no token, only padding."""

_FOLDER = (".", "/", "~")
"""What a name begins with that can be no name on the hub: it is not asked, which may take long."""

Sample = dict[str, Tensor]


class TokenBlocks(Dataset[Sample]):
    """Blocks of 2 to ``sequence_length`` tokens, in the text's order.

    Each block begins with the last token of the one before, which is only read there: so every
    token but a text's first is predicted once.

    Args:
        texts: token ids, one list a text.
        sequence_length: tokens of a block.
    """

    def __init__(self, texts: Sequence[Sequence[int]], sequence_length: int) -> None:
        self.blocks = [
            torch.tensor(text[start : start + sequence_length])
            for text in texts
            for start in range(0, len(text) - 1, sequence_length - 1)
        ]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Sample:
        return {"input_ids": self.blocks[index]}


class TextFiles:
    """Loaders of blocks of tokens.

    Batches are dicts, L being the longest block in them: ``input_ids`` and ``attention_mask``
    (B, L) int64, padded on the right, and ``labels`` (B, L) int64, not shifted: the inputs, with
    -100 where there is padding. No special tokens are added.

    Args:
        path: a text file, or a folder: all ``*.txt`` in it, at any depth. UTF-8.
        tokenizer: Hugging Face name of a tokenizer or model, or a folder that has one; with
            ``./`` in front it can be nothing but a folder.
        sequence_length: tokens of a block, no more than the models take.
        batch_size: blocks of a batch.
        val_path: text to validate on; null: the end of each file is held out.
        held_out: how large an end, as a share.
        num_workers: processes that make batches.
        seed: of the order of training batches.

    Raises:
        UsageError: there is no such text or tokenizer, or an argument makes no sense.
        DataError: see :func:`kdcache.datasets.plain_text.read_texts`.
    """

    def __init__(
        self,
        path: str,
        *,
        tokenizer: str,
        sequence_length: int = 128,
        batch_size: int = 16,
        val_path: str | None = None,
        held_out: float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("sequence_length", sequence_length, 2),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise UsageError(f"data.{name} is at least {least}, not {value}.")
        self.texts: Texts = read_texts(path, val_path=val_path, held_out=held_out)
        self.tokenizer = load_tokenizer(tokenizer)  # by this name kdcache finds the vocabulary
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    @cached_property
    def splits(self) -> tuple[TokenBlocks, TokenBlocks]:
        """Training and validation blocks."""
        train, val = (
            TokenBlocks([self._encode(text) for text in texts], self.sequence_length)
            for texts in (self.texts.train, self.texts.val)
        )
        for blocks, name in ((train, "training"), (val, "validation")):
            if not len(blocks):
                raise DataError(f"the {name} text has no two tokens in a row. Add text.")
        return train, val

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled batches of the training text."""
        order = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            self.splits[0],
            batch_size=self.batch_size,
            shuffle=True,
            generator=order,
            collate_fn=collate,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """The held-out text, by the name under which it is cached and scored."""
        loader = DataLoader(
            self.splits[1],
            batch_size=self.batch_size,
            collate_fn=collate,
            num_workers=self.num_workers,
        )
        return {"val": loader}

    def _encode(self, text: str) -> list[int]:
        # verbose=False: a warning that the text is longer than the model takes; it is cut below.
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])


def collate(samples: Sequence[Sample]) -> Sample:
    """A batch of blocks, padded on the right to its longest one."""
    blocks = [sample["input_ids"] for sample in samples]
    lengths = torch.tensor([len(block) for block in blocks])
    input_ids = pad_sequence(blocks, batch_first=True, padding_value=0)  # any token: it is masked
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    labels = input_ids.masked_fill(attention_mask == 0, IGNORE_INDEX)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def load_tokenizer(name: str) -> Any:
    """A tokenizer by Hugging Face name or folder.

    Raises:
        UsageError: there is none, or transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UsageError(
            'tokenizers need transformers, which is not installed: pip install "kdcache[hf]"'
        ) from error
    try:
        if name.startswith(_FOLDER):
            folder = local_path(name, "data.tokenizer")
            if not folder.is_dir():
                raise FileNotFoundError(name)
            return AutoTokenizer.from_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        where = "no folder here that has one"
        if not name.startswith(_FOLDER):
            where += ", and none of this name could be had from the Hugging Face hub"
        raise UsageError(
            f"there is no tokenizer {name!r}: {where}. Where a script trains it, such as "
            "train_teacher.py, run that first; else correct data.tokenizer."
        ) from error
