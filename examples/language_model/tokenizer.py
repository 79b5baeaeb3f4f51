"""A byte-level BPE tokenizer, trained on the spot: nothing is fetched, no word is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
END_ID = 0  # also begins a paragraph, and fills up rows


def train_tokenizer(paragraphs: Sequence[str], *, vocabulary: int) -> Tokenizer:
    """Merge frequent pairs of bytes until there are ``vocabulary`` tokens (at least 257)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(
            f"the text gives {tokenizer.get_vocab_size()} tokens, not {vocabulary}. Ask for at "
            "most as many (257 are the bytes and the end mark), or give more text."
        )
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A ``tokenizer.json``, as the teacher's folder holds one.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no tokenizer {path}. Train it, with the teacher, by "
            "python -m examples.language_model.train_teacher"
        )
    return Tokenizer.from_file(str(path))
