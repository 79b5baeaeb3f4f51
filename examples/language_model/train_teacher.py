"""Train tokenizer and teacher on the text alone: plain PyTorch, nothing of kdcache.

python -m examples.language_model.train_teacher --data FOLDER --out runs/language_model

Writes ``tokenizer.json`` and ``teacher.safetensors``. The same seed, machine and number of threads
give the same ones.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from examples.language_model.data import IGNORE_INDEX, Sample, TextData
from examples.language_model.schedule import share_of_peak
from examples.language_model.sizes import SIZES, Size
from examples.language_model.text import read_text
from examples.language_model.tokenizer import train_tokenizer

TOKENIZER, WEIGHTS = "tokenizer.json", "teacher.safetensors"
MAX_NORM = 1.0  # of the gradient


def make_tokenizer(path: Path, *, folder: str | None, size: Size) -> None:
    """Train the tokenizer on the training text, where it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = read_text(folder, num_paragraphs=size.num_paragraphs)
        train_tokenizer(text.train, vocabulary=size.teacher.vocabulary).save(str(path))


def train_teacher(
    path: Path, data: TextData, size: Size, *, seed: int = 0, say: Callable[[str], object] = print
) -> None:
    """Train a teacher and write its weights.

    Args:
        path: file to write.
        data: its loaders.
        size: of the teacher, and how it learns.
        seed: of weights and dropout; the order of batches is the data's.
        say: is told how it goes, once an epoch.
    """
    torch.manual_seed(seed)
    batches, val = data.train_dataloader(), data.val_dataloader()["val"]
    model = size.teacher.make()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=size.teaching.learning_rate, weight_decay=0.1
    )
    steps = size.teaching.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: share_of_peak(n, steps))
    for epoch in range(1, size.teaching.epochs + 1):
        started, nats = time.monotonic(), 0.0
        model.train()
        for batch in batches:
            loss, num_tokens = next_token_nats(model, batch)
            loss = loss / num_tokens
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            schedule.step()
            nats += loss.item() / len(batches)
        say(
            f"  epoch {epoch}/{size.teaching.epochs}: loss {nats:.3f}, validation perplexity "
            f"{math.exp(cross_entropy(model, val)):.1f}, {time.monotonic() - started:.0f} s"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path))


@torch.inference_mode()
def cross_entropy(model: nn.Module, batches: Iterable[Sample]) -> float:
    """Nats per predicted token, over all of them (not a mean of batches' means)."""
    model.eval()
    nats, num_tokens = 0.0, 0
    for batch in batches:
        found, predicted = next_token_nats(model, batch)
        nats, num_tokens = nats + found.item(), num_tokens + predicted
    return nats / num_tokens


def next_token_nats(model: nn.Module, batch: Sample) -> tuple[Tensor, int]:
    """Cross entropy of every token that has one before it: their sum, and how many they are."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    known = labels != IGNORE_INDEX
    nats = F.cross_entropy(logits[:, :-1][known], labels[known], reduction="sum")
    return nats, int(known.sum())


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the language-model example's teacher.")
    parser.add_argument("--data", help="folder with WikiText-2's files; see text.py")
    parser.add_argument("--out", type=Path, default=Path("runs/language_model"))
    parser.add_argument("--size", choices=SIZES, default="small")
    options = parser.parse_args(words)
    size, weights = SIZES[options.size], options.out / WEIGHTS
    if weights.exists():
        print(f"{weights} is there; reused")
        return
    tokenizer = options.out / TOKENIZER
    make_tokenizer(tokenizer, folder=options.data, size=size)
    data = TextData(
        folder=options.data,
        tokenizer=str(tokenizer),
        max_length=size.teacher.max_length,
        batch_size=size.batch_size,
        num_paragraphs=size.num_paragraphs,
    )
    print(f"text: {data.text.source}")
    train_teacher(weights, data, size)
    print(f"wrote {tokenizer} and {weights}")


if __name__ == "__main__":
    main()
