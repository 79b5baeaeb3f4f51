"""Made-up text in WikiText-2's files: sentences of a few words, paragraphs of many lengths."""

import random
from pathlib import Path

from examples.language_model.text import TRAIN_FILE, VAL_FILE

WORDS = {
    "noun": ("cat", "river", "engine", "teacher", "student", "village", "song"),
    "verb": ("sees", "follows", "builds", "forgets", "teaches"),
    "kind": ("small", "old", "quiet", "famous"),
}


def sentence(chance: random.Random) -> str:
    noun, verb, kind = (lambda name=name: chance.choice(WORDS[name]) for name in WORDS)
    return f"The {kind()} {noun()} {verb()} the {noun()} ."


def paragraphs(count: int, seed: int) -> list[str]:
    """Of 1 to 8 sentences each."""
    chance = random.Random(seed)
    return [" ".join(sentence(chance) for _ in range(chance.randint(1, 8))) for _ in range(count)]


def write_text(folder: Path, num_train: int = 60, num_val: int = 30) -> None:
    """Both files, with headings and empty lines as WikiText has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in ((TRAIN_FILE, num_train, 0), (VAL_FILE, num_val, 1)):
        body = "".join(f" {paragraph} \n" for paragraph in paragraphs(count, seed))
        (folder / name).write_text(f" \n = A heading = \n \n{body}\n = = Part = = \n")
