"""The speech example's recordings, utterances, folders and alphabets."""

import json
import sys
import types
import zipfile

import pytest
import torch

from examples.speech import alphabet, data, folder, recordings
from tests.examples.small_speech import SPEAKERS, sound, wav_bytes, write_archive, write_folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    write_archive(folder)
    return str(folder)


def numbers(speech, **settings):
    return data.SpokenNumbers(folder=speech, num_train=40, num_test=20, **settings)


def test_recordings_are_read_as_they_were_written(speech):
    found = recordings.read_recordings(speech)
    assert len(found) == 10 * len(SPEAKERS) * 7
    names = [(one.speaker, one.digit, one.index) for one in found]
    assert names == sorted(names)
    one = found[37]
    written = sound(one.digit, one.speaker, one.index)
    torch.testing.assert_close(one.samples, written, atol=2**-15, rtol=0)
    assert one.word == recordings.WORDS[one.digit]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sample_rate": 16_000}, "1 channels of 16 bits, 16000 samples a second; the model takes"),
        ({"channels": 2}, "2 channels of 16 bits, 8000"),
    ],
)
def test_other_sound_is_refused(options, says):
    content = wav_bytes(torch.zeros(100), **options)
    with pytest.raises(ValueError, match=f"a file has {says}"):
        recordings.read_wav(content, sample_rate=8000, name="a file")


