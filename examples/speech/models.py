"""wav2vec 2.0 with a CTC head: the teacher, and a student that begins with some of its layers.

Both return raw logits (B, F, C) of F frames and the mask of the frames that belong to sound, which
only the model can know. ``pretrained`` is always a local folder as ``save_pretrained`` writes one:
the example's own teacher, or any checkpoint of wav2vec 2.0; nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC
from transformers.utils import logging

logging.disable_progress_bar()  # files are read and written in less than a second

IGNORE_INDEX = -100
BLANK_ID = 0

Take = Literal["first_k", "last_k", "every_k"]
Norm = Literal["layer", "group"]


def wav2vec2(
    *,
    num_classes: int,
    width: int,
    layers: int,
    heads: int,
    channels: tuple[int, ...] = (32, 64, 128),
    kernels: tuple[int, ...] = (10, 8, 8),
    strides: tuple[int, ...] = (5, 8, 4),
    norm: Norm = "layer",
    dropout: float = 0.1,
) -> Wav2Vec2ForCTC:
    """A small model with random weights, for sound of 8,000 samples a second.

    Three convolutions give a frame for each 160 samples (20 ms), as wav2vec 2.0's seven do at
    16,000 samples a second.

    Args:
        num_classes: C, characters and blank.
        width: of the hidden states; a multiple of ``heads``.
        layers: of the transformer.
        heads: of attention.
        channels: of each convolution.
        kernels: samples (or frames of the one before) that each sees.
        strides: between two frames of each.
        norm: ``layer`` after every convolution, or ``group`` over time after the first, as the
            base checkpoints have it: then logits depend on padding.
        dropout: in the transformer, in training only.
    """
    config = Wav2Vec2Config(
        vocab_size=num_classes,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        num_feat_extract_layers=len(channels),
        feat_extract_norm=norm,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        pad_token_id=BLANK_ID,
    )
    return Wav2Vec2ForCTC(config)


def load(pretrained: str | Path) -> Wav2Vec2ForCTC:
    """The model of a local folder, in float32 and in training mode, as a new one is.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    if not (Path(pretrained) / "config.json").is_file():
        raise FileNotFoundError(
            f"there is no checkpoint in {pretrained} (no config.json). Train one by python -m "
            "examples.speech.train_teacher, or give the folder of a wav2vec 2.0 with a CTC head."
        )
    model = Wav2Vec2ForCTC.from_pretrained(
        pretrained,
        local_files_only=True,
        dtype=torch.float32,
        # SpecAugment's own vector, which some checkpoints lack, would be random in every process.
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )
    return model.train()


class Teacher(nn.Module):
    """A trained model as it is.

    Args:
        pretrained: folder of its checkpoint.
    """

    def __init__(self, pretrained: str) -> None:
        super().__init__()
        self.model = load(pretrained)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Logits (B, F, C) and mask (B, F) of sound (B, L) with its mask (B, L)."""
        _, logits, mask = frames(self.model, input_values, attention_mask)
        return {"logits": logits, "mask": mask}


class Student(nn.Module):
    """The teacher's convolutions and head, and some of its transformer layers.

    All of the checkpoint is read, and what is not taken is dropped before this returns.

    Args:
        pretrained: folder of the teacher's checkpoint.
        layers: how many of its layers to take.
        take: which; see :func:`chosen_layers`.
    """

    def __init__(self, pretrained: str, *, layers: int, take: Take = "first_k") -> None:
        super().__init__()
        self.model = load(pretrained)
        encoder = self.model.wav2vec2.encoder
        chosen = chosen_layers(len(encoder.layers), layers, take)
        encoder.layers = nn.ModuleList(encoder.layers[number] for number in chosen)
        self.model.config.num_hidden_layers = layers

    def forward(
        self, input_values: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> dict[str, Any]:
        """Logits, mask and the student's own losses.

        Args:
            input_values: (B, L) float32.
            attention_mask: (B, L), nonzero where there is sound.
            labels: (B, T) int64, filled up with -100; a row of nothing else has no transcript.

        Returns:
            ``logits`` (B, F, C), ``mask`` (B, F) and ``loss``: ``features_pen``, and with labels
            ``student_loss``.
        """
        features, logits, mask = frames(self.model, input_values, attention_mask)
        losses = {"features_pen": features_penalty(features, mask)}
        if labels is not None:
            losses["student_loss"] = ctc_loss(logits, mask, labels)
        return {"logits": logits, "mask": mask, "loss": losses}


def chosen_layers(available: int, wanted: int, take: Take) -> list[int]:
    """Which of a teacher's layers a student begins with, from 0.

    Args:
        available: the teacher's.
        wanted: the student's, k.
        take: ``first_k``: the lower ones; ``last_k``: the upper ones; ``every_k``: evenly spread,
            the lowest among them.

    Raises:
        ValueError: there are not so many, or no such way.
    """
    if not 1 <= wanted <= available:
        raise ValueError(
            f"a student of {wanted} layers cannot be made of a teacher's {available}: take 1 to "
            f"{available}."
        )
    if take not in get_args(Take):
        raise ValueError(f"there is no way {take!r}; it is one of {', '.join(get_args(Take))}.")
    if take == "first_k":
        return list(range(wanted))
    if take == "last_k":
        return list(range(available - wanted, available))
    return [number * available // wanted for number in range(wanted)]


def frames(
    model: Wav2Vec2ForCTC, input_values: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass, step by step, since the model itself hides its convolutions' features.

    There is no SpecAugment, whatever a checkpoint's settings say: a cached target is true only
    for what the teacher heard.

    Returns:
        Features (B, F, D) of the convolutions, logits (B, F, C), mask (B, F) bool.
    """
    wav2vec = model.wav2vec2
    features = wav2vec.feature_extractor(input_values).transpose(1, 2)
    mask = wav2vec._get_feature_vector_attention_mask(features.shape[1], attention_mask)
    hidden, _ = wav2vec.feature_projection(features)
    hidden = wav2vec.encoder(hidden, attention_mask=mask).last_hidden_state
    return features, model.lm_head(model.dropout(hidden)), mask


def features_penalty(features: Tensor, mask: Tensor) -> Tensor:
    """wav2vec's penalty: the mean square of the convolutions' features.

    Args:
        features: (B, F, D), before any normalisation that follows.
        mask: (B, F) bool; frames of padding do not count, so that a batch of one is the original.
    """
    return features[mask].float().square().mean()


def ctc_loss(logits: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Connectionist temporal classification (Graves et al. 2006), nats a character.

    Args:
        logits: (B, F, C) raw.
        mask: (B, F) bool.
        labels: (B, T) int64, -100 after each text's end.

    Returns:
        Scalar: the mean over the characters of all transcripts of the batch; 0 with a graph where
        there is none. A text that does not fit into its frames counts as 0.
    """
    known = labels != IGNORE_INDEX
    lengths, has_text = known.sum(dim=1), known.any(dim=1)
    nats = F.ctc_loss(
        logits.float().log_softmax(dim=-1).transpose(0, 1),
        labels.masked_fill(~known, BLANK_ID),
        mask.sum(dim=1),
        lengths,
        blank=BLANK_ID,
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(has_text, nats, 0.0).sum() / lengths.sum().clamp(min=1)
