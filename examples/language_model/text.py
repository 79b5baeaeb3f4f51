"""English text for the example, in paragraphs: WikiText-2's files, or what comes with Python.

The invariant: a paragraph of the validation text is none of the training text. Nothing here knows
about tokens.
"""

from __future__ import annotations

import dataclasses
import pydoc_data.topics
from dataclasses import dataclass
from pathlib import Path

TRAIN_FILE, VAL_FILE = "wikitext2-test.txt", "wikitext2-valid.txt"
VAL_PARAGRAPHS = 400  # of the file's 1,841; the others are not used
_TOPIC_SHARE = 0.1  # of Python's paragraphs, for validation


@dataclass(frozen=True, kw_only=True)
class Text:
    """Paragraphs to train on and to validate on.

    Attributes:
        source: where they are from, for people.
        train: one string a paragraph, without line breaks.
        val: the same, of other articles or topics.
    """

    source: str
    train: tuple[str, ...]
    val: tuple[str, ...]


def read_text(folder: str | Path | None, *, num_paragraphs: int | None = None) -> Text:
    """WikiText-2 from a folder, or Python's own documentation where there is no such folder.

    WikiText-2's training file is large; the example trains on its test file and validates on the
    first articles of its validation file.

    Args:
        folder: with ``wikitext2-test.txt`` and ``wikitext2-valid.txt``; None: there is none.
        num_paragraphs: of both parts, from their start; None: all.

    Raises:
        FileNotFoundError: the folder is there, the files are not.
    """
    if folder is None or not Path(folder).exists():
        why = "no folder of text was named" if folder is None else f"{folder} does not exist"
        text = python_text(why)
    else:
        text = wikitext(Path(folder))
    return dataclasses.replace(
        text, train=text.train[:num_paragraphs], val=text.val[:num_paragraphs]
    )


def wikitext(folder: Path) -> Text:
    """WikiText-2's test file to train on, the beginning of its validation file to validate on."""
    files = [folder / name for name in (TRAIN_FILE, VAL_FILE)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}: nothing was read. Put WikiText-2's test "
            "and validation text there under these names, or name no folder to train on the "
            "documentation that comes with Python."
        )
    train, val = (wikitext_paragraphs(path.read_text(encoding="utf-8")) for path in files)
    return Text(source=f"WikiText-2, {folder}", train=train, val=val[:VAL_PARAGRAPHS])


def wikitext_paragraphs(text: str) -> tuple[str, ...]:
    """Lines of prose; headings, which stand between equals signs, are left out."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("="))


def python_text(why: str) -> Text:
    """The language reference that ``help()`` reads: about 50,000 words, technical and repetitive.

    Topics contain one another, so each paragraph is kept once.

    Args:
        why: this text is taken.
    """
    topics = pydoc_data.topics.topics
    blocks = (block for topic in sorted(topics) for block in topics[topic].split("\n\n"))
    paragraphs = tuple(dict.fromkeys(" ".join(block.split()) for block in blocks if block.strip()))
    cut = round(len(paragraphs) * (1 - _TOPIC_SHARE))
    source = f"Python's own documentation ({why}); other figures than WikiText-2's"
    return Text(source=source, train=paragraphs[:cut], val=paragraphs[cut:])


def num_words(paragraphs: tuple[str, ...]) -> int:
    """Words between spaces, and an end mark for each paragraph: WikiText's way of counting."""
    return sum(len(paragraph.split()) + 1 for paragraph in paragraphs)