def test_a_file_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*fsdd\.zip: nothing was read\. Put"):
        recordings.read_recordings(tmp_path)
    for name, content, says in (
        ("recordings/seven.wav", b"", "is not named like 7_jackson_32.wav"),
        ("recordings/7_anna_0.wav", b"RIFF", "is no WAV file that Python's wave reads"),
        ("README.md", b"", "holds no .wav file"),
    ):
        with zipfile.ZipFile(tmp_path / recordings.ARCHIVE, "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(ValueError, match=says):
            recordings.read_recordings(tmp_path)


def test_an_utterance_is_recordings_of_one_speaker_in_a_row(speech):
    found = recordings.read_recordings(speech)
    counts = set()
    for number in range(30):
        samples, text = data.spoken_number(found, f"train {number}", most=3)
        words = text.split(" ")
        counts.add(len(words))
        fitting = [
            speaker
            for speaker in SPEAKERS
            if _begins_with(samples, [r for r in found if r.speaker == speaker], words[0])
        ]
        assert len(fitting) == 1
        silence = (samples == 0).sum()
        assert silence >= data.PAUSE * (len(words) - 1)
    assert counts == {1, 2, 3}
    again = data.spoken_number(found, "train 0", most=3)
    assert torch.equal(again[0], data.spoken_number(found, "train 0", most=3)[0])
    assert again[1] == data.spoken_number(found, "train 0", most=3)[1]


def _begins_with(samples, own, word):
    return any(
        torch.equal(samples[: len(one.samples)], one.samples) for one in own if one.word == word
    )


def test_two_readers_hear_the_same(speech):
    first, second = numbers(speech, seed=0), numbers(speech, seed=1, labelled=0.25)
    for split in ("train", "test"):
        for one, other in zip(first.splits[split], second.splits[split], strict=True):
            assert torch.equal(one["input_values"], other["input_values"])
            assert one["text"] == other["text"]
    lengths = [len(one["input_values"]) for one in first.splits["train"]]
    assert lengths == sorted(lengths)
    orders = [
        [text for batch in one.train_dataloader() for text in batch["text"]]
        for one in (first, second)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_share_of_the_transcripts(speech):
    few = numbers(speech, labelled=0.25)
    known = [len(sample["labels"]) > 0 for sample in few.splits["train"]]
    assert sum(known) == 10
    assert known != sorted(known)  # not the shortest, nor the longest
    assert known != sorted(known, reverse=True)
    assert all(len(sample["labels"]) for sample in few.splits["test"])
    heard = [text for batch in few.train_dataloader() for text in batch["text"]]
    assert len(heard) == 40
    part = numbers(speech, labelled=0.25, all_sound=False)
    labelled = [batch["labels"] for batch in part.train_dataloader()]
    assert sum(len(labels) for labels in labelled) == 10
    assert all((labels[:, 0] >= 0).all() for labels in labelled)
    with pytest.raises(ValueError, match="a share from 0 to 1, not 5"):
        _ = numbers(speech, labelled=5).splits


def test_splits_by_index_or_speaker(speech):
    """Training never hears a test recording."""
    held = {one.index: one.samples for one in recordings.read_recordings(speech)}
    assert set(held) == set(range(7))
    by_index, by_speaker = numbers(speech, most=1), numbers(speech, most=1, test_speakers=["anna"])
    for settings, is_test in (
        (by_index, lambda one: one.index < 5),
        (by_speaker, lambda one: one.speaker == "anna"),
    ):
        for split, dataset in settings.splits.items():
            own = [
                one
                for one in recordings.read_recordings(speech)
                if is_test(one) == (split == "test")
            ]
            for samples, text in dataset.utterances:
                assert _begins_with(samples, own, text)
    with pytest.raises(ValueError, match="left for 'train': test_speakers are"):
        _ = numbers(speech, test_speakers=SPEAKERS).splits


def test_sound_is_normalised():
    samples = 5 + 3 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    made = data.normalised(samples)
    assert float(made.mean()) == pytest.approx(0, abs=1e-5)
    assert float(made.var(unbiased=False)) == pytest.approx(1, abs=1e-4)


def test_batches_are_padded_on_the_right():
    samples = [
        {"input_values": torch.ones(3), "labels": torch.tensor([4, 5]), "text": "no"},
        {"input_values": torch.ones(1), "labels": torch.tensor([], dtype=torch.int64), "text": ""},
    ]
    batch = data.collate(samples)
    assert batch["input_values"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[4, 5], [-100, -100]]
    assert batch["text"] == ["no", ""]


def test_an_alphabet_is_a_checkpoints(tmp_path):
    assert len(alphabet.DIGITS) == 17
    alphabet.write_alphabet(tmp_path, alphabet.DIGITS)
    assert alphabet.read_alphabet(tmp_path) == alphabet.DIGITS
    ids = alphabet.spell("seven two", alphabet.DIGITS)
    decode = alphabet.greedy_ctc(str(tmp_path))
    frames = [number for one in ids for number in (one, one, 0)]
    assert decode(torch.nn.functional.one_hot(torch.tensor(frames), 17).float()) == "seven two"
    with pytest.raises(ValueError, match=r"'7', '\?', which the model's alphabet has not"):
        alphabet.spell("7?", alphabet.DIGITS)


def test_a_wrong_alphabet_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*vocab\.json"):
        alphabet.read_alphabet(tmp_path)
    for wrong in ({"<pad>": 0, "a": 2}, {"a": 0, "<pad>": 1}):
        (tmp_path / "vocab.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="does not number its characters from 0 on"):
            alphabet.read_alphabet(tmp_path)


TEXTS = {"19-198-0000": "ONE TWO", "19-198-0001": "NINE"}


@pytest.fixture
def folders(tmp_path):
    write_folder(tmp_path / "train", TEXTS, sample_rate=16_000)
    letters = ("<pad>", "|", *sorted(set("".join(TEXTS.values()).replace(" ", ""))))
    alphabet.write_alphabet(tmp_path, letters)
    return tmp_path


def test_a_folder_as_librispeech_has_it(folders):
    made = folder.SpeechFolders(
        train=str(folders / "train"),
        validation={"dev": str(folders / "train")},
        checkpoint=str(folders),
    )
    assert made.class_names[:2] == ("<pad>", "|")
    (dev,) = made.val_dataloader().values()
    batches = list(dev)
    assert [batch["text"] for batch in batches] == [["ONE TWO"], ["NINE"]]
    assert batches[0]["attention_mask"].all()  # one alone has no padding
    spelt = alphabet.spell("NINE", made.class_names)
    assert batches[1]["labels"].tolist() == [spelt]
    torch.testing.assert_close(
        batches[1]["input_values"][0],
        data.normalised(sound(1, SPEAKERS[0], 1)),
        atol=1e-3,
        rtol=0,
    )
    assert len(made.train_dataloader()) == 2


def test_flac_needs_soundfile(folders, monkeypatch):
    wav = folders / "train" / "19" / "198" / "19-198-0001.wav"
    flac = wav.with_suffix(".flac")
    wav.rename(flac)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ModuleNotFoundError, match=r"0001\.flac is FLAC.*Install soundfile"):
        folder.read_sound(flac, 16_000)
    samples = sound(1, SPEAKERS[0], 1)
    fake = types.ModuleType("soundfile")
    fake.read = lambda path, dtype: (samples.numpy(), 16_000)
    monkeypatch.setitem(sys.modules, "soundfile", fake)
    assert torch.equal(folder.read_sound(flac, 16_000), samples)
    with pytest.raises(ValueError, match=r"16000 samples a second .* takes 8000, one channel"):
        folder.read_sound(flac, 8000)


def test_a_folder_that_lacks_something_is_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*\.trans\.txt below .* nothing was read"):
        folder.read_transcripts(tmp_path / "nowhere")
    (folders / "train" / "19" / "198" / "19-198-0001.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither 19-198-0001\.wav nor 19-198-0001\.flac"):
        folder.read_transcripts(folders / "train")
