"""Train the teacher on all training labels: plain PyTorch, nothing of kdcache.

python -m examples.digits.train_teacher --out runs/digits/teacher.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from examples.digits.data import DigitsData
from examples.digits.models import Teacher

PEAK_LEARNING_RATE = 3e-3
BATCH_SIZE = 64


def train_teacher(path: Path, *, epochs: int = 15, seed: int = 0) -> None:
    """Train a teacher and write its weights; the same seed and machine give the same ones."""
    torch.manual_seed(seed)
    batches = DigitsData(batch_size=BATCH_SIZE, seed=seed).train_dataloader()
    model = Teacher()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=epochs * len(batches)
    )
    for _ in range(epochs):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the teacher of the digits example.")
    parser.add_argument("--out", type=Path, default=Path("runs/digits/teacher.safetensors"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        print(f"{options.out} is there; reused")
        return
    torch.set_num_threads(1)  # as the demo does: the same weights
    train_teacher(options.out, epochs=options.epochs, seed=options.seed)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
