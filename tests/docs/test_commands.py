"""Every command of README, guides and examples runs, on data of the kind that they describe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from tests.docs.data import photos
from tests.docs.documents import (
    DOCUMENTS,
    MAIN,
    ROOT,
    blocks,
    commands,
    is_elsewhere,
    run_blocks,
)
from tests.examples.idx_files import write_split
from tests.examples.small_speech import write_archive, write_checkpoint, write_folder
from tests.importers import teacher_files

DIGITS, MNIST = "examples/digits/README.md", "examples/mnist/README.md"
LANGUAGE, SPEECH = "examples/language_model/README.md", "examples/speech/README.md"
START, LOGPROBS = "docs/start.md", "docs/language-models.md"

ON_DIGITS = (
    "docs/clusters.md",
    "docs/cache.md",
    "docs/validation-and-tracking.md",
    "docs/experiment-files.md",
    DIGITS,
)
"""Documents whose commands use the cache of examples/digits, in this order."""

RUN = {MAIN, START, LOGPROBS, *ON_DIGITS, MNIST, LANGUAGE, SPEECH}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The current folder: one with the examples, in which commands may write."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    return folder


def bash(*documents: str) -> list[str]:
    return [block for document in documents for block in blocks(document, "bash")]


def log_probabilities(folder: Path) -> None:
    """A few sequences as a server writes them, in both forms that the document names."""
    records = teacher_files.vllm_records(teacher_files.make_sequences())
    teacher_files.write_lines(folder / "train.jsonl.gz", records)
    columns = {name: [json.dumps(r[name]) for r in records] for name in records[0]}
    teacher_files.write_parquet(
        folder / "held.parquet", columns, dict.fromkeys(columns, pyarrow.string())
    )


def images_beside(folder: Path, num_train: int) -> None:
    """MNIST's files with a few random images, where the documents say they are."""
    images = folder.parent / "shared" / "data" / "mnist"
    images.mkdir(parents=True)
    write_split(images, "train", num_train, packed=True)
    write_split(images, "t10k", 20, packed=True)


def test_no_document_with_commands_is_left_out():
    with_commands = {
        document
        for document in DOCUMENTS
        if any(not is_elsewhere(line) for block in bash(document) for line in commands(block))
    }
    assert with_commands == RUN


def test_readme(checkout):
    photos(checkout)
    assert run_blocks(bash(MAIN), checkout) == 7


def test_start(checkout):
    photos(checkout)
    words = (f"The {a} {b} {c} the {d}." for a, b, c, d in _words())
    (checkout / "text.txt").write_text("\n".join(words), encoding="utf-8")
    assert run_blocks(bash(START), checkout) > 10


def _words():
    draw = np.random.default_rng(0)
    lists = (("old", "red", "tall"), ("cat", "bird"), ("sees", "hears"), ("tree", "house"))
    return [[draw.choice(words) for words in lists] for _ in range(600)]


def test_on_digits(checkout):
    first = "python -m examples.digits.train_teacher\n"
    assert run_blocks([first, *bash(*ON_DIGITS)], checkout) == 17


def test_log_probabilities(checkout):
    log_probabilities(checkout)
    assert run_blocks(bash(LOGPROBS), checkout) == 2


def test_mnist(checkout):
    images_beside(checkout, 600)
    small = [block for block in bash(MNIST) if "resnet" not in block]
    assert run_blocks(small, checkout) == 9


def test_resnet(checkout):
    images_beside(checkout, 30)
    large = [block for block in bash(MNIST) if "resnet" in block]
    assert run_blocks(large, checkout) == 4


def test_language_model(checkout):
    """In the size of seconds, on the text that comes with Python."""
    assert run_blocks(bash(LANGUAGE), checkout) == 8


def test_speech(checkout):
    """In the size of seconds, on made-up recordings, and with a small model as the large one."""
    write_archive(checkout.parent / "shared" / "data")
    write_checkpoint(checkout / "wav2vec2-base-960h")
    for name in ("train-clean-100", "dev-clean"):
        texts = {"19-198-0000": "SEVEN NINE", "19-198-0001": "ZERO"}
        write_folder(checkout / "LibriSpeech" / name, texts, sample_rate=16_000)
    assert run_blocks(bash(SPEECH), checkout) == 9
