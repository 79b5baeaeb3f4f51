"""A small causal language model and sequences for it, padded on either side or packed.

The model is invariant by construction: a sequence gives the same logits alone, beside padding on
either side, and packed with others, as long as masks and segments are used as they should be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.data.toys import Samples

VOCABULARY = 11
LENGTHS = (5, 2, 7, 1, 3, 9, 4, 6)
IGNORED = -100
PACKED = {
    "inputs": {"input_ids": "input_ids", "segment_ids": "segment_ids"},
    "labels": "labels",
    "segments": "segment_ids",
    "mask": "segment_ids",
    "causal": True,
}


def sequences(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Random token ids, none of them 0, which pads."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in lengths]


class CausalNet(nn.Module):
    """Embeddings and one layer of causal attention within segments; (B, L) ids to (B, L, C)."""

    def __init__(self, seed: int = 0, width: int = 8, num_classes: int = VOCABULARY) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(VOCABULARY, width)
            self.places = nn.Embedding(32, width)
            self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
            self.head = nn.Linear(width, num_classes)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Any:
        hidden = self.hidden(input_ids, attention_mask, segment_ids)
        return {"logits": 3 * self.head(hidden)}

    def hidden(
        self, ids: Tensor, real: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        real = torch.ones_like(ids) if real is None else real
        segments = torch.zeros_like(ids) if segments is None else segments
        same = segments[:, :, None] == segments[:, None, :]
        seen = same & real.bool()[:, None, :]
        seen &= torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        place = (seen.sum(-1) - 1).clamp(min=0)  # how many of its own sequence came before
        x = self.tokens(ids) + self.places(place)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        # A position of padding sees nothing, and must not be NaN.
        weights = scores.masked_fill(~seen, -1e9).softmax(-1)
        return x + weights @ x


def pad(samples: list[Tensor], *, side: str = "right", causal: bool = True) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels`` (the ids themselves), padded."""
    length = max(map(len, samples)) + 1  # at least one position of padding in every row
    made = {
        "input_ids": torch.zeros(len(samples), length, dtype=torch.int64),
        "attention_mask": torch.zeros(len(samples), length, dtype=torch.int64),
        "labels": torch.full((len(samples), length), IGNORED),
    }
    for row, ids in enumerate(samples):
        at = slice(0, len(ids)) if side == "right" else slice(length - len(ids), length)
        made["input_ids"][row, at] = ids
        made["attention_mask"][row, at] = 1
        made["labels"][row, at] = ids
    return made


def pad_left(samples: list[Tensor]) -> dict[str, Tensor]:
    return pad(samples, side="left")


def pad_right(samples: list[Tensor]) -> dict[str, Tensor]:
    return pad(samples, side="right")


def packed(samples: list[Tensor], length: int = 16) -> list[dict[str, Tensor]]:
    """Rows of several sequences one after another, each with a number of its own; 0 pads."""
    rows: list[list[Tensor]] = [[]]
    for ids in samples:
        if sum(map(len, rows[-1])) + len(ids) > length:
            rows.append([])
        rows[-1].append(ids)
    made = []
    for row in rows:
        ids, numbers = torch.zeros(2, length, dtype=torch.int64)
        ids[: sum(map(len, row))] = torch.cat(row)
        owners = torch.arange(1, len(row) + 1)
        numbers[: sum(map(len, row))] = owners.repeat_interleave(torch.tensor([*map(len, row)]))
        made.append({"input_ids": ids, "segment_ids": numbers, "labels": ids.where(ids > 0, -100)})
    return made


def loader(samples: list[Any], collate_fn: Any = None, batch_size: int = 3) -> DataLoader:
    return DataLoader(Samples(samples), batch_size=batch_size, collate_fn=collate_fn)


@torch.no_grad()
def alone(model: CausalNet, ids: Tensor) -> Tensor:
    """Logits of one sequence by itself at the positions that predict a token, (L - 1, C)."""
    return model(ids[None])["logits"][0, :-1]
