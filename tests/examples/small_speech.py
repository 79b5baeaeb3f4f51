"""Made-up recordings in FSDD's archive: every digit is a chord of its own, in a speaker's pitch."""

import io
import math
import string
import wave
import zipfile
from pathlib import Path

import torch

from examples.speech.alphabet import write_alphabet
from examples.speech.models import wav2vec2
from examples.speech.recordings import ARCHIVE, SAMPLE_RATE

SPEAKERS = ("anna", "boris")


def sound(digit: int, speaker: str, index: int) -> torch.Tensor:
    """About a fifth of a second, (L,) float32: long enough for the letters of a word."""
    time = torch.arange(1600 + 40 * index) / SAMPLE_RATE
    pitch = 150 * (1 + SPEAKERS.index(speaker) / 4) * (1 + digit)
    chance = torch.Generator().manual_seed(1000 * digit + index)
    noise = 0.01 * torch.randn(len(time), generator=chance)
    return 0.4 * (2 * math.pi * pitch * time).sin() + noise


def wav_bytes(samples: torch.Tensor, sample_rate: int = SAMPLE_RATE, channels: int = 1) -> bytes:
    """A WAV file of 16 bits."""
    packed = io.BytesIO()
    with wave.open(packed, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((samples * 2**15).clamp(-(2**15), 2**15 - 1).short().numpy().tobytes())
    return packed.getvalue()


def write_archive(folder: Path, num_indices: int = 7) -> None:
    """Every digit, by two speakers; the first five of each are for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / ARCHIVE, "w") as archive:
        for index in reversed(range(num_indices)):
            for digit in range(10):
                for speaker in SPEAKERS:
                    name = f"recordings/{digit}_{speaker}_{index}.wav"
                    archive.writestr(name, wav_bytes(sound(digit, speaker, index)))


def write_folder(folder: Path, texts: dict[str, str], sample_rate: int) -> None:
    """A folder as LibriSpeech lays it out: name -> text, with a sound of its own for each."""
    chapter = folder / "19" / "198"
    chapter.mkdir(parents=True)
    lines = [f"{name} {text}" for name, text in texts.items()]
    (chapter / "19-198.trans.txt").write_text("\n".join(lines) + "\n")
    for number, name in enumerate(texts):
        samples = sound(number % 10, SPEAKERS[0], number)
        (chapter / f"{name}.wav").write_bytes(wav_bytes(samples, sample_rate))


def write_checkpoint(folder: Path) -> None:
    """A small wav2vec 2.0 with the base checkpoint's norm and capital letters, untrained."""
    torch.manual_seed(0)
    letters = ("<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase, "'")
    model = wav2vec2(
        num_classes=len(letters), width=16, layers=5, heads=2, channels=(8, 8, 8), norm="group"
    )
    model.save_pretrained(folder)
    write_alphabet(folder, letters)
