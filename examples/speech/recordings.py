"""Recordings of single spoken digits, read straight from the Free Spoken Digit Dataset's zip.

Nothing here knows a model. The invariant: recordings come in the order of their names, whatever
the order of the archive, so that a number always means the same recording.
"""

from __future__ import annotations

import io
import re
import wave
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ARCHIVE = "fsdd.zip"
SAMPLE_RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAME = re.compile(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav")
_WANTED = (
    "Put the Free Spoken Digit Dataset there as fsdd.zip (its folder recordings/, packed: 3,000 "
    "files such as recordings/7_jackson_32.wav), or name the folder that has it (--data)."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One digit, spoken once.

    Attributes:
        digit: 0 to 9.
        speaker: their first name.
        index: which time they spoke it, from 0.
        samples: (L,) float32 in [-1, 1).
    """

    digit: int
    speaker: str
    index: int
    samples: Tensor

    @property
    def word(self) -> str:
        return WORDS[self.digit]


def read_recordings(folder: str | Path) -> tuple[Recording, ...]:
    """Every recording of ``fsdd.zip``, in the order of speaker, digit and index.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: a file in it is no recording, or of another kind of sound.
    """
    path = Path(folder) / ARCHIVE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: nothing was read. {_WANTED}")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".wav")]
        found = [_recording(name, archive.read(name), path) for name in names]
    if not found:
        raise ValueError(f"{path} holds no .wav file: nothing was read. {_WANTED}")
    return tuple(sorted(found, key=lambda one: (one.speaker, one.digit, one.index)))


def _recording(name: str, content: bytes, path: Path) -> Recording:
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise ValueError(
            f"{path}: {name} is not named like 7_jackson_32.wav (digit, speaker, index): nothing "
            "was read. Remove it from the archive."
        )
    digit, speaker, index = matched.groups()
    samples = read_wav(content, sample_rate=SAMPLE_RATE, name=f"{path}: {name}")
    return Recording(digit=int(digit), speaker=speaker, index=int(index), samples=samples)


def read_wav(content: bytes, *, sample_rate: int, name: str) -> Tensor:
    """Samples (L,) float32 in [-1, 1) of a WAV file: mono, 16 bits.

    Args:
        content: of the file.
        sample_rate: that it must have, samples a second; nothing is resampled.
        name: for errors.

    Raises:
        ValueError: it is of another kind.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            kind = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            frames = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{name} is no WAV file that Python's wave reads ({error}).") from error
    if kind != (1, 16, sample_rate):
        raise ValueError(
            f"{name} has {kind[0]} channels of {kind[1]} bits, {kind[2]} samples a second; the "
            f"model takes 1 of 16 bits, {sample_rate}. Convert it first: nothing is resampled here."
        )
    return torch.from_numpy(np.frombuffer(frames, "<i2").astype(np.float32) / 2**15)
