"""Utterances with their texts, batches, and the spoken numbers that the demo is about.

Nothing here knows kdcache; all that it asks of ``SpokenNumbers`` is ``train_dataloader()``,
``val_dataloader()`` and ``class_names``. The invariant: a sample is a pure function of its number
and the settings, so that teacher and students hear the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from examples.speech.alphabet import DIGITS, spell
from examples.speech.models import IGNORE_INDEX
from examples.speech.recordings import SAMPLE_RATE, Recording, read_recordings

TEST_INDICES = range(5)  # the data set's own: recordings 0 to 4 of every digit and speaker
PAUSE = SAMPLE_RATE // 10  # between two digits
Utterance = tuple[Tensor, str]
"""Samples (L,) float32 in [-1, 1), and what is said."""

Sample = dict[str, Any]


class SpeechDataset(Dataset[Sample]):
    """Utterances from short to long, so that batches of neighbours need little padding.

    Args:
        utterances: in any order.
        alphabet: characters in class order.
        labelled: share of the utterances whose transcript is known, in [0, 1].
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        alphabet: Sequence[str],
        *,
        labelled: float = 1.0,
    ) -> None:
        if not 0 <= labelled <= 1:
            raise ValueError(f"labelled is a share from 0 to 1, not {labelled}.")
        self.utterances = sorted(utterances, key=lambda one: (len(one[0]), one[1]))
        self.alphabet = tuple(alphabet)
        order = list(range(len(utterances)))
        random.Random("labelled").shuffle(order)
        self.labelled = frozenset(order[: round(labelled * len(order))])

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Sample:
        """``input_values`` (L,) of mean 0 and variance 1, ``labels`` (T,) int64, and ``text``.

        Where the transcript is not known, ``labels`` are empty; ``text`` is there to score with.
        """
        samples, text = self.utterances[index]
        spelt = spell(text, self.alphabet) if index in self.labelled else []
        return {
            "input_values": normalised(samples),
            "labels": torch.tensor(spelt, dtype=torch.int64),
            "text": text,
        }


def normalised(samples: Tensor) -> Tensor:
    """Mean 0 and variance 1, as wav2vec 2.0's own feature extractor makes them."""
    return (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt()


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of Hugging Face's names, padded on the right.

    Returns:
        ``input_values`` and ``attention_mask`` (B, L), ``labels`` (B, T) filled up with -100, and
        ``text``, B of them.
    """
    sounds = [sample["input_values"] for sample in samples]
    lengths = torch.tensor([len(sound) for sound in sounds])
    input_values = pad_sequence(sounds, batch_first=True)
    return {
        "input_values": input_values,
        "attention_mask": (torch.arange(input_values.shape[1]) < lengths.unsqueeze(1)).long(),
        "labels": pad_sequence(
            [sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE_INDEX
        ),
        "text": [sample["text"] for sample in samples],
    }


def texts(batch: dict[str, Any]) -> list[str]:
    """What was said: the references of the word error rate."""
    return list(batch["text"])


def spoken_number(recordings: Sequence[Recording], name: str, *, most: int) -> Utterance:
    """1 to ``most`` recordings of one speaker in a row, with a pause between them.

    Args:
        recordings: to choose from.
        name: of the utterance; another name, another choice.
        most: digits.
    """
    chance = random.Random(name)
    speaker = chance.choice(sorted({one.speaker for one in recordings}))
    own = [one for one in recordings if one.speaker == speaker]
    chosen = [chance.choice(own) for _ in range(chance.randint(1, most))]
    parts = [part for one in chosen for part in (torch.zeros(PAUSE), one.samples)]
    return torch.cat(parts[1:]), " ".join(one.word for one in chosen)


class SpokenNumbers:
    """Loaders of spoken numbers: a training set, and ``test`` of other recordings.

    Args:
        folder: with ``fsdd.zip``.
        num_train: utterances to train on.
        num_test: utterances to test on.
        most: digits of an utterance; 1: single digits.
        test_speakers: whose recordings are for testing, all of them, and nobody else's; empty:
            everybody's first five of each digit, as the data set has it.
        labelled: share of the training utterances whose transcript is known.
        all_sound: false: the training loader has only utterances whose transcript is known.
        batch_size: utterances of a batch.
        seed: of the order of training batches.
    """

    class_names = DIGITS

    def __init__(
        self,
        *,
        folder: str,
        num_train: int = 2000,
        num_test: int = 300,
        most: int = 3,
        test_speakers: Sequence[str] = (),
        labelled: float = 1.0,
        all_sound: bool = True,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        self.folder = folder
        self.sizes = {"train": num_train, "test": num_test}
        self.most = most
        self.test_speakers = tuple(test_speakers)
        self.labelled = labelled
        self.all_sound = all_sound
        self.batch_size = batch_size
        self.seed = seed

    @cached_property
    def splits(self) -> dict[str, SpeechDataset]:
        """The datasets of both splits.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_recordings`; or a split is empty.
        """
        recordings: dict[str, list[Recording]] = {"train": [], "test": []}
        for one in read_recordings(self.folder):
            recordings["test" if self._is_test(one) else "train"].append(one)
        for name, own in recordings.items():
            if not own:
                raise ValueError(
                    f"no recording of {self.folder} is left for {name!r}: test_speakers are "
                    f"{list(self.test_speakers)}. Name some of the speakers, not all."
                )
        return {
            name: SpeechDataset(
                [
                    spoken_number(own, f"{name} {number}", most=self.most)
                    for number in range(self.sizes[name])
                ],
                self.class_names,
                labelled=self.labelled if name == "train" else 1.0,
            )
            for name, own in recordings.items()
        }

    def _is_test(self, recording: Recording) -> bool:
        if self.test_speakers:
            return recording.speaker in self.test_speakers
        return recording.index in TEST_INDICES

    def train_dataloader(self) -> DataLoader[Sample]:
        train = self.splits["train"]
        return DataLoader(
            train if self.all_sound else Subset(train, sorted(train.labelled)),
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=collate,
        )

    def val_dataloader(self) -> dict[str, DataLoader[Sample]]:
        """The test recordings, by the name under which they are cached and scored."""
        loader = DataLoader(self.splits["test"], batch_size=self.batch_size, collate_fn=collate)
        return {"test": loader}
