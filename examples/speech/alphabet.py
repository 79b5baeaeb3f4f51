"""Characters of a CTC head: text to class numbers. The other way is kdcache's ``GreedyCtc``.

Number 0 is CTC's blank, and ``|`` stands between words, as in wav2vec 2.0's own vocabularies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from examples.speech.recordings import WORDS
from kdcache.train.pipelines import GreedyCtc

BLANK, SPACE = "<pad>", "|"
VOCABULARY = "vocab.json"
DIGITS = (BLANK, SPACE, *sorted(set("".join(WORDS))))
"""What the words of the ten digits are spelt with: 17 classes."""


def read_alphabet(folder: str | Path) -> tuple[str, ...]:
    """Characters in class order, from the ``vocab.json`` beside a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its numbers are not 0, 1, 2 ..., or the blank is not 0.
    """
    path = Path(folder) / VOCABULARY
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {path}. It comes with every wav2vec 2.0 checkpoint, and "
            "python -m examples.speech.train_teacher writes one."
        )
    numbers = json.loads(path.read_text(encoding="utf-8"))
    alphabet = tuple(sorted(numbers, key=numbers.__getitem__))
    if sorted(numbers.values()) != list(range(len(numbers))) or alphabet[0] != BLANK:
        raise ValueError(
            f"{path} does not number its characters from 0 on, beginning with {BLANK!r}, CTC's "
            "blank here. Renumber it together with the checkpoint's head."
        )
    return alphabet


def write_alphabet(folder: str | Path, alphabet: Sequence[str]) -> None:
    numbers = {character: number for number, character in enumerate(alphabet)}
    (Path(folder) / VOCABULARY).write_text(json.dumps(numbers) + "\n", encoding="utf-8")


def spell(text: str, alphabet: Sequence[str]) -> list[int]:
    """Class numbers of a text.

    Raises:
        ValueError: it has a character that the alphabet has not.
    """
    characters = [SPACE if character == " " else character for character in text]
    missing = sorted(set(characters) - set(alphabet))
    if missing:
        raise ValueError(
            f"the text {text!r} has {', '.join(map(repr, missing))}, which the model's alphabet "
            f"has not ({' '.join(alphabet)}). Upper and lower case differ."
        )
    return [alphabet.index(character) for character in characters]


def greedy_ctc(checkpoint: str) -> GreedyCtc:
    """From logits to text, in the alphabet of a checkpoint's folder."""
    return GreedyCtc(read_alphabet(checkpoint))
