"""Text files as blocks of tokens: nothing lost, nothing predicted twice, nothing held out twice."""

from __future__ import annotations

import sys

import pytest
import torch

from kdcache.datasets import TextFiles, read_texts
from kdcache.datasets.text_files import TokenBlocks, collate
from kdcache.errors import DataError, UsageError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TEXT = "".join(f"line {n} says {n * n}.\n" for n in range(100))


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    """A folder with a tokenizer that has a token for each byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    level = tokenizers.pre_tokenizers.ByteLevel
    alphabet = sorted(level.alphabet())
    model = tokenizers.Tokenizer(tokenizers.models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    model.pre_tokenizer = level(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=model).save_pretrained(folder)
    return folder


def test_the_end_of_each_file_is_held_out(tmp_path):
    for name in ("b.txt", "sub/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name + TEXT, encoding="utf-8")
    (tmp_path / "table.csv").write_text("1,2")
    (tmp_path / ".hidden.txt").write_text("no")
    texts = read_texts(tmp_path, held_out=0.25)
    assert [train + val for train, val in zip(texts.train, texts.val, strict=True)] == [
        "b.txt" + TEXT,
        "sub/a.txt" + TEXT,
    ]
    for train, val in zip(texts.train, texts.val, strict=True):
        assert train[-1].isspace()
        assert 0.2 < len(val) / len(train + val) < 0.3


def test_a_validation_file_leaves_the_text_whole(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "val.txt").write_bytes(b"\xef\xbb\xbfanother text")  # with Windows' mark
    texts = read_texts(tmp_path / "train.txt", val_path=tmp_path / "val.txt")
    assert texts.train == (TEXT,)
    assert texts.val == ("another text",)


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("x.txt", None, UsageError, "does not exist. Expected a text file"),
        ("x.md", b"text", UsageError, "has no file that ends in .txt"),
        ("x.txt", "fa\xe7ade".encode("latin1"), DataError, r"x.txt is no text in UTF-8: byte 2"),
        ("x.txt", b"  \n", DataError, "has no text to train on"),
        ("x.txt", b"oneword", DataError, "has no text to validate on"),
    ],
)
def test_refused(tmp_path, name, content, error, says):
    folder = tmp_path / "text"
    if content is not None:
        folder.mkdir()
        (folder / name).write_bytes(content)
    with pytest.raises(error, match=says):
        read_texts(folder)


def test_every_token_but_the_first_is_predicted_once():
    blocks = TokenBlocks([list(range(10)), [90, 91], [99]], 4)
    assert [blocks[n]["input_ids"].tolist() for n in range(len(blocks))] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
        [90, 91],
    ]
    batch = collate([blocks[0], blocks[3]])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[0, 1, 2, 3], [90, 91, -100, -100]]


def test_batches_hold_the_text(tmp_path, byte_tokenizer):
    (tmp_path / "x.txt").write_text(TEXT)
    data = TextFiles(str(tmp_path), tokenizer=str(byte_tokenizer), sequence_length=32, batch_size=8)
    (val,) = data.val_dataloader().values()
    blocks = [row for batch in val for row in torch.unbind(batch["labels"])]
    read = [row[row != -100] for row in blocks]
    ids = torch.cat([read[0], *(row[1:] for row in read[1:])])
    assert data.tokenizer.decode(ids) == data.texts.val[0]
    first, again = (next(iter(data.train_dataloader()))["input_ids"] for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (8, 32)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tokenizer": "./nowhere"}, "there is no tokenizer './nowhere': no folder here"),
        ({"tokenizer": "not a name"}, "there is no tokenizer 'not a name'"),
        ({"tokenizer": "", "sequence_length": 1}, "data.sequence_length is at least 2"),
        ({"tokenizer": "", "batch_size": 0}, "data.batch_size is at least 1"),
        ({"tokenizer": "", "held_out": 2.0}, "held_out is a share"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, says):
    (tmp_path / "x.txt").write_text(TEXT)
    with pytest.raises(UsageError, match=says):
        TextFiles(str(tmp_path), **arguments)


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text(TEXT)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r'pip install "kdcache\[hf\]"'):
        TextFiles(str(tmp_path), tokenizer="gpt2")
