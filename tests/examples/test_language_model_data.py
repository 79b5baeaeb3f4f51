"""The language-model example's text, tokens, sequences and batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.language_model import data, text
from examples.language_model.tokenizer import END_ID, load_tokenizer, train_tokenizer
from tests.examples.small_text import paragraphs, write_text


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(2, 12))
def test_every_token_is_predicted_once(tokens, max_length):
    pieces = data.cut([END_ID, *tokens], max_length)
    assert all(2 <= len(piece) <= max_length for piece in pieces)
    assert [token for piece in pieces for token in piece[1:].tolist()] == tokens
    assert [piece[0] for piece in pieces[1:]] == [piece[-1] for piece in pieces[:-1]]


def test_batches_are_padded_on_the_right():
    samples = [{"input_ids": torch.tensor(ids)} for ids in ([5, 6, 7], [END_ID, 8])]
    batch = data.collate(samples)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [0, 8, -100]]


@pytest.fixture
def text_data(tmp_path):
    write_text(tmp_path)
    found = text.read_text(tmp_path)
    train_tokenizer(found.train, vocabulary=300).save(str(tmp_path / "tokenizer.json"))
    return data.TextData(
        folder=str(tmp_path), tokenizer=str(tmp_path / "tokenizer.json"), max_length=24
    )


def test_sequences_say_the_text(text_data):
    """Nothing is lost, whatever the words; lengths differ, so that padding is real."""
    said = ""
    for sequence in text_data.splits[1].sequences:
        said += text_data.tokenizer.decode(sequence[1:].tolist(), skip_special_tokens=False)
    assert said.split("<|endoftext|>")[:-1] == list(text_data.text.val)
    lengths = {len(sequence) for sequence in text_data.splits[0].sequences}
    assert max(lengths) == 24
    assert len(lengths) > 10
    num_words = sum(len(paragraph.split()) + 1 for paragraph in text_data.text.val)
    assert text_data.tokens_per_word * num_words == text_data.splits[1].num_predicted


def test_the_seed_orders_training_batches(text_data):
    def first(seed):
        text_data.seed = seed
        return next(iter(text_data.train_dataloader()))["input_ids"]

    assert torch.equal(first(0), first(0))
    assert first(0).shape != first(1).shape or not torch.equal(first(0), first(1))


def test_headings_and_empty_lines_are_left_out(tmp_path):
    write_text(tmp_path, num_train=5, num_val=3)
    found = text.read_text(tmp_path)
    assert found.train == tuple(paragraphs(5, 0))
    assert found.val == tuple(paragraphs(3, 1))
    assert text.read_text(tmp_path, num_paragraphs=2).train == found.train[:2]
    assert str(tmp_path) in found.source


def test_python_has_text_of_its_own(tmp_path):
    absent = text.read_text(tmp_path / "absent")
    assert "absent does not exist" in absent.source
    assert "Python's own documentation" in absent.source
    found = text.read_text(None)
    assert (found.train, found.val) == (absent.train, absent.val)
    assert not set(found.train) & set(found.val)
    assert text.num_words(found.train) > 30_000
    assert text.num_words(found.val) > 3_000
    assert all("\n" not in paragraph for paragraph in found.train + found.val)


def test_a_folder_without_the_files_is_an_error(tmp_path):
    (tmp_path / text.VAL_FILE).write_text("some words")
    with pytest.raises(FileNotFoundError, match=r"has no wikitext2-test\.txt: nothing was read"):
        text.read_text(tmp_path)


def test_the_tokenizer_is_the_texts_own_and_knows_every_byte():
    words = paragraphs(200, 0)
    tokenizer = train_tokenizer(words, vocabulary=300)
    again = train_tokenizer(words, vocabulary=300)
    assert tokenizer.get_vocab() == again.get_vocab()
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.token_to_id("<|endoftext|>") == END_ID
    strange = "Żółw \N{SNOWMAN} 42"
    assert tokenizer.decode(tokenizer.encode(strange).ids) == strange
    assert len(tokenizer.encode(words[0]).ids) < len(words[0]) / 2


def test_a_vocabulary_beyond_the_text_is_refused():
    with pytest.raises(ValueError, match=r"gives \d+ tokens, not 5000\. Ask for at most"):
        train_tokenizer(["few words"], vocabulary=5000)


def test_a_missing_tokenizer_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"examples\.language_model\.train_teacher"):
        load_tokenizer(tmp_path / "tokenizer.json")
