"""Longer speech from a folder, as LibriSpeech lays it out: transcripts, and a file of sound each.

Below any folder, ``*.trans.txt`` has a line for each utterance, ``<name> <TEXT>``, and beside it
stands ``<name>.wav`` (mono, 16 bits) or ``<name>.flac``, which needs the package soundfile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.speech.alphabet import read_alphabet, spell
from examples.speech.data import Sample, collate, normalised
from examples.speech.recordings import read_wav

TRANSCRIPTS = "*.trans.txt"


def read_sound(path: Path, sample_rate: int) -> Tensor:
    """Samples (L,) float32 in [-1, 1) of a file, WAV or FLAC.

    Raises:
        ModuleNotFoundError: it is FLAC, and there is no soundfile.
        ValueError: it has another sample rate, or more than one channel.
    """
    if path.suffix == ".wav":
        return read_wav(path.read_bytes(), sample_rate=sample_rate, name=str(path))
    try:
        import soundfile
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{path} is FLAC, which Python cannot read by itself: nothing was read. Install "
            "soundfile (pip install soundfile), or convert the files to WAV."
        ) from error
    samples, found = soundfile.read(path, dtype="float32")
    if found != sample_rate or samples.ndim != 1:
        raise ValueError(
            f"{path} has {found} samples a second in shape {samples.shape}; the model takes "
            f"{sample_rate}, one channel. Convert it first: nothing is resampled here."
        )
    return torch.from_numpy(samples)


def read_transcripts(folder: str | Path) -> list[tuple[Path, str]]:
    """(file of sound, text) of every utterance, in the order of their paths.

    Raises:
        FileNotFoundError: no transcript, or no sound where a transcript says there is.
    """
    found = []
    for transcripts in sorted(Path(folder).rglob(TRANSCRIPTS)):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if name:
                found.append((_sound_of(name, transcripts), text.strip()))
    if not found:
        raise FileNotFoundError(
            f"there is no {TRANSCRIPTS} below {folder} with a line <name> <TEXT>: nothing was "
            "read. LibriSpeech's folders have them, such as LibriSpeech/train-clean-100."
        )
    return found


def _sound_of(name: str, transcripts: Path) -> Path:
    candidates = [transcripts.with_name(name + suffix) for suffix in (".wav", ".flac")]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{transcripts} has a text of {name!r}, and neither {candidates[0].name} nor "
        f"{candidates[1].name} is beside it: nothing was read."
    )


class FolderDataset(Dataset[Sample]):
    """Utterances of a folder; each is read when it is asked for.

    Args:
        folder: see this module.
        alphabet: characters in class order.
        sample_rate: of all files, samples a second.
        first: only so many utterances, from the first; None: all.
    """

    def __init__(
        self, folder: str, alphabet: Sequence[str], *, sample_rate: int, first: int | None = None
    ) -> None:
        self.utterances = read_transcripts(folder)[:first]
        self.alphabet = tuple(alphabet)
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Sample:
        """As :class:`examples.speech.data.SpeechDataset` gives them, all of them labelled."""
        path, text = self.utterances[index]
        return {
            "input_values": normalised(read_sound(path, self.sample_rate)),
            "labels": torch.tensor(spell(text, self.alphabet), dtype=torch.int64),
            "text": text,
        }


class SpeechFolders:
    """Loaders of a folder to train on and named folders to validate on.

    Args:
        train: folder.
        validation: set -> folder.
        checkpoint: the teacher's folder, for its ``vocab.json``.
        sample_rate: of all files, samples a second.
        batch_size: utterances of a batch; 1 for a teacher whose group norm sees padding.
        first: only so many utterances of each folder; null: all.
        num_workers: processes that read.
        seed: of the order of training batches.
    """

    def __init__(
        self,
        *,
        train: str,
        validation: dict[str, str],
        checkpoint: str,
        sample_rate: int = 16_000,
        batch_size: int = 1,
        first: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        self.folders = {"train": train, **validation}
        self.class_names = read_alphabet(checkpoint)
        self.sample_rate = sample_rate
        self.batch_size = batch_size
        self.first = first
        self.num_workers = num_workers
        self.seed = seed

    @cached_property
    def splits(self) -> dict[str, FolderDataset]:
        """Set -> dataset, ``train`` among them."""
        return {
            name: FolderDataset(
                folder, self.class_names, sample_rate=self.sample_rate, first=self.first
            )
            for name, folder in self.folders.items()
        }

    def train_dataloader(self) -> DataLoader[Sample]:
        order = torch.Generator().manual_seed(self.seed)
        return self._loader("train", shuffle=True, generator=order)

    def val_dataloader(self) -> dict[str, DataLoader[Sample]]:
        return {name: self._loader(name) for name in self.folders if name != "train"}

    def _loader(self, name: str, **options: Any) -> DataLoader[Sample]:
        return DataLoader(
            self.splits[name],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate,
            **options,
        )
